"""`llmgym doctor`: what this machine has, a line each: ok, warn or fail, with the remedy."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse
from urllib.request import getproxies

from llmgym.plural import counted
from trainers.backends.zero.builds import stale_locks
from trainers.cli.options import parse_options
from trainers.generation.serving.process import INSTALLED, PYTHON_VARIABLE
from trainers.loggers.credentials import has_credentials

DISTRIBUTION = "llmgym-rl"
OPTIONAL = ("deepspeed", "peft", "data", "math")
MIN_DISK_GB = 5.0
MIN_MEMORY_GB = 2.0
HUB_SECONDS = 3.0
"""How long the hub is waited for."""
REQUIREMENT = re.compile(r"([\w.-]+)\s*([^;\[]*)(?:\[.*\])?(?:;.*extra\s*==\s*['\"]([\w-]+)['\"])?")
BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([\d.]+)")


@dataclass(frozen=True)
class Options:
    """Print what this machine has, a line each, with the remedy; exit code 1 if a line fails."""

    json: bool = False
    """Print one JSON list instead of lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line.

    Attributes:
        status: "ok"; "warn", something works less well; "fail", a run would not start.
        remedy: what to do about it; empty where nothing is to be done.
    """

    name: str
    detail: str
    status: Literal["ok", "warn", "fail"] = "ok"
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"  -> {self.remedy}" if self.remedy else ""
        return f"{self.status:<5}{self.name:<10} {self.detail}{remedy}"

    def as_dict(self) -> dict[str, str]:
        """Return the object of --json, whose keys stay as scripts read them."""
        status, remedy = self.status, self.remedy
        return {"name": self.name, "found": self.detail, "status": status, "remedy": remedy}


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version starts with: "2.13.0+cpu" is (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def fits(version: str, requirement: str) -> bool:
    """Tell whether a version is in a range such as ">=1.1,<2"."""
    mine = numbers(version)
    for sign, bound in BOUND.findall(requirement):
        limit = numbers(bound)
        width = max(len(mine), len(limit))
        left, right = (
            numbers_of + (0,) * (width - len(numbers_of)) for numbers_of in (mine, limit)
        )
        order = (left > right) - (left < right)
        allowed = {">=": (0, 1), "<=": (-1, 0), "==": (0,), "!=": (-1, 1), "<": (-1,), ">": (1,)}
        if order not in allowed[sign]:
            return False
    return True


def requirements() -> dict[str, list[tuple[str, str]]]:
    """Return (name, range) of every requirement, by extra; "" is what is always needed."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        match = REQUIREMENT.match(line)
        assert match is not None, line
        groups.setdefault(match[3] or "", []).append((match[1], match[2].strip()))
    return groups


def version_of(name: str) -> str | None:
    """Return the installed version of a distribution, None where it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> Iterator[Finding]:
    """Look at the interpreter."""
    yield Finding(name="Python", detail=f"{platform.python_version()} ({sys.executable})")


def packages() -> Iterator[Finding]:
    """Look at versions against the ranges of this distribution."""
    try:
        groups = requirements()
    except importlib.metadata.PackageNotFoundError:
        state = f"{DISTRIBUTION} is not installed, so no versions are known to compare with"
        yield Finding(name="packages", detail=state, status="warn", remedy="pip install -e .")
        return
    yield _group("packages", groups.get("", []), "", missing="fail")
    yield _group("training", groups.get("train", []), "[train]", missing="warn")
    for extra in OPTIONAL:
        yield _group(f"[{extra}]", groups.get(extra, []), f"[{extra}]", missing="ok")
    python = Path(os.environ.get(PYTHON_VARIABLE, INSTALLED))
    state = str(python) if python.is_file() else "no environment (make engines), optional"
    yield Finding(name="vllm", detail=state)


def _group(
    name: str,
    limits_of: Sequence[tuple[str, str]],
    extra: str,
    *,
    missing: Literal["ok", "warn", "fail"],
) -> Finding:
    if not limits_of:
        state = "unknown to what is installed here"
        return Finding(name=name, detail=state, status="warn", remedy="pip install -e . once more")
    have = {package: version_of(package) for package, _ in limits_of}
    absent = [package for package, version in have.items() if version is None]
    outside = [
        f"{package} {have[package]} is not {limits}"
        for package, limits in limits_of
        if not fits(have[package] or "", limits) and package not in absent
    ]
    versions = ", ".join(
        outside or [f"{package} {version or 'missing'}" for package, version in have.items()]
    )
    if outside or absent:
        status = "fail" if outside else missing
        remedy = f'pip install "{DISTRIBUTION}{extra}"'
        return Finding(name=name, detail=versions, status=status, remedy=remedy)
    return Finding(name=name, detail=versions)


def compute() -> Iterator[Finding]:
    """Look at cores, threads and accelerators; torch is imported only where it is installed."""
    cores = len(os.sched_getaffinity(0))
    if find_spec("torch") is None:
        yield Finding(name="CPU", detail=f"{cores} cores")
        return
    import torch

    threads = torch.get_num_threads()
    remedy = f"OMP_NUM_THREADS={cores}" if threads > cores else ""
    state = f"{cores} cores, torch uses {threads} threads"
    yield Finding(name="CPU", detail=state, status="warn" if remedy else "ok", remedy=remedy)
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        told = ", ".join(f"{card.name} {card.total_memory / 2**30:.0f} GiB" for card in cards)
        yield Finding(name="GPU", detail=f"CUDA {torch.version.cuda}: {told}")
    elif shutil.which("nvidia-smi"):
        state = f"there is a driver, but torch {torch.__version__} sees no GPU"
        remedy = "install the build of torch for its CUDA version, and look at nvidia-smi"
        yield Finding(name="GPU", detail=state, status="warn", remedy=remedy)
    else:
        yield Finding(name="GPU", detail="none, training runs on the CPU")


def compilers() -> Iterator[Finding]:
    """Look at what DeepSpeed's CPU offload and torch.compile build with, and at killed builds."""
    if locks := stale_locks():
        state, remedy = "a killed build lets each start wait", f"rm {' '.join(map(str, locks))}"
        yield Finding(name="builds", detail=state, status="warn", remedy=remedy)
    tools = {"g++": shutil.which("g++") or shutil.which("clang++"), "ninja": shutil.which("ninja")}
    missing = [name for name, path in tools.items() if path is None]
    if not missing:
        yield Finding(name="compiler", detail=", ".join(str(path) for path in tools.values()))
        return
    needed = find_spec("deepspeed") is not None
    state = f"no {' and no '.join(missing)}, needed for CPU offload and torch.compile only"
    remedy = f"install {' and '.join(missing)}"
    yield Finding(
        name="compiler", detail=state, status="warn" if needed else "ok", remedy=remedy * needed
    )


