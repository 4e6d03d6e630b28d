"""What can be known about a model's files before they are loaded, and what to say otherwise."""

import difflib
import json
import os
import ssl
import struct
from collections.abc import Iterable
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

from trainers.errors import ConfigError
from trainers.models.gguf import check_gguf, is_gguf

SECONDS = 5
"""That a hub may take to answer."""


def check_model_files(source: str) -> None:
    """Check that a folder holds a configuration and whole safetensors, or a GGUF file is sound.

    A hub id passes.

    Raises:
        ConfigError: it does not, or it is a path and there is no such folder.
    """
    check_exists(source)
    if is_gguf(source):
        check_gguf(source)
    folder = Path(source)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{source} is no model folder: it has no config.json.")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"{source} has no *.safetensors. Weights in other formats can run code when they are "
            "read, so they are refused: load them once with transformers and save_pretrained."
        )
    for file in files:
        _check_header(file)


def check_exists(source: str) -> None:
    """Check that a name which can only be a path is a folder, and that the hub of an id answers.

    Raises:
        ConfigError: there is no such folder; or a model is not in the cache, and no hub is there.
    """
    folder = Path(source)
    if is_gguf(source):
        if not folder.is_file():
            raise ConfigError(f"there is no file {source}.{_did_you_mean(folder)}")
        return
    if not folder.is_dir() and looks_like_path(source):
        raise ConfigError(f"model folder {source} does not exist.{_did_you_mean(folder)}")
    cached = Path(constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}"
    if folder.is_dir() or is_offline() or cached.is_dir():
        return
    why = silence(constants.ENDPOINT)  # else its client tries again and again, for a minute
    if why is not None:
        raise ConfigError(
            f"{source} is neither a folder nor in the local cache, and {constants.ENDPOINT} does "
            f"not answer: {why}. Give a folder, or try again when there is a connection. What is "
            f"in the cache: llmgym doctor.{_did_you_mean(folder)}"
        )


@cache
def silence(address: str) -> str | None:
    """Return why nothing answers at an address, or None; any answer will do. Asked once."""
    try:
        with urlopen(Request(address, method="HEAD"), timeout=SECONDS):
            return None
    except (HTTPError, HTTPException):
        return None
    except OSError as error:
        reason = getattr(error, "reason", error)
        return None if isinstance(reason, ssl.SSLError) else str(reason)


def is_offline() -> bool:
    """Tell whether the hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def looks_like_path(source: str) -> bool:
    """Say whether a name can only be a path: hub ids have one slash at most."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()


def check_weight_names(source: str, *, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse files whose weights are not those of the model; it would learn from random ones.

    Raises:
        ConfigError: names some of them.
    """
    lost, left = sorted(missing), sorted(unexpected)
    if lost or left:
        parts = [("missing or of another shape", lost), ("unknown to its config.json", left)]
        differences = "; ".join(
            f"{', '.join(names[:3])} ({len(names)} {how})" for how, names in parts if names
        )
        raise ConfigError(
            f"the weights of {source} are not those of its model: {differences}. Copy the folder "
            "again, or save it once more from the whole model."
        )


def loading_message(source: str, error: Exception, *, otherwise: str | None = None) -> str:
    """Return one message for what transformers raised about `source`."""
    if Path(source).exists():
        return otherwise or f"{source} does not load: {error}"
    if is_offline():
        return (
            f"{source} is neither a folder nor in the local cache, and HF_HUB_OFFLINE is set. "
            f"Give a folder, or unset it to download.{_did_you_mean(Path(source))}"
        )
    return f"{source} is neither a folder nor a model that could be downloaded: {error}"


def _did_you_mean(folder: Path) -> str:
    parent = folder.parent
    listed = parent.iterdir() if parent.is_dir() else ()
    siblings = [file.name for file in listed if file.is_dir() or is_gguf(file.name)]
    close = difflib.get_close_matches(folder.name, siblings, n=1)
    return f" Did you mean {parent / close[0]}?" if close else ""


def _check_header(file: Path) -> None:
    """Compare a safetensors header (8 bytes of length, then JSON) with the file's size."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise ConfigError(f"{file} is damaged: its header is cut off. Copy it again.")
        try:
            entries = json.loads(handle.read(length))
        except ValueError as error:
            raise ConfigError(f"{file} is damaged: its header is not JSON.") from error
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ConfigError(
            f"{file} is damaged: it has {size} bytes where its header names "
            f"{8 + length + max(ends, default=0)}. Copy it again."
        )
