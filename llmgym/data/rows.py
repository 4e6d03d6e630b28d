"""Turns the rows of a table into tasks: which column is what, labels, content hashes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from numbers import Number
from pathlib import Path
from typing import Any, Literal, get_args

from llmgym.content import (
    LastAssistant,
    cell_of,
    gold_of,
    has_column,
    no_column,
    options,
    prompt_of,
)
from llmgym.data.files import Row, place_of
from llmgym.errors import TaskSourceError
from llmgym.messages import Message, Task

MultiLabel = Literal["first", "drop", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column of a table is what; a dotted name reaches into mappings (`cell_of`).

    Attributes:
        prompt: the column of prompts: text, or a list of messages.
        answer: the column that becomes `Task.answer`; None for none.
        solution: the column that becomes `Task.solution`, a perfect response; None for none.
        names: the columns of a CSV or TSV file without a header line; None reads the header.
        label: a column of label ids, turned into names by `labels`; None for none.
        labels: a file of label names, one a line; line 1 names id 0. None: `labels.txt` beside a
            data file that is read with a `label`, where there is one.
        multi_label: what a row with several labels becomes: its "first", nothing ("drop"),
            or the tuple of "all".
        last_assistant: what messages are that end with the assistant: an error ("raise"), a prompt
            and its answer, which is `Task.answer` and `Task.solution` where no column is ("split"),
            or a prompt whose response has begun ("prefill").
        format: what the rows were written for; `formats.py` reads them. "auto": told by the rows.
    """

    prompt: str = "prompt"
    answer: str | None = None
    solution: str | None = None
    names: tuple[str, ...] | None = None
    label: str | None = None
    labels: str | None = None
    multi_label: MultiLabel = "first"
    last_assistant: LastAssistant = "raise"
    format: str = "auto"

    def __post_init__(self) -> None:
        """Refuse a choice that is none."""
        for name, kinds in (("multi_label", MultiLabel), ("last_assistant", LastAssistant)):
            value, known = getattr(self, name), get_args(kinds)
            if value not in known:
                raise TaskSourceError(f"{name} is one of {', '.join(known)}; got {value!r}")


def task_id(prompt: str | Sequence[Message]) -> str:
    """Return the content hash of a prompt: equal prompts are one task, on every machine."""
    content = prompt if isinstance(prompt, str) else [message.as_dict() for message in prompt]
    return sha256(dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def tasks_of(table: Sequence[Row], columns: Columns, source: str) -> tuple[Task, ...]:
    """Turn the numbered rows of a table into tasks; every column but the prompt's is its `meta`.

    Raises:
        TaskSourceError: no rows, a missing column, or a row without its prompt; names the row.
    """
    if not table:
        raise TaskSourceError(f"{source} has no rows; give it at least one")
    for name in (columns.prompt, columns.answer, columns.solution, columns.label):
        _check_column(name, table, columns, source)
    names = label_names(columns.labels)
    made = [_task(number, row, columns, source, names) for number, row in table]
    tasks = tuple(task for task in made if task is not None)
    if not tasks:
        raise TaskSourceError(f"{source} has no row with a single label, and multi_label is drop")
    return tasks


def _check_column(name: str | None, table: Sequence[Row], columns: Columns, source: str) -> None:
    if name is None:
        return
    missing = [(number, row) for number, row in table if not has_column(row, name)]
    if not missing:
        return
    number, row = missing[0]
    where = source if len(missing) == len(table) else f"{place_of(source, number)},"
    message = no_column(where, name, row)
    if name == columns.prompt:
        message += f"\nName yours: {options('prompt_column', next(iter(row), 'NAME'))}"
    raise TaskSourceError(message)


def _task(
    number: int, row: Mapping[str, Any], columns: Columns, source: str, names: Sequence[str]
) -> Task | None:
    place, cells = place_of(source, number), dict(row)
    if columns.label is not None:
        labels = labels_of(cell_of(row, columns.label), names, place)
        if columns.multi_label == "drop" and len(labels) != 1:
            return None
        cells[columns.label] = labels if columns.multi_label == "all" else labels[0]
    where = f'{place}, column "{columns.prompt}"'
    prompt, split = prompt_of(cell_of(row, columns.prompt), where, columns.last_assistant)
    answer = split if columns.answer is None else _gold(cells, columns.answer, place)
    solution = split
    if columns.solution is not None and cell_of(cells, columns.solution) is not None:
        solution = str(_gold(cells, columns.solution, place))
    cells.pop(columns.prompt, None)
    return Task(
        id=task_id(prompt),
        prompt=prompt,
        answer=answer,
        solution=solution,
        source=source,
        meta=cells,
        place=place,
    )


def _gold(cells: Mapping[str, Any], column: str, place: str) -> str | Number:
    return gold_of(cell_of(cells, column), column, place)


def label_names(path: str | None) -> tuple[str, ...]:
    """Return the lines of a file of label names; none where there is no file.

    Raises:
        TaskSourceError: it does not exist.
    """
    if path is None:
        return ()
    if not Path(path).is_file():
        raise TaskSourceError(f"no file {path} with the label names, one a line")
    return tuple(Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n"))


def labels_beside(path: Path) -> str | None:
    """Return the file of label names next to a data file, or None."""
    labels = path.parent / "labels.txt"
    return str(labels) if labels.is_file() else None


def labels_of(value: Any, names: Sequence[str], where: str) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the labels of a cell: one or several ids, as names where there are names.

    Args:
        value: an id, a comma-separated text or a list of ids.
        names: id 0's first; empty leaves the ids.
        where: names the cell.

    Raises:
        TaskSourceError: there is no label, or one that has no name.
    """
    cells = value.split(",") if isinstance(value, str) else value
    cells = tuple(cells) if isinstance(cells, Sequence) else (cells,)
    if not cells:
        raise TaskSourceError(f"{where} has no label, got {value!r}")
    if not names:
        return cells
    ids = [str(cell).strip() for cell in cells]
    if not all(label.isdecimal() and int(label) < len(names) for label in ids):
        last = len(names) - 1
        message = f"{where}: label {value!r} is not an id in [0, {last}] of the labels file"
        raise TaskSourceError(message)
    return tuple(names[int(label)].strip() for label in ids)
