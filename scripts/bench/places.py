"""Where sides live: virtual environments from pinned requirements, and the commit of the ratios.

Made on demand below runs/bench and kept; a changed requirements file makes its environment anew.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path

from scripts.bench.shapes import Model

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "bench"
REQUIREMENTS = Path(__file__).parent / "requirements"
COMMIT = "9157903"
"""What ratios to an earlier state of this project are taken against."""
HERE, THEN, VLLM = "here", "then", "vllm"
PRODUCT = ("llmgym", "trainers")


class AbsentError(RuntimeError):
    """Raised where a side cannot run on this machine: its row is skipped, with this reason."""


def interpreter(place: str) -> str:
    """Return the Python of an environment, made first where it is not there.

    Args:
        place: `here` and `then` share the environment of this process; else the name of a
            requirements file.

    Raises:
        AbsentError: its packages cannot be installed.
    """
    if place in (HERE, THEN):
        return sys.executable
    if place == VLLM:
        return _vllm()
    listed = REQUIREMENTS / f"{place}.txt"
    if not listed.is_file():
        raise AbsentError(f"there is no {listed.relative_to(ROOT)}")
    folder = KEPT / "envs" / place
    stamp, digest = folder / ".made-from", hashlib.sha256(listed.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text(encoding="ascii") == digest:
        return str(python)
    print(f"making the environment {folder}", file=sys.stderr)
    if folder.exists():
        shutil.rmtree(folder)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(listed)]
    done = subprocess.run(install, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise AbsentError(f"pip cannot install {listed.name}: {done.stderr.strip()[-300:]}")
    stamp.write_text(digest, encoding="ascii")
    return str(python)


def _vllm() -> str:
    installed = ROOT / ".engines" / "vllm" / "bin" / "python"
    python = os.environ.get("LLMGYM_VLLM_PYTHON", str(installed))
    if not Path(python).is_file():
        raise AbsentError(f"there is no {python}: make engines, or set LLMGYM_VLLM_PYTHON")
    return python


def tree(place: str) -> Path:
    """Return the folder whose packages a side imports: this one, or that of the former commit.

    Raises:
        AbsentError: the repository does not hold that commit.
    """
    if place != THEN:
        return ROOT
    folder = KEPT / "trees" / COMMIT
    if folder.is_dir():
        return folder
    with tempfile.TemporaryFile() as archive:
        command = ["git", "archive", COMMIT, *PRODUCT, "configs"]
        if subprocess.run(command, cwd=ROOT, stdout=archive, check=False).returncode:
            raise AbsentError(f"this clone has no commit {COMMIT}: git fetch --unshallow")
        archive.seek(0)
        with tarfile.open(fileobj=archive) as opened:
            opened.extractall(folder, filter="data")
    return folder


def model_folder(model: Model) -> Path:
    """Return the folder of a model, made with random weights where it is not there.

    Raises:
        AbsentError: it is one that exists elsewhere, and is not here.
    """
    if model.path:
        if not (ROOT / model.path).is_dir():
            raise AbsentError(f"there is no {model.path}: make {Path(model.path).name}")
        return ROOT / model.path
    folder = KEPT / "models" / model.name
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "scripts.bench.models", str(folder)]
        subprocess.run([*command, json.dumps(asdict(model))], cwd=ROOT, check=True)
    return folder


def product_digest() -> str:
    """Return 12 digits of the SHA-256 of this tree's product: what a record of it is of."""
    digest = hashlib.sha256()
    for top in PRODUCT:
        for path in sorted((ROOT / top).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
