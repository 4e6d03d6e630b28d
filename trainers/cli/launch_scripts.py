"""The scripts that `llmgym launch` prints, as texts: one a launcher, all with the same loop.

The loop starts a run, and again with --resume where it failed; a finished run is never started
again. A signal to the script reaches one rank, which stops all after a save.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a script starts.

    Attributes:
        made_by: the command that prints it.
        what: the preset or the run's name, for a reader.
        words: arguments of `train`.
        run_dir: the run folder.
        run_name: its last part.
        nodes: hosts.
        gpus: GPUs of a host.
        hostfile: a file of hosts; None: this host alone.
        chosen: options that choose hosts of it.
        secrets: environment variables that hold the secrets of the settings.
    """

    made_by: str
    what: str
    words: tuple[str, ...]
    run_dir: str
    run_name: str
    nodes: int
    gpus: int
    hostfile: str | None = None
    chosen: Mapping[str, str] = field(default_factory=dict[str, str])
    secrets: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """How many of what."""
        nodes = f"{self.nodes} nodes with {self.gpus} GPUs each" if self.nodes > 1 else "one node"
        return nodes if self.nodes > 1 else f"{nodes} with {self.gpus} GPUs"


SCRIPT_WIDTH = 90
"""Of a line, where its words allow it."""

NOTICE = 7200
"""Seconds before the end of its time that slurm tells a job: a save waits for the iteration."""

NETWORK = """\
# Hosts with several networks: name the one they share.
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
"""

THREADS = "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) > %d ? $(nproc) / %d : 1))}"
"""Of a rank on this node, its share of the cores: torchrun would give it one. See share_cores."""

SSH_ENVIRONMENT = """\
# ssh starts without your environment: what ranks need of it goes into a file of this start,
# NAME=VALUE a line, and below it the lines of your own .deepspeed_env, which win. Keys do not:
# deepspeed puts the lines on a command line, which all users of a host see.
own=${DS_ENV_FILE:-.deepspeed_env}
DS_ENV_FILE=$(mktemp)
export DS_ENV_FILE
trap 'rm -f "$DS_ENV_FILE"' EXIT
{
  env | grep -E '^(NCCL_|GLOO_|OMP_|DS_ACCELERATOR=|HF_HOME=|HF_HUB_|LLMGYM_|WANDB_MODE=)' |
    grep -v '^LLMGYM_SECRET_'
  grep -hs = "$HOME/$own" "$own"
} > "$DS_ENV_FILE"
# A host that is gone says nothing: without this pdsh would wait for it for ever.
export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=10 -o ServerAliveCountMax=3"
"""

TO_RANK_0 = """\
stop() {  # Rank 0 tells the others, and all save. The launcher would kill them after 30 seconds.
  stopping=yes
  host=$(sed -n 's/.*"host": "\\([^"]*\\)".*/\\1/p' "$RUN/run.lock" 2>/dev/null)
  pid=$(sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p' "$RUN/run.lock" 2>/dev/null)
  ask="pgrep -f scripts/train_ppo.py | grep -qx '$pid' && kill -TERM $pid"
  case "$host" in
    '') false ;;  # no rank has opened the run: there is nothing to save
    "$HOSTNAME") bash -c "$ask" ;;
    *) ssh "$host" "$ask" ;;
  esac || kill -TERM -- "-$child"  # the same where the rank that is named is gone
}
"""

TO_CHILDREN = """\
stop() {  # The ranks of this node tell the others, and all save; torchrun would kill them soon.
  stopping=yes
  pkill -TERM -P "$child" || kill -TERM -- "-$child"
}
"""

