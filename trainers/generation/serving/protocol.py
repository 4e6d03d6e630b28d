"""What the trainer and a generation worker agree on: names, and the file that carries weights.

Both sides import this file, the worker in an environment without our other packages: standard
library only.

    GET  /status                       which engine, model, session and policy version is here
    POST /open      JSON               describe the model; the engine is built, or is that one
    POST /weights   bytes, or a path   the weights of one policy version, as a weights file
    POST /generate  JSON               responses as lines of JSON, one per finished request
    POST /sleep                        give memory back until the next weights

A weights file is written as the tensors come, one after another, and is whole only with its last
record, so that half of one is never loaded:

    MAGIC | size header bytes | size header bytes | ... | size last
    size: 4 bytes, big-endian, of the header;  header: JSON {"name", "dtype", "shape", "bytes"}
    last: JSON {"count", "version"}, and then the end of the file
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

PROTOCOL = 1
"""Version of all that is written here; a worker of another one is refused."""
SESSION_HEADER = "X-Session"
VERSION_HEADER = "X-Policy-Version"
PATH_HEADER = "X-Weights-Path"
TOKEN_VARIABLE = "LLMGYM_WORKER_TOKEN"
"""Environment variable with the secret that every request must carry, where it is set."""
MAGIC = b"llmgym weights 1\n"
_SIZE = 4


class WeightsError(ValueError):
    """Raised when a weights file is not whole, or is of another policy version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One tensor of a weights file.

    Attributes:
        dtype: as torch names it, without the prefix: `bfloat16`.
        offset: where its bytes begin in the file.
        size: of them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def write_header(file: BinaryIO, header: dict[str, Any]) -> None:
    """Append a header to a weights file."""
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(_SIZE, "big") + text)


def read_records(path: Path, version: int) -> list[Record]:
    """Return the tensors of a weights file, in its order; no tensor is read.

    Args:
        path: the file.
        version: policy version that it must be of.

    Raises:
        WeightsError: it is cut, damaged or of another version.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise WeightsError(f"{path} is no weights file")
        headers = _headers(file, size)
        records = []
        for header in headers:
            if "count" in header:
                return _finished(records, header, version, is_end=file.tell() == size)
            start = file.tell()
            records.append(
                Record(
                    name=header["name"],
                    dtype=header["dtype"],
                    shape=tuple(header["shape"]),
                    offset=start,
                    size=header["bytes"],
                )
            )
            file.seek(start + header["bytes"])
    raise WeightsError(f"the weights of version {version} are cut after {len(records)} tensors")


def _headers(file: BinaryIO, size: int) -> Iterator[dict[str, Any]]:
    while file.tell() < size:
        length = int.from_bytes(file.read(_SIZE), "big")
        text = file.read(length)
        if len(text) < length:
            return
        try:
            yield json.loads(text)
        except ValueError as error:
            raise WeightsError(f"the weights are damaged before byte {file.tell()}") from error


def _finished(
    records: list[Record], last: dict[str, Any], version: int, *, is_end: bool
) -> list[Record]:
    if last["version"] != version:
        raise WeightsError(
            f"the weights are of policy version {last['version']}, and {version} was announced"
        )
    if last["count"] != len(records) or not is_end:
        raise WeightsError(
            f"the weights of version {version} hold {len(records)} tensors, and {last['count']} "
            "were written"
        )
    return records
