"""What a data file holds, and what is wrong with it, before anything is trained on it.

`llmgym data check` shows it. Lengths in tokens need a tokenizer and are the command's own work.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.content import LastAssistant, Prompt, cell_of, gold_of, has_column, no_column, prompt_of
from llmgym.data.files import READERS, Row, place_of, read_table
from llmgym.data.formats import Table, formatted
from llmgym.data.rows import task_id
from llmgym.errors import TaskSourceError
from llmgym.plural import counted

MANGLED = re.compile("\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\ufffd")
"""Text that was decoded wrongly: UTF-8 read as Latin-1, or a replacement character."""
LONGEST_NAME = 30
"""A longer column name is rather a cell of a file without a header line."""
FEW = 20
"""With fewer rows a tenth, which is held out, is one row, whose score says nothing."""
ANSWERS = ("answer", "response", "completion", "solution")
"""Columns that are taken for what the rows are answered with, in this order."""
PERCENTILES = (0, 50, 95, 100)
MAX_COLUMNS = 50
"""Columns whose lengths are looked at, the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a file holds.

    Attributes:
        format: what the rows were written for, and what shows it.
        columns: names, in the order of the file, and behind them those that its format gives.
        prompts: of every row that has one, by line.
        answers: the text of the answer column, or what `last_assistant` split off, by line.
        answer_column: the name of that column, or None.
        is_text: whether all answers are text, which a model can learn to write.
        lengths: least, median, 95th percentile and most characters of each column.
        errors: what stops a run or makes its figures meaningless, one line each.
        warnings: what is odd.
    """

    path: Path
    num_rows: int
    format: str
    columns: tuple[str, ...]
    prompt_column: str
    answer_column: str | None
    is_text: bool
    prompts: Mapping[int, Prompt]
    answers: Mapping[int, str]
    lengths: Mapping[str, tuple[int, ...]]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def surveyed(
    path: Path,
    *,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    names: Sequence[str] | None = None,
    last_assistant: LastAssistant = "raise",
    format: str = "auto",
) -> Survey:
    """Read a data file and look at every row.

    Args:
        path: a .jsonl, .parquet, .csv or .tsv file.
        prompt_column: the column of prompts.
        answer_column: the column of answers; None takes the first of `ANSWERS` that is there.
        names: the column names of a CSV or TSV file without a header line.
        last_assistant: what messages are that end with the assistant; see `llmgym/content.py`.
        format: what the rows were written for; see `llmgym/data/formats.py`.

    Raises:
        TaskSourceError: the file cannot be read as a table, or a row is not of its format; names
            the line.
    """
    raw = read_table(path, names)
    looked = _Looked(path, names, prompt_column, last_assistant, format)
    read = looked.formatted(raw, path)
    table = read.rows
    columns = tuple(dict.fromkeys(name for _, row in table for name in row))
    prompts, split, bad = looked.prompts(table)
    answer = answer_column or (None if split else _guessed(columns, prompt_column))
    golds, odd = _golds(table, path, answer)
    if odd and answer_column is None:  # a column of that name may be for a function alone
        answer, golds = None, {}
    texts = split if answer is None else {number: _text(gold) for number, gold in golds.items()}
    needed = [prompt_column] if answer is None else [prompt_column, answer]
    errors = [
        *_columns_missing(table, path, needed),
        *bad,
        *(odd if answer is not None else ()),
        *_empty(texts, path, answer),
        *looked.overlap(prompts),
    ]
    warnings = [*few(len(raw)), *_repeated(prompts, texts), *_mangled(table)]
    warnings += _headless(columns, path, names)
    warnings += [f"{warning} It is not taken for the answer." for warning in odd if answer is None]
    measured = dict.fromkeys((*columns[:MAX_COLUMNS], *needed))
    return Survey(
        path=path,
        num_rows=len(raw),
        format=read.told,
        columns=columns,
        prompt_column=prompt_column,
        answer_column=answer if golds else None,
        is_text=bool(texts) and all(isinstance(gold, str) for gold in golds.values()),
        prompts=prompts,
        answers=texts,
        lengths={name: made for name in measured if (made := _lengths(table, name))},
        errors=(*errors,),
        warnings=(*warnings,),
    )


def _guessed(columns: Sequence[str], prompt_column: str) -> str | None:
    """Return the column that is taken for the answers; None where there is none."""
    return next((name for name in ANSWERS if name in columns and name != prompt_column), None)


def percentiles(lengths: Sequence[int]) -> tuple[int, ...]:
    """Return the least, the median, the 95th percentile and the most of some lengths."""
    return tuple(int(length) for length in np.percentile(lengths, PERCENTILES, method="higher"))


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _lengths(table: Sequence[Row], name: str) -> tuple[int, ...]:
    cells = [cell_of(row, name) for _, row in table if has_column(row, name)]
    return percentiles([len(_text(cell)) for cell in cells]) if cells else ()


def few(number: int) -> list[str]:
    """Return a sentence where there are too few rows to learn from and to score."""
    if number >= FEW:
        return []
    return [
        f"{counted(number, 'row')}: too few to learn from, and to hold some out and score them. "
        f"Give {FEW} or more."
    ]


def _rows(numbers: Sequence[int]) -> str:
    return f"{counted(len(numbers), 'row')}, {_listed(numbers)},"


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:3]))
    return f"line{'s' * (len(numbers) > 1)} {shown}{', ...' * (len(numbers) > 3)}"


def _columns_missing(table: Sequence[Row], path: Path, needed: Sequence[str]) -> Iterator[str]:
    for name in needed:
        missing = [number for number, row in table if not has_column(row, name)]
        if len(missing) == len(table):
            option = "--prompt-column" if name == needed[0] else "--answer-column"
            yield f"{no_column(str(path), name, table[0][1])} Name yours: {option} NAME"
        elif missing:
            yield f'{_rows(missing)} lack "{name}". Give every row one.'


def _golds(
    table: Sequence[Row], path: Path, column: str | None
) -> tuple[dict[int, object], list[str]]:
    """Return the answers by line, empty ones as text, and the first that is no answer."""
    golds: dict[int, object] = {}
    bad: list[str] = []
    for number, row in table:
        if column is None or not has_column(row, column):
            continue
        cell = cell_of(row, column)
        try:
            golds[number] = "" if cell is None else gold_of(cell, column, place_of(path, number))
        except TaskSourceError as error:
            bad.append(str(error))
    return golds, _first(bad)


def _first(bad: Sequence[str]) -> list[str]:
    more = f" ({len(bad)} rows like this)" if len(bad) > 1 else ""
    return [f"{bad[0]}{more}"] if bad else []


@dataclass(frozen=True)
class _Looked:
    """A file whose prompts are looked at, and how they are read."""

    path: Path
    names: Sequence[str] | None
    column: str
    last_assistant: LastAssistant
    format: str

    def formatted(self, rows: list[Row], path: Path) -> Table:
        """Return the rows of a file with the columns that everything reads."""
        return formatted(
            rows,
            str(path),
            self.format,
            prompt_column=self.column,
            last_assistant=self.last_assistant,
        )

    def prompts(
        self, table: Sequence[Row], path: Path | None = None
    ) -> tuple[dict[int, Prompt], dict[int, str], list[str]]:
        """Return prompts and answers split off them, by line, and the first that is none."""
        prompts: dict[int, Prompt] = {}
        split: dict[int, str] = {}
        bad: list[str] = []
        for number, row in table:
            if not has_column(row, self.column):
                continue
            where = f'{place_of(path or self.path, number)}, column "{self.column}"'
            try:
                prompts[number], answer = prompt_of(
                    cell_of(row, self.column), where, self.last_assistant
                )
            except TaskSourceError as error:
                bad.append(str(error))
                continue
            if answer is not None:
                split[number] = answer
        return prompts, split, _first(bad)

    def overlap(self, prompts: Mapping[int, Prompt]) -> Iterator[str]:
        """Say which prompts are also in the file of the other split."""
        beside = sibling_of(self.path)
        if beside is None:
            return
        try:
            rows = self.formatted(read_table(beside, self.names), beside).rows
            others, *_ = self.prompts(rows, beside)
        except TaskSourceError as error:
            yield f"the other split does not load: {error}"
            return
        seen = {task_id(prompt): number for number, prompt in others.items()}
        common = [number for number, prompt in prompts.items() if task_id(prompt) in seen]
        if common:
            first = common[0]
            yield (
                f"{len(common)} of {len(prompts)} prompts are also in {beside} (first: line "
                f"{first} here, line {seen[task_id(prompts[first])]} there). A held-out score "
                "would mean nothing. Remove them from one of the files."
            )


def _empty(texts: Mapping[int, str], path: Path, column: str | None) -> Iterator[str]:
    empty = [number for number, text in texts.items() if not text.strip()]
    if empty:
        yield (
            f'{_rows(empty)} of {path} have nothing in "{column}". Fill it in, or leave the rows '
            "out."
        )


def sibling_of(path: Path) -> Path | None:
    """Return the file of the other split: `test.jsonl` for `train.jsonl`, or the reverse."""
    for word, other in (("train", "test"), ("test", "train")):
        beside = path.with_name(path.name.replace(word, other))
        if beside != path and beside.is_file() and beside.suffix.lower() in READERS:
            return beside
    return None


def _repeated(prompts: Mapping[int, Prompt], answers: Mapping[int, str]) -> Iterator[str]:
    rows: dict[str, list[int]] = {}
    for number, prompt in prompts.items():
        rows.setdefault(task_id(prompt), []).append(number)
    twice = [numbers for numbers in rows.values() if len(numbers) > 1]
    if twice:
        apart = [
            numbers for numbers in twice if len({answers.get(number, "") for number in numbers}) > 1
        ]
        told = f", {len(apart)} of them with different answers" if apart else ""
        stand = "stands" if len(twice) == 1 else "stand"
        yield (
            f"{counted(len(twice), 'prompt')} {stand} there more than once{told}; "
            f"first: {_listed(twice[0])}"
        )


def _mangled(table: Sequence[Row]) -> Iterator[str]:
    mangled = [
        number
        for number, row in table
        if any(isinstance(cell, str) and MANGLED.search(cell) for cell in row.values())
    ]
    if mangled:
        yield (
            f"{_rows(mangled)} hold text that was decoded wrongly before it was saved. Save it "
            "again from its source, as UTF-8."
        )


def _headless(columns: Sequence[str], path: Path, names: Sequence[str] | None) -> Iterator[str]:
    long = [name for name in columns if len(name) > LONGEST_NAME]
    if long and names is None and path.suffix.lower() in (".csv", ".tsv"):
        yield (
            f"the first line of {path} was read as column names ({long[0][:LONGEST_NAME]!r}...). "
            "If it is a row, name the columns: --columns text,labels,id"
        )


def shown(value: Any, most: int = 60) -> str:  # noqa: ANN401 - any cell
    """Return a cell in one short line."""
    text = " ".join(_text(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