def available_memory() -> int | None:
    """Return the bytes that programs may still take; None where the system does not say."""
    file = Path("/proc/meminfo")
    if not file.exists():
        return None
    rows = dict(line.split(":", 1) for line in file.read_text("ascii").splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def machine() -> Iterator[Finding]:
    """Look at disk, memory, and whether runs can be written here."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    remedy = "" if free > MIN_DISK_GB else "free some, or choose another disk: --run.dir DIR"
    state = f"{free:.1f} GiB free in {Path.cwd()}"
    yield Finding(name="disk", detail=state, status="warn" if remedy else "ok", remedy=remedy)
    room = available_memory()
    if room is not None:
        available = room / 2**30
        remedy = "" if available > MIN_MEMORY_GB else "close programs, or lower ppo.num_prompts"
        state = f"{available:.1f} GiB available"
        yield Finding(name="memory", detail=state, status="warn" if remedy else "ok", remedy=remedy)
    folder = Path("runs") if Path("runs").is_dir() else Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Finding(name="runs", detail=f"{Path.cwd() / 'runs'} can be written")
    except OSError as error:
        state = f"{folder.resolve()} cannot be written: {error.strerror}"
        remedy = "give its owner's permission, or choose another folder: --run.dir DIR"
        yield Finding(name="runs", detail=state, status="fail", remedy=remedy)


def hub() -> Iterator[Finding]:
    """Look at the cache of models, and whether the hub takes a connection; no request is sent."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    models = f"{counted(len(list(cache.glob('models--*'))), 'model')} in {cache}"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        state = f"HF_HUB_OFFLINE is set: models come from folders and the cache, {models}"
        yield Finding(name="hub", detail=state)
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if getproxies().keys() & {"https", "all"}:
        yield Finding(name="hub", detail=f"{endpoint} is behind a proxy, not tried; {models}")
        return
    problem = refused(endpoint)
    if problem:
        state = f"{endpoint} takes no connection ({problem}), {models}"
        remedy = "use models of folders and the cache, at once with HF_HUB_OFFLINE=1"
        yield Finding(name="hub", detail=state, status="warn", remedy=remedy)
    else:
        yield Finding(name="hub", detail=f"{endpoint} takes a connection, {models}")


def refused(url: str) -> str:
    """Return why the host of a URL takes no connection; empty where it does."""
    place = urlparse(url)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), timeout=HUB_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def services() -> Iterator[Finding]:
    """Look at W&B and the data folder; nothing is sent."""
    state = "logged in" if has_credentials() else "not logged in: runs are kept offline"
    set_mode = os.environ.get("WANDB_MODE")
    summary = f"{state}{f', WANDB_MODE={set_mode}' if set_mode else ''}"
    lacks = set_mode == "online" and not has_credentials()
    remedy = "wandb login, or WANDB_MODE=offline" if lacks else ""
    yield Finding(name="W&B", detail=summary, status="fail" if lacks else "ok", remedy=remedy)
    folder = os.environ.get("LLMGYM_DATA")
    if folder is None:
        yield Finding(name="data", detail="LLMGYM_DATA is not set, needed for tests of real data")
    elif Path(folder).is_dir():
        yield Finding(name="data", detail=f"LLMGYM_DATA={folder}")
    else:
        remedy = "set LLMGYM_DATA to a folder that exists"
        detail = f"LLMGYM_DATA={folder} is no folder"
        yield Finding(name="data", detail=detail, status="warn", remedy=remedy)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python, packages, compute, compilers, machine, hub, services,
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Print every finding; 1 if one fails."""
    options: Options = parse_options(Options, argv, "doctor")
    findings = [finding for part in CHECKS for finding in part()]
    if options.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=1))
    else:
        print("\n".join(map(str, findings)))
    return 1 if any(finding.status == "fail" for finding in findings) else 0
