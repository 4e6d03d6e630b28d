"""`llmgym doctor`: what this machine has, one line each, with the fix for what it lacks."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro

NEEDED = ("numpy", "gymnasium", "tyro", "pydantic", "PyYAML", "rich")
TRAINING = (
    "torch", "transformers", "safetensors", "tokenizers", "scipy", "matplotlib", "jaxtyping",
    "wandb",
)  # fmt: skip
MIN_DISK_GB = 5.0
MIN_MEMORY_GB = 2.0


@dataclass(frozen=True)
class Options:
    """Print what this machine has for training, and the fix for what it lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, what was found, and what to do if that is not enough."""

    name: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"  -> {self.fix}" if self.fix else ""
        return f"{'fix' if self.fix else 'ok':<4} {self.name:<10} {self.found}{fix}"


def versions(names: Sequence[str]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def python() -> Iterator[Finding]:
    """Look at the interpreter."""
    fix = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer"
    yield Finding(name="Python", found=f"{platform.python_version()} ({sys.executable})", fix=fix)


def packages() -> Iterator[Finding]:
    """Look at installed packages."""
    for name, group, extra in (("packages", NEEDED, ""), ("training", TRAINING, "[train]")):
        found = versions(group)
        missing = [one for one, version in found.items() if version is None]
        said = ", ".join(f"{one} {version or 'missing'}" for one, version in found.items())
        fix = f'pip install "llmgym-rl{extra}"' if missing else ""
        yield Finding(name=name, found=said, fix=fix)


def torch() -> Iterator[Finding]:
    """Look at threads and GPUs."""
    if find_spec("torch") is None:
        return
    import torch as library

    cores, threads = os.cpu_count() or 1, library.get_num_threads()
    fix = f"OMP_NUM_THREADS={cores}" if threads > cores else ""
    yield Finding(name="CPU", found=f"{cores} cores, torch uses {threads} threads", fix=fix)
    if library.cuda.is_available():
        names = [library.cuda.get_device_name(i) for i in range(library.cuda.device_count())]
        yield Finding(name="CUDA", found=f"{library.version.cuda}: {', '.join(names)}")
    else:
        yield Finding(name="CUDA", found="none, training runs on the CPU")


def machine() -> Iterator[Finding]:
    """Look at compiler, disk and memory."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    yield Finding(name="compiler", found=compiler or "none, needed for torch.compile only")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    fix = "" if free > MIN_DISK_GB else "free some, or choose another disk: --run.dir DIR"
    yield Finding(name="disk", found=f"{free:.1f} GiB free in {Path.cwd()}", fix=fix)
    file = Path("/proc/meminfo")
    if file.exists():
        rows = dict(line.split(":", 1) for line in file.read_text("ascii").splitlines())
        available = int(rows["MemAvailable"].split()[0]) / 2**20
        fix = "" if available > MIN_MEMORY_GB else "close programs, or lower ppo.num_prompts"
        yield Finding(name="memory", found=f"{available:.1f} GiB available", fix=fix)


def services() -> Iterator[Finding]:
    """Look at W&B, the hub and the data folder; nothing is sent."""
    from trainers.loggers.wandb import has_credentials

    state = "logged in" if has_credentials() else "not logged in: runs are kept offline"
    set_mode = os.environ.get("WANDB_MODE")
    said = f"{state}{f', WANDB_MODE={set_mode}' if set_mode else ''}"
    lacks = set_mode == "online" and not has_credentials()
    yield Finding(name="W&B", found=said, fix="wandb login" if lacks else "")
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    said = "HF_HUB_OFFLINE is set: models come from folders and the cache" if offline else "online"
    yield Finding(name="hub", found=said)
    folder = os.environ.get("LLMGYM_DATA")
    if folder is None:
        yield Finding(name="data", found="LLMGYM_DATA is not set, needed for tests of real data")
    else:
        fix = "" if Path(folder).is_dir() else "set LLMGYM_DATA to a folder that exists"
        yield Finding(name="data", found=f"LLMGYM_DATA={folder}", fix=fix)


PARTS: tuple[Callable[[], Iterator[Finding]], ...] = (python, packages, torch, machine, services)


def main(argv: Sequence[str]) -> int:
    """Print every finding; 1 if something has to be fixed."""
    tyro.cli(Options, args=argv, prog="llmgym doctor")
    findings = [finding for part in PARTS for finding in part()]
    for finding in findings:
        print(finding)
    return 1 if any(finding.fix for finding in findings) else 0
