"""The script for several hosts, run by deepspeed itself: what a rank there is started with."""

import json
import os
import subprocess
import sys

import pytest

from trainers.cli.main import main

SSH = """#!/bin/bash
echo 127.0.0.1
"""
PDSH = f"""#!{sys.executable}
# Does as pdsh by ssh: the words that follow the hosts are one line for a shell that knows nothing.
import os, re, sys
line = " ".join(sys.argv[sys.argv.index("-w") + 2:])
line = re.sub("%([hun%])", lambda found: dict(h="one", u="me", n="0")  # noqa
              .get(found[1], "%"), line)
known = {{name: os.environ[name] for name in ("PATH", "HOME")}}
os.execvpe("bash", ["bash", "-c", line], known)
"""
RANK = """
import json, os, sys
from pathlib import Path
Path("runs/a").mkdir(parents=True)
Path("runs/a/status.json").write_text('{"status": "finished"}')
Path("found").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
"""
ODD = [
    *("<|user|>{q}", "a$HOME", "$(id)`id`", "it's", 'a"b', "a;b&c", "100%h%%", "back\\slash"),
    *(
        "two  words",
        'q \'$HOME\' "`id`" \\ \\" 5 %n %%',
        "ends with a \\",
        "a b!",
        "lines\n of   it",
    ),
    *("one\nline", "'a\tb'", "~", "x{1,2}", "#x"),
]


@pytest.mark.deepspeed
def test_words_and_environment_reach_the_ranks_of_other_hosts(tmp_path, capsys, monkeypatch):
    for name, text in {"ssh": SSH, "pdsh": PDSH, "llmgym": "#!/bin/bash\n"}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text, "utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train_ppo.py").write_text(RANK, "utf-8")
    (tmp_path / "hosts").write_text("one slots=1\n", "utf-8")
    (tmp_path / ".deepspeed_env").write_text("\nMINE=yes\nHF_HOME=/mine", "utf-8")
    monkeypatch.chdir(tmp_path)
    words = ["quickstart", "--name", "a"]
    words += [word for at, odd in enumerate(ODD) for word in (f"--envs.0.kwargs.w{at}", odd)]
    assert main(["launch", "deepspeed", "--hostfile", "hosts", "--", *words]) == 0
    (tmp_path / "job.sh").write_text(capsys.readouterr().out, "utf-8")
    path = f"{tmp_path / 'bin'}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    variables = {"PATH": path, "DS_ACCELERATOR": "cpu", "NCCL_DEBUG": "INFO", "HF_HOME": "/theirs"}
    done = subprocess.run(
        ["bash", "job.sh"], env={**os.environ, **variables, "ATTEMPTS": "1"}, timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (_, *heard), environment = json.loads((tmp_path / "found").read_text("utf-8"))
    assert heard == [*words, "--backend.nodes", "1", "--backend.gpus", "1", "--resume"]
    said = {name: environment[name] for name in ("NCCL_DEBUG", "HF_HOME", "MINE")}
    assert said == {"NCCL_DEBUG": "INFO", "HF_HOME": "/mine", "MINE": "yes"}
