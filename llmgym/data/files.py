"""Reads the rows of a data file: JSONL, Parquet, CSV or TSV, by the suffix."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llmgym.content import names_of, whole_text
from llmgym.errors import MissingExtraError, TaskSourceError

Row = tuple[int, Mapping[str, Any]]
"""A line's number, the first being 1, and its cells by column name."""


def read_table(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Read the rows of `path` with their line numbers (Parquet: row numbers).

    Args:
        path: a .jsonl, .parquet, .csv or .tsv file.
        columns: the column names of a CSV or TSV file without a header line.

    Raises:
        TaskSourceError: no such file, an unknown suffix, an empty file, or a broken line.
    """
    check_file(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = " ".join(READERS)
        raise TaskSourceError(f'{path} ends in "{path.suffix}"; a data file ends in one of {known}')
    if columns is not None and reader not in (_csv, _tsv):
        raise TaskSourceError(f"{path} names its own columns; only CSV and TSV files take them")
    try:
        rows = reader(path, columns)
    except UnicodeDecodeError as error:
        raise TaskSourceError(_not_text(path)) from error
    if not rows:
        raise TaskSourceError(f"{path} has no rows; give it at least one")
    return rows


def place_of(source: str | Path, number: int) -> str:
    """Return how a row of a source is named: "p.jsonl, line 3"; of other sources its row."""
    is_text = Path(source).suffix.lower() in (".jsonl", ".csv", ".tsv")
    return f"{source}, {'line' if is_text else 'row'} {number}"


def _not_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:  # again, of the whole file: only so its place is known
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        return (
            f"{path}, line {line} is not UTF-8 text: byte 0x{byte:02x} ({error.reason}). If it is "
            f"Latin-1, convert it:\niconv -f LATIN1 -t UTF-8 {path} > utf8{path.suffix}"
        )
    return f"{path} changed while it was read; run again"


def check_file(path: Path) -> None:
    """Refuse a file that is not there; names the one that was perhaps meant.

    Raises:
        TaskSourceError: there is no such file.
    """
    if path.is_file():
        return
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {folder / near[0]}?" if near else ""
    raise TaskSourceError(f"no file {path}, looked for from {Path.cwd()}.{hint}")


def _jsonl(path: Path, columns: Sequence[str] | None) -> list[Row]:
    del columns
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append((number, _json_row(line, f"{path}, line {number}")))
    return rows


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskSourceError(f"{where} is not JSON: {error}. It reads {line!r:.60}") from error
    if not isinstance(row, dict):
        raise TaskSourceError(f"{where} must be a JSON object by column name, got {line!r:.60}")
    if "\\ud" in line.lower():  # JSON may spell half a character; no other format can
        for name, cell in row.items():
            spelled = name + json.dumps(cell, ensure_ascii=False)
            whole_text(spelled, f'{where}, column "{ascii(name)[1:-1]}"')
    return row


def _csv(path: Path, columns: Sequence[str] | None) -> list[Row]:
    return _separated(path, columns, {"delimiter": ",", "strict": True})


def _tsv(path: Path, columns: Sequence[str] | None) -> list[Row]:
    # No quoting: a tab ends a cell and a newline a row; a quotation mark is text.
    return _separated(path, columns, {"delimiter": "\t", "quoting": csv.QUOTE_NONE})


def _separated(path: Path, columns: Sequence[str] | None, dialect: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, **dialect)
        names = columns
        try:
            for cells in reader:
                if not cells:
                    continue
                if names is None:
                    names = _header(path, cells)
                    continue
                if len(cells) != len(names):
                    raise TaskSourceError(_uneven(path, reader.line_num, cells, names))
                rows.append((reader.line_num, dict(zip(names, cells, strict=True))))
        except csv.Error as error:
            hint = "" if "field larger" not in str(error) else (
                ". Close its quotation mark; a cell that is that long goes into a .jsonl file"
            )  # fmt: skip
            raise TaskSourceError(f"{path}, line {reader.line_num}: {error}{hint}") from error
    return rows


def _header(path: Path, cells: list[str]) -> list[str]:
    name, count = Counter(cells).most_common(1)[0]
    if count > 1:
        raise TaskSourceError(f'{path} has two columns "{name}"; rename one of them')
    return cells


def _uneven(path: Path, line: int, cells: Sequence[str], names: Sequence[str]) -> str:
    preview = " | ".join(cell[:20] for cell in cells)
    return (
        f"{path}, line {line} has {len(cells)} cells for {len(names)} columns "
        f"({names_of(dict.fromkeys(names))}): {preview:.80}\nQuote the cells, or name the columns "
        "of a file without a header line with --data.columns."
    )


def _parquet(path: Path, columns: Sequence[str] | None) -> list[Row]:
    del columns
    try:
        import pyarrow.lib  # noqa: PLC0415 - only Parquet files need it
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        message = f'reading {path} needs pyarrow: pip install "llmgym-rl[data]"'
        raise MissingExtraError(message) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise TaskSourceError(f"{path} is not a Parquet file: {error}") from error
    return list(enumerate(table.to_pylist(), start=1))


READERS: dict[str, Callable[[Path, Sequence[str] | None], list[Row]]] = {
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _tsv,
}
