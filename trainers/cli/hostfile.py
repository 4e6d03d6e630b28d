"""DeepSpeed's hostfile, read strictly: a host a line, `NAME slots=8`. No torch.

DeepSpeed (0.19) trains on this machine alone where the file is missing, reads `slots=8x` as 8 and
hears of a host that does not answer when its ranks are waited for. Here each is refused, by line.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmgym.plural import counted
from trainers.errors import BackendError, ConfigError

Hosts = dict[str, list[int]]
"""Host -> its slots, a rank each, in the order of ranks."""

HOST_LINE = re.compile(r"(?P<host>[A-Za-z0-9][\w.:-]*)\s+slots=(?P<slots>\d+)\s*(#.*)?")
NODE = re.compile(r"(?P<host>[^:@\s]+)(:(?P<slots>\d+(,\d+)*))?")
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")


def read_hostfile(file: Path) -> Hosts:
    """Return the hosts of a file.

    Raises:
        ConfigError: with every mistake at once: the line, what is wrong, what it must be.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"the hostfile {file} cannot be read: {reason}. Without it deepspeed would train on "
            'this machine alone. Write a line a host, "NAME slots=8", or name it with --hostfile.'
        ) from error
    hosts: Hosts = {}
    problems: list[str] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        match = HOST_LINE.fullmatch(line)
        if not line or line.startswith("#"):
            continue
        if match is None:
            problems.append(f'{file}:{number}: {line!r} must be "NAME slots=8".')
        elif not int(match["slots"]):
            problems.append(f"{file}:{number}: {match['host']} has 0 slots. Drop the line.")
        elif match["host"] in hosts:
            problems.append(f"{file}:{number}: {match['host']} stands there twice. Keep one line.")
        else:
            hosts[match["host"]] = list(range(int(match["slots"])))
    if problems or not hosts:
        raise ConfigError("\n".join(problems or [f"the hostfile {file} names no host."]))
    return hosts


def chosen(
    hosts: Hosts, *, include: str | None = None, exclude: str | None = None,
    nodes: int | None = None, gpus: int | None = None,
) -> Hosts:  # fmt: skip
    """Return what deepspeed's options of these names leave of the hosts.

    Raises:
        ConfigError: an option names what is not in the file, or they leave nothing.
    """
    if include and exclude:
        raise ConfigError("--include and --exclude cannot be combined: deepspeed takes one.")
    if (include or exclude) and (nodes or gpus):
        raise ConfigError("--include and --exclude choose hosts already: drop --nodes and --gpus.")
    if include:
        named = _named(include, hosts, "--include")
        return {host: named[host] for host in hosts if host in named}
    if exclude:
        named = _named(exclude, hosts, "--exclude")
        left = {host: [x for x in hosts[host] if x not in named.get(host, ())] for host in hosts}
        if not any(left.values()):
            raise ConfigError(f"--exclude {exclude} leaves no host.")
        return {host: slots for host, slots in left.items() if slots}
    if nodes and nodes > len(hosts):
        raise ConfigError(
            f"the hostfile names {counted(len(hosts), 'host')}, fewer than the {nodes} nodes asked "
            f"for. Add hosts to it, or take --nodes {len(hosts)}."
        )
    left = dict(list(hosts.items())[:nodes])
    few = [host for host, slots in left.items() if gpus and gpus > len(slots)]
    if few:
        raise ConfigError(
            f"{few[0]} has {counted(len(left[few[0]]), 'slot')}, fewer than the {gpus} GPUs of a "
            f"host asked for. Correct the file, or take --gpus {min(map(len, left.values()))}."
        )
    return {host: slots[:gpus] for host, slots in left.items()}


def _named(text: str, hosts: Hosts, option: str) -> Hosts:
    """Return the slots that a text such as `a@b:0,2` names; a host alone means all of its own."""
    named: Hosts = {}
    for part in text.split("@"):
        node = NODE.fullmatch(part)
        if node is None:
            raise ConfigError(f'{option} {text}: {part!r} must be "NAME" or "NAME:0,1".')
        host = node["host"]
        if host not in hosts:
            raise ConfigError(
                f"{option} {text}: there is no {host} in the hostfile. It has {', '.join(hosts)}."
            )
        slots = [int(x) for x in node["slots"].split(",")] if node["slots"] else hosts[host]
        if missing := [x for x in slots if x not in hosts[host]]:
            raise ConfigError(
                f"{option} {text}: {host} has {counted(len(hosts[host]), 'slot')}, from 0 on, and "
                f"no {missing[0]}."
            )
        if host in named:
            raise ConfigError(f"{option} {text}: {host} stands there twice. Name it once.")
        named[host] = sorted({*slots})
    return named


def count(hosts: Mapping[str, Sequence[int]]) -> int:
    """Return how many ranks there are."""
    return sum(map(len, hosts.values()))


def hosts_text(hosts: Mapping[str, Sequence[int]]) -> str:
    """Return the hosts and how many slots each has, in words."""
    return ", ".join(f"{host} {len(slots)}" for host, slots in hosts.items())


def check_reachable(hosts: Sequence[str], ssh: Sequence[str] = SSH) -> None:
    """Ask every host for an answer over ssh, without a password, all of them at once.

    Raises:
        BackendError: names each that gave none, and what ssh said.
    """

    def asked(host: str) -> str | None:
        done = subprocess.run(
            [*ssh, host, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return f"{host} does not answer over ssh: {lines[-1]}" if done.returncode else None

    with ThreadPoolExecutor(min(len(hosts), 64)) as pool:
        problems = [problem for problem in pool.map(asked, hosts) if problem]
    if problems:
        raise BackendError(
            "\n".join(problems) + "\nMend it (ssh NAME true must work without a password), or "
            "leave the host out with --exclude. No rank was started."
        )
