"""What is known on this machine of the servers that `llmgym serve` started: address, token, log.

A file per port, which its user alone reads. `bench --endpoint` finds the token there, and how a
server ended. No torch.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import final
from urllib.parse import urlsplit

from trainers.errors import ConfigError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFile:
    """What `serve` writes.

    Attributes:
        url: of the API, ending in /v1.
        engine: that serves.
        model: as requests name it.
        token: that requests carry; None where the engine asks for none.
        pid: of the server.
        log: what it prints.
        exit_code: of a server that ended by itself.
    """

    url: str
    engine: str
    model: str
    token: str | None
    pid: int
    log: str
    exit_code: int | None = None


def endpoint_folder() -> Path:
    """Return the folder of the files, which its user alone reads."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(cache) / "llmgym" / "endpoints"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def endpoint_path(port: int) -> Path:
    """Return the file of a port."""
    return endpoint_folder() / f"{port}.json"


def write_endpoint(port: int, endpoint: EndpointFile) -> Path:
    """Write the file of a port, never readable by others; return it."""
    path = endpoint_path(port)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(asdict(endpoint), stream)
    draft.replace(path)
    return path


def read_endpoint(url: str) -> EndpointFile | None:
    """Return what is known of an address of this machine, None where nothing is.

    Raises:
        ConfigError: the file is damaged, or others can read its token.
    """
    parts = urlsplit(url)
    path = endpoint_path(parts.port or 80)
    if parts.hostname not in LOCAL_HOSTS or not path.is_file():
        return None
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"others can read {path}, which holds a token: chmod 600 {path}")
    try:
        return EndpointFile(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}. Delete it, and start the server."
        ) from error


def note_end(port: int, exit_code: int) -> None:
    """Write how a server ended."""
    endpoint = read_endpoint(f"http://127.0.0.1:{port}")
    if endpoint is not None:
        write_endpoint(port, replace(endpoint, token=None, exit_code=exit_code))


def log_tail(log: str, lines: int = 12) -> str:
    """Return the last lines of a log, and where all of them are."""
    path = Path(log)
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    return "\n".join([*text.splitlines()[-lines:], f"(all that it printed: {log})"])
