"""The printed scripts, run with launchers that only write down what they were started with."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from trainers.cli.main import main

ROOT = Path(__file__).parents[4]
KEPT = {
    "deepspeed.sh": ["deepspeed", "--nodes", "4", "--", "llama_70b_4x8_zero3_offload"],
    "torchrun.sh": ["torchrun", "--nodes", "4", "--", "llama_70b_4x8_zero3_offload"],
    "slurm.sbatch": ["slurm", "--nodes", "4", "--", "llama_70b_4x8_zero3_offload"],
}
LAUNCHERS = ["deepspeed", "torchrun", "slurm"]
HOST = socket.gethostname()
LAUNCHER = """#!/bin/bash
# Takes down its words, writes the next status and ends with the next code; "serve" runs a rank.
{ printf '%s\\0' "$@"; printf '\\0'; } >> calls
echo "${OMP_NUM_THREADS-unset}" > threads
[ ! -e "${DS_ENV_FILE-}" ] || cp "$DS_ENV_FILE" env_file
next=$(head -n 1 ends); sed -i 1d ends
mkdir -p runs/a
if [ "$next" = wait ]; then
  trap 'echo launcher >> signals; exit 1' TERM
  echo ready > gate
  while :; do read -r -t 1 < idle; done
elif [ "$next" = serve ]; then
  trap 'echo launcher >> signals' TERM
  bash scripts/train_ppo.py & rank=$!
  printf '{"host": "%s", "pid": %s}' "$(hostname)" "$rank" > runs/a/run.lock
  wait "$rank"; while kill -0 "$rank" 2>/dev/null; do wait "$rank"; done
  exit 0
fi
read -r code status <<< "$next"
[ -z "$status" ] || printf '{\\n "status": "%s"\\n}\\n' "$status" > runs/a/status.json
exit "$code"
"""
RANK = """
save() { echo rank >> signals; echo '{"status": "interrupted"}' > runs/a/status.json; exit 0; }
trap save TERM
while [ ! -s runs/a/run.lock ]; do :; done
echo ready > gate
while :; do read -r -t 1 < idle; done
"""
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit
SLURM_NODEID=0 exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >> requeued; else echo first; echo second; fi
"""
LLMGYM = """#!/bin/bash
echo "$@" >> checks
exit "$(cat reachable)"
"""
NPROC = """#!/bin/bash
echo 21
"""
NEVER = """#!/bin/bash
echo "$0 $*" >> never
"""