LOOP = """\
status() { sed -n 's/.*"status": "\\([a-z]*\\)".*/\\1/p' "$RUN/status.json" 2>/dev/null; }

set -m  # start is a process group of its own, so that Ctrl-C comes here alone
trap stop TERM INT HUP USR1
stopping=
for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
  case $(status) in finished | converged) echo "$RUN is finished"; exit 0 ;; esac
  start &
  child=$!
  wait "$child"
  code=$?
  while [ -n "$stopping" ] && kill -0 "$child" 2>/dev/null; do wait "$child"; done  # they save
  case $(status) in
    interrupted) if [ -n "$stopping" ] || [ "$code" -eq 0 ]; then after_stop; exit 0; fi ;;
    finished | converged) exit 0 ;;
  esac
  if [ "$code" -eq 2 ]; then exit 2; fi  # a setting is wrong, and would be again
  echo "attempt $attempt of $ATTEMPTS ended with exit code $code" >&2
  if [ -z "$stopping" ] && [ "$attempt" -lt "$ATTEMPTS" ]; then sleep "$PAUSE" & wait $!; fi
  if [ -n "$stopping" ]; then break; fi
done
exit 1
"""


def _in_comment(text: str) -> str:
    """Return a text that stays a comment in all its lines."""
    return text.replace("\n", "\n# ")


def _head(job: Job, how: str, start: str) -> str:
    secrets = "# Secrets are not written here. Export them on every host before the start:\n"
    secrets += "".join(f"#   {name}\n" for name in job.secrets)
    return (
        f"# {_in_comment(job.what)} on {job.place}, {how}.\n"
        f"# Printed by: {_in_comment(job.made_by)}\n"
        f"# Start it:   {start}\n"
        "# with the environment active, in the checkout, which all nodes find at the same path.\n"
        f"{secrets * bool(job.secrets)}"
    )


def _variables(job: Job) -> str:
    return (
        f"set -u\nRUN={shlex.quote(job.run_dir)}\n"
        "ATTEMPTS=${ATTEMPTS:-3}  # starts, each from the newest checkpoint\n"
        "PAUSE=${PAUSE:-30}       # seconds between them\n\n"
    )


def _wrapped(words: Sequence[str], indent: str) -> str:
    """Return a command in lines that end with a backslash; words stay whole, whatever is inside."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= SCRIPT_WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return f" \\\n{indent}  ".join(lines)


def _over_ssh(word: str) -> str:
    """Return a word for the shell of another host, which reads again what deepspeed hands to pdsh.

    deepspeed puts a word with a space in double quotes, with a backslash before those it has, and
    leaves any other as it is (deepspeed 0.19, PDSHRunner.parse_user_args); pdsh replaces %h and %n.
    """
    word = word.replace("%", "%%")
    return re.sub(r"[\\$`]", r"\\\g<0>", word) if " " in word else shlex.quote(word)


def _training(job: Job, *, over_ssh: bool = False) -> list[str]:
    """Return the words of `train`, an option on one line with its first value."""
    words: list[str] = []
    for word in map(shlex.quote, map(_over_ssh, job.words) if over_ssh else job.words):
        if words and words[-1].startswith("-") and " " not in words[-1] and word[0] != "-":
            words[-1] = f"{words[-1]} {word}"
        else:
            words.append(word)
    return ["scripts/train_ppo.py", *words, "--resume"]


def _deepspeed(job: Job) -> str:
    """Return the script for deepspeed's launcher, on this host or on those of a hostfile."""
    lines, ours = "", "bash deepspeed.sh"
    launcher = ["deepspeed", '--master_port "${MASTER_PORT:-29500}"']
    if job.hostfile is None:
        launcher += [f"--num_accelerators {job.gpus}"]
    else:
        file = shlex.quote(job.hostfile)
        names = {"nodes": "num_nodes", "gpus": "num_gpus"}
        # One host that is left is a remote one all the same: without --force_multi it is this.
        launcher += [f"--hostfile {file}", "--force_multi"]
        check = ["llmgym launch check", f"--hostfile {file}", f"--ranks {job.nodes * job.gpus}"]
        for name, value in job.chosen.items():
            launcher += [f"--{names.get(name, name)} {shlex.quote(value)}"]
            check += [f"--{name} {shlex.quote(value)}"]
        lines = f"  {_wrapped(check, '  ')} || return\n"
    training = _training(job, over_ssh=job.hostfile is not None)
    start = f"start() {{\n{lines}  {_wrapped([*launcher, *training], '  ')}\n}}\n"
    how = "by deepspeed" if job.hostfile is None else "by deepspeed, over ssh"
    hosts = (
        f'# {_in_comment(str(job.hostfile))} has a line a host: "NAME slots={job.gpus}".\n'
        "# Odd words of the training are quoted twice: for this shell and for that of each host.\n"
    ) * bool(job.hostfile)
    head = f"#!/usr/bin/env bash\n{_head(job, how, ours)}{hosts}"
    more = f"{SSH_ENVIRONMENT}\n" if job.hostfile else ""
    return (
        f"{head}{_variables(job)}{NETWORK}{more}\n{start}\n{TO_RANK_0}\n"
        f"after_stop() {{ :; }}\n{LOOP}"
    )


