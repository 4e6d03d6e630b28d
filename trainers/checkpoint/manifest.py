"""What makes a folder a checkpoint of ours: its name, and a manifest that fits every byte of it."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

Files = Mapping[str, Sequence[Any]]
"""Name -> [size in bytes, SHA-256]."""

FORMAT = "llmgym-checkpoint-2"
MANIFEST = "manifest.json"
CHECKPOINT_NAME = re.compile(r"([a-z_]+)_(\d+)(\.replaced)?")
"""Prefix, number, and whether one of the same name came after it."""


def published(folder: Path, prefix: str | None = None) -> list[Path]:
    """Return the folders named as checkpoints, drafts and trash left out."""
    if not folder.is_dir():
        return []
    named = [(path, CHECKPOINT_NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [path for path, match in named if match and prefix in (None, match[1]) and path.is_dir()]


def write_manifest(draft: Path, body: Mapping[str, Any]) -> None:
    """Write the manifest, which makes a folder a checkpoint, and make it durable."""
    numbers = [sequence_of(path) for path in published(draft.parent)]
    sequence = 1 + max((int(number) for number in numbers if number < math.inf), default=0)
    (draft / MANIFEST).write_text(_text({**body, "sequence": sequence}), "ascii")
    fsync(draft / MANIFEST)
    fsync(draft)


def outline(path: Path) -> tuple[Files, str | None]:
    """Return a checkpoint's files, and what is wrong as far as names and sizes tell."""
    if not path.is_dir():
        return {}, "no such folder"
    manifest = read_manifest(path)
    if manifest is None:
        return {}, f"it has no valid {MANIFEST}"
    files: Files = manifest["files"]
    there = {entry.name for entry in path.iterdir()} - {MANIFEST}
    for file in sorted(there ^ files.keys()):
        return files, f"{file} is {'not of it' if file in there else 'missing'}"
    for file, (size, _) in files.items():
        if (path / file).stat().st_size != size:
            return files, f"{file} has {(path / file).stat().st_size} bytes, not {size}"
    return files, None


def damage(path: Path, file: str, digest: str) -> str | None:
    """Return what is wrong with the bytes of a checkpoint's file; it is read whole."""
    try:
        is_whole = fingerprint(path / file)[1] == digest
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    return None if is_whole else f"{file} is damaged: its SHA-256 differs"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a folder's manifest, None unless every byte of it is as we wrote it."""
    try:
        text = (path / MANIFEST).read_text("ascii")
        body = json.loads(text)
    except (OSError, ValueError):
        return None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        return None
    digest = body.pop("sha256", None)
    return body if text == _text(body) and digest == _digest(body) else None


def sequence_of(path: Path) -> float:
    """Return which save this was; a folder without a manifest counts as the newest."""
    manifest = read_manifest(path)
    return math.inf if manifest is None else manifest["sequence"]


def checkpoint_size(path: Path) -> int:
    """Return the bytes of a checkpoint's files, 0 without a manifest."""
    manifest = read_manifest(path)
    return sum(size for size, _ in manifest["files"].values()) if manifest else 0


def fingerprint(file: Path) -> list[Any]:
    """Return [size in bytes, SHA-256] of a file."""
    with file.open("rb") as stream:
        return [file.stat().st_size, file_digest(stream, "sha256").hexdigest()]


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps({**body, "sha256": _digest(body)}, indent=1, sort_keys=True) + "\n"


def _digest(body: Mapping[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