def printed(capsys, *words):
    assert main(["launch", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture
def cluster(tmp_path):
    """A folder to start scripts in, with every launcher replaced."""
    tools = {"deepspeed": LAUNCHER, "torchrun": LAUNCHER, "srun": SRUN, "scontrol": SCONTROL}
    (tmp_path / "bin").mkdir()
    for name, text in {**tools, "llmgym": LLMGYM, "nproc": NPROC, "ssh": NEVER}.items():
        (tmp_path / "bin" / name).write_text(text, "utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train_ppo.py").write_text(RANK, "utf-8")
    (tmp_path / "reachable").write_text("0")
    os.mkfifo(tmp_path / "gate")
    os.mkfifo(tmp_path / "idle")
    return tmp_path


def started(cluster, script, *, ends, **more):
    """Start a script whose launcher ends as told, one line an attempt."""
    (cluster / "ends").write_text("\n".join(ends) + "\n", "utf-8")
    (cluster / "job.sh").write_text(script, "utf-8")
    path = f"{cluster / 'bin'}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_NODELIST": "first", "SLURM_JOB_ID": "77"}
    return subprocess.Popen(
        ["bash", "job.sh"],
        # A shell cannot trap what was ignored when it started, as SIGINT is behind an `&`.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        cwd=cluster,
        env={**os.environ, **slurm, "PATH": path, "PAUSE": "0", "ATTEMPTS": "3", **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ran(cluster, script, *, ends, **more):
    process = started(cluster, script, ends=ends, **more)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def calls(cluster):
    file = cluster / "calls"
    text = file.read_text("utf-8") if file.exists() else ""
    return [call.split("\0") for call in text.split("\0\0") if call]


@pytest.mark.parametrize("file", KEPT)
def test_the_scripts_that_are_kept_are_what_is_printed(file, capsys):
    kept = (ROOT / "scripts" / "launch" / file).read_text("utf-8")
    assert kept == printed(capsys, *KEPT[file]), f"llmgym launch {' '.join(KEPT[file])} writes it"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_words_reach_the_training_as_they_were_typed(launcher, cluster, capsys):
    odd = ["--envs.0.kwargs.path", "my 'own' $file", "--reward", 'a b.py:f"g', "--name", "a"]
    script = printed(capsys, launcher, "--gpus", "2", "--", "quickstart", *odd)
    assert ran(cluster, script, ends=["0 finished"])[0] == 0
    (call,) = calls(cluster)
    words = call[call.index("scripts/train_ppo.py") + 1 :]
    assert words == ["quickstart", *odd, "--backend.nodes", "1", "--backend.gpus", "2", "--resume"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("ends", "code", "starts"),
    [
        (["0 finished"], 0, 1),
        (["1 failed", "1 running", "0 finished"], 0, 3),
        (["1 failed", "0 converged"], 0, 2),
        (["1", "1", "1", "0 finished"], 1, 3),
        (["2"], 2, 1),
        (["1 finished"], 0, 1),  # a launcher that ends badly after a run that ended well
        (["0 interrupted"], 0, 1),
    ],
)
def test_a_run_is_started_until_it_is_finished(launcher, ends, code, starts, cluster, capsys):
    script = printed(capsys, launcher, "--gpus", "1", "--", "quickstart", "--name", "a")
    assert ran(cluster, script, ends=ends)[0] == code
    assert len(calls(cluster)) == starts


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_finished_run_is_never_started_again(launcher, cluster, capsys):
    script = printed(capsys, launcher, "--gpus", "1", "--", "quickstart", "--name", "a")
    ran(cluster, script, ends=["0 finished"])
    code, said = ran(cluster, script, ends=["0 finished"])
    assert (code, said) == (0, "runs/a is finished\n")
    assert len(calls(cluster)) == 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_the_ranks_and_not_the_launcher(launcher, number, cluster, capsys):
    script = printed(capsys, launcher, "--gpus", "1", "--", "quickstart", "--name", "a")
    process = started(cluster, script, ends=["serve", "0 finished"])
    try:
        assert (cluster / "gate").read_text() == "ready\n"  # waits until the rank is there
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert (cluster / "signals").read_text() == "rank\n"
    assert json.loads((cluster / "runs/a/status.json").read_text())["status"] == "interrupted"
    assert len(calls(cluster)) == 1
    assert (cluster / "requeued").exists() is (launcher == "slurm")


def test_hosts_are_asked_before_deepspeed_starts_and_again_at_every_attempt(cluster, capsys):
    hosts = cluster / "hosts"
    hosts.write_text("one slots=2\ntwo slots=2\n", "utf-8")
    (cluster / "reachable").write_text("1")
    chosen = ["--hostfile", str(hosts), "--include", "two:0"]
    script = printed(capsys, "deepspeed", *chosen, "--", "quickstart", "--name", "a")
    assert ran(cluster, script, ends=["0 finished"])[0] == 1
    assert calls(cluster) == []
    asked = f"launch check --hostfile {hosts} --ranks 1 --include two:0\n"
    assert (cluster / "checks").read_text() == asked * 3
    (cluster / "reachable").write_text("0")
    assert ran(cluster, script, ends=["0 finished"])[0] == 0
    (call,) = calls(cluster)
    assert call[call.index("--hostfile") + 1] == str(hosts)
    assert call[call.index("--include") + 1] == "two:0"
    assert "--force_multi" in call, "the one host that is left is not this one"


def test_what_ranks_need_of_the_environment_is_written_without_keys(cluster, capsys, monkeypatch):
    monkeypatch.setenv("LLMGYM_DATA", "/data")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LLMGYM_SECRET_REWARDS_0_KWARGS_API_KEY", "secret")
    script = printed(capsys, "deepspeed", "--nodes", "2", "--", "quickstart", "--name", "a")
    ran(cluster, script, ends=["0 failed", "0 finished"])
    lines = (cluster / "env_file").read_text().splitlines()
    assert {"LLMGYM_DATA=/data", "NCCL_DEBUG=WARN"} <= {*lines}
    assert not [line for line in lines if "secret" in line]
    assert not (cluster / ".deepspeed_env").exists()


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "slurm"])
def test_a_script_holds_no_secret_and_says_which_variable_does(capsys, launcher):
    key = "sk-4242 'abcd\" efgh"
    words = ["--reward", "a.py:b", "--rewards.0.kwargs.api_key", key, "--rewards.0.kwargs.n", "3"]
    script = printed(capsys, launcher, "--nodes", "2", "--", "quickstart", *words)
    assert "4242" not in script
    assert "efgh" not in script
    assert "#   LLMGYM_SECRET_REWARDS_0_KWARGS_API_KEY\n" in script
    assert "--rewards.0.kwargs.api_key" in script
    assert "(hidden)" in script


def test_the_environment_is_that_of_each_start_and_ones_own_file_wins(cluster, capsys):
    script = printed(capsys, "deepspeed", "--nodes", "2", "--", "quickstart", "--name", "a")
    (cluster / "spare").mkdir()
    (cluster / ".deepspeed_env").write_text("MINE=1")
    for level in ("WARN", "INFO"):
        more = {"NCCL_DEBUG": level, "TMPDIR": str(cluster / "spare"), "HOME": str(cluster / "no")}
        ran(cluster, script, ends=["1 failed", "1 failed", "1 failed"], **more)
        lines = (cluster / "env_file").read_text().splitlines()
        assert [line for line in lines if line.startswith("NCCL_DEBUG")] == [f"NCCL_DEBUG={level}"]
        assert lines[-1] == "MINE=1", "of two lines deepspeed takes the later one"
    assert (cluster / ".deepspeed_env").read_text() == "MINE=1"
    assert not [*(cluster / "spare").iterdir()]


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
@pytest.mark.parametrize(
    ("gpus", "said", "threads"), [(2, "", 10), (8, "", 2), (32, "", 1), (2, "3", 3)]
)
def test_ranks_share_the_cores_of_their_node(launcher, gpus, said, threads, cluster, capsys):
    words = [launcher, "--gpus", str(gpus), "--", "quickstart", "--name", "a"]
    script = printed(capsys, *words, "--ppo.num-prompts", "128")
    assert ran(cluster, script, ends=["0 finished"], OMP_NUM_THREADS=said)[0] == 0
    assert (cluster / "threads").read_text() == f"{threads}\n"


@pytest.mark.parametrize("launcher", ["deepspeed", "slurm"])
@pytest.mark.parametrize("lock", [None, "", '{"host": "', f'{{"host": "{HOST}", "pid": 4194305}}'])
def test_without_a_rank_that_has_the_run_the_launcher_is_told(launcher, lock, cluster, capsys):
    script = printed(capsys, launcher, "--gpus", "1", "--", "quickstart", "--name", "a")
    process = started(cluster, script, ends=["wait"])
    try:
        assert (cluster / "gate").read_text() == "ready\n"
        if lock is not None:
            (cluster / "runs/a/run.lock").write_text(lock)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert (cluster / "signals").read_text() == "launcher\n"
    assert not (cluster / "never").exists(), "no other host has anything to do with it"