def _threads(job: Job) -> str:
    return THREADS % (job.gpus, job.gpus)


def _torchrun(job: Job) -> str:
    """Return the script for torchrun, which is started on every node."""
    if job.nodes == 1:
        ours, where = "bash torchrun.sh", ""
        launcher = ["torchrun", "--standalone"]
    else:
        ours = "bash torchrun.sh NUMBER FIRST    on every node: its number from 0, the first's name"
        where = "NODE=${1:?the number of this node, from 0}\nFIRST=${2:?the name of node 0}\n"
        launcher = [
            "torchrun", f"--nnodes {job.nodes}", '--node_rank "$NODE"',
            '--master_addr "$FIRST"', '--master_port "${MASTER_PORT:-29500}"',
        ]  # fmt: skip
    launcher = ["exec", *launcher, f"--nproc_per_node {job.gpus}"]
    start = f"start() {{\n  {_wrapped([*launcher, *_training(job)], '  ')}\n}}\n"
    return (
        f"#!/usr/bin/env bash\n{_head(job, 'by torchrun', ours)}{where}{_variables(job)}{NETWORK}"
        f"# A rank's share of the cores; torchrun would give it one.\n{_threads(job)}\n\n"
        f"{start}\n{TO_CHILDREN}\nafter_stop() {{ :; }}\n{LOOP}"
    )


def _slurm(job: Job) -> str:
    """Return the batch script for slurm: torchrun on every node of the job."""
    batch = {
        "job-name": job.run_name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus,
        "exclusive": None,
        "time": "24:00:00",
        "signal": f"B:TERM@{NOTICE}",
        "requeue": None,
        "open-mode": "append",
    }
    lines = "".join(
        f"#SBATCH --{name}{'' if value is None else f'={value}'}\n" for name, value in batch.items()
    )
    launcher = [
        "exec torchrun", f"--nnodes {job.nodes}", '--node_rank "$SLURM_NODEID"',
        '--master_addr "$MASTER_ADDR"', '--master_port "$MASTER_PORT"',
        f"--nproc_per_node {job.gpus}",
    ]  # fmt: skip
    inner = f"{_threads(job)}\n    {_wrapped([*launcher, *_training(job)], '    ')}"
    return (
        f"#!/usr/bin/env bash\n{lines}{_head(job, 'by slurm', 'sbatch slurm.sbatch')}"
        "# --signal: seconds of notice before the time is over. Set more than an iteration, an\n"
        "# evaluation and a save take at most by llmgym plan, and far less than --time:\n"
        "# the job ends once it has saved.\n"
        f"{_variables(job)}{NETWORK}"
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))\n"
        "export MASTER_ADDR MASTER_PORT\n\n"
        f"start() {{\n  srun --kill-on-bad-exit=1 bash -c {shlex.quote(inner)}\n}}\n\n"
        f"{TO_RANK_0}\n"
        'after_stop() { scontrol requeue "$SLURM_JOB_ID"; }  # the rest of it, in another job\n'
        f"{LOOP}"
    )


SCRIPTS: Mapping[str, Callable[[Job], str]] = {
    "deepspeed": _deepspeed,
    "torchrun": _torchrun,
    "slurm": _slurm,
}
"""Launcher -> what makes its script."""
