"""`llmgym launch`: print a script that starts a run with a launcher; start nothing. No torch.

llmgym launch slurm --nodes 4 -- CONFIG [SETTINGS]     the words behind -- are those of train
llmgym launch check --hostfile FILE --ranks 32         what the script for deepspeed asks first
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import tyro

from llmgym.plural import counted
from trainers.cli.arguments import Launch, read_arguments
from trainers.cli.hostfile import check_reachable, chosen, count, hosts_text, read_hostfile
from trainers.cli.launch_scripts import SCRIPTS, Job
from trainers.cli.options import parse_options
from trainers.cli.train import config_of
from trainers.config import Config
from trainers.config.batch_check import check_batch
from trainers.config.secrets import secret_variables
from trainers.errors import ConfigError
from trainers.redaction.redact import HIDDEN, without_values

GPUS = 8
"""GPUs of a node where nothing says otherwise."""
TAKEN = {
    "deepspeed": {"nodes", "gpus", "hostfile", "include", "exclude"},
    "torchrun": {"nodes", "gpus"},
    "slurm": {"nodes", "gpus"},
    "check": {"nodes", "gpus", "hostfile", "include", "exclude", "ranks"},
}


@dataclass(frozen=True)
class Options:
    """Print a script that starts the run which the words of `train` behind -- describe.

    `check` reads a hostfile as strictly as can be, and asks every host for an answer over ssh.
    """

    launcher: tyro.conf.Positional[Literal["deepspeed", "torchrun", "slurm", "check"]]
    """What starts the ranks."""
    nodes: int | None = None
    """Hosts, of a hostfile the first ones; by default backend.nodes,
    or where backend.gpus is null all of a hostfile, or 1."""
    gpus: int | None = None
    """GPUs of each, a rank each; by default backend.gpus, or where it is null all slots of a
    hostfile, or 8."""
    hostfile: Path | None = None
    """A line a host, `NAME slots=8`."""
    include: str | None = None
    """Hosts of it to take, with slots: `a@b:0,1`."""
    exclude: str | None = None
    """Hosts or slots of it to leave out, written alike."""
    ranks: int | None = None
    """How many ranks there must be."""


def _check_options(options: Options) -> None:
    for field in fields(Options)[1:]:
        value = getattr(options, field.name)
        if value is not None and field.name not in TAKEN[options.launcher]:
            raise ConfigError(
                f"--{field.name} has no meaning for {options.launcher}. Drop it.\n"
                "llmgym launch --help lists the options"
            )
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"--{field.name} must be 1 or more, got {value}.")
    if (options.include or options.exclude) and options.hostfile is None:
        raise ConfigError("--include and --exclude choose of a hostfile. Add --hostfile FILE.")


def _shape(options: Options, config: Config) -> tuple[int, int]:
    """Return nodes, and the GPUs of each: those asked for, else those of the settings."""
    backend = config.backend
    nodes = options.nodes or (backend.nodes if backend.gpus else None)
    gpus = options.gpus or backend.gpus
    if options.hostfile is None:
        return nodes or 1, gpus or GPUS
    by_name = bool(options.include or options.exclude)
    if by_name:
        nodes, gpus = options.nodes, options.gpus
    hosts = read_hostfile(options.hostfile)
    left = chosen(hosts, include=options.include, exclude=options.exclude, nodes=nodes, gpus=gpus)
    numbers = {len(slots) for slots in left.values()}
    if len(numbers) > 1:
        raise ConfigError(
            f"hosts must have as many slots each, got {hosts_text(left)}. --gpus {min(numbers)} "
            "takes so many of all, --include chooses."
        )
    shape = len(left), numbers.pop()
    if by_name and backend.gpus and shape != (backend.nodes, backend.gpus):
        raise ConfigError(
            f"the settings ask for {backend.nodes} x {backend.gpus} ranks, and the choice leaves "
            f"{shape[0]} x {shape[1]}: {hosts_text(left)}. Choose others, or end the words "
            f"behind -- with --nodes {shape[0]} --gpus {shape[1]}"
        )
    if not by_name and left != hosts:
        print(f"used of {options.hostfile}, with slots: {hosts_text(left)}", file=sys.stderr)
    return shape


def _job(options: Options, config: Config, launch: Launch, words: Sequence[str]) -> Job:
    if launch.resume or launch.clean:
        raise ConfigError("the script adds --resume by itself, and --clean would lose the work.")
    nodes, gpus = _shape(options, config)
    check_batch(config, nodes * gpus)
    flags = [
        word
        for field in fields(Options)[1:]
        if (value := getattr(options, field.name)) is not None
        for word in (f"--{field.name}", str(value))
    ]
    words = [without_values(word) for word in words]
    return Job(
        made_by=shlex.join(["llmgym", "launch", options.launcher, *flags, "--", *words]),
        secrets=(*secret_variables(config),) if HIDDEN in " ".join(words) else (),
        what=words[0] if launch.preset else config.run.name,
        words=(*words, "--backend.nodes", str(nodes), "--backend.gpus", str(gpus)),
        run_dir=f"{config.run.dir}/{config.run.name}",
        run_name=config.run.name,
        nodes=nodes,
        gpus=gpus,
        hostfile=str(options.hostfile or "hostfile") if _has_hosts(options, nodes) else None,
        chosen=_choice(options, nodes, gpus),
    )


def _has_hosts(options: Options, nodes: int) -> bool:
    return options.hostfile is not None or nodes > 1


def _choice(options: Options, nodes: int, gpus: int) -> dict[str, str]:
    """Return the options that choose of a hostfile: the name that `check` knows, and the value."""
    if options.include:
        return {"include": options.include}
    if options.exclude:
        return {"exclude": options.exclude}
    return {"nodes": str(nodes), "gpus": str(gpus)}


def _check(options: Options) -> int:
    """Look at the hosts; say what there is."""
    hosts = chosen(
        read_hostfile(options.hostfile or Path("hostfile")), include=options.include,
        exclude=options.exclude, nodes=options.nodes, gpus=options.gpus,
    )  # fmt: skip
    if options.ranks not in (None, count(hosts)):
        raise ConfigError(
            f"{options.ranks} ranks are wanted, and the hostfile gives {count(hosts)}: "
            f"{hosts_text(hosts)}. Correct its slots, or print the script again for what there is."
        )
    check_reachable([*hosts])
    answers = "hosts answer" if len(hosts) > 1 else "host answers"
    print(f"{len(hosts)} {answers}, with {counted(count(hosts), 'rank')}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Print a script, or look at the hosts of a hostfile."""
    own, words = ([*argv], [])
    if "--" in own:
        own, words = own[: own.index("--")], own[own.index("--") + 1 :]
    options: Options = parse_options(Options, own, "launch")
    _check_options(options)
    if options.launcher == "check":
        return _check(options)
    if not words:
        raise ConfigError(
            f"nothing stands behind --. Name what to train:\nllmgym launch {options.launcher} "
            "-- quickstart"
        )
    launch = read_arguments(words)
    print(SCRIPTS[options.launcher](_job(options, config_of(launch), launch, words)), end="")
    return 0
