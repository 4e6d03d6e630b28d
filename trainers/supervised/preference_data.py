"""What a reward model learns from: rows with a class, or with a better and a worse response.

A row's texts are what is scored: one, the response; or two, the chosen response and then the
rejected one. `llmgym/rewards/rendering.py` says how a dialogue and a response become ids.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from llmgym.chat_templates import control_tokens
from llmgym.data.rows import label_names, labels_beside, labels_of
from llmgym.errors import TaskSourceError
from llmgym.rewards.rendering import Tokenizer, judged_ids
from trainers.config import Config, RewardModelConfig
from trainers.errors import ConfigError
from trainers.supervised.sft_data import cell, dialogue, read_rows, response_of

NO_PROMPT = """--data.prompt-column NAME, or --data.prompt-column '' where rows have no prompts"""
SHOWN_LABELS = 8
MANY_LABELS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledExample:
    """A dialogue with one response and its class, or with two responses, the better one first.

    Attributes:
        label: number of the class; 0 of a pair.
        margin: of a pair, the least difference of scores.
        place: where it came from: "p.jsonl, line 3".
    """

    messages: tuple[Mapping[str, Any], ...]
    responses: tuple[str, ...]
    label: int = 0
    margin: float = 0.0
    place: str

    @property
    def subject(self) -> str:
        """What must be on one side of a split: the dialogue, or the texts where there is none."""
        lines = [f"{message['role']}: {message['content']}" for message in self.messages]
        return "\n".join(lines or sorted(self.responses))


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelExample:
    """A labeled example in token ids, a tuple for each response."""

    texts: tuple[tuple[int, ...], ...]
    label: int = 0
    margin: float = 0.0
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The classes of a run by number, and the labels of each.

    Where every label is its own class, the class has its name.
    """

    names: tuple[str, ...]
    labels: tuple[frozenset[str], ...]

    def of(self, labels: Iterable[str]) -> int | None:
        """Return the class that all labels belong to, or None."""
        numbers = [number for number, mine in enumerate(self.labels) if mine.issuperset(labels)]
        return numbers[0] if numbers else None


def preferences(config: Config, path: str, *, limit: int | None = None) -> list[LabeledExample]:
    """Read pairs of responses, at most the first `limit`.

    Raises:
        TaskSourceError: a file, row or column is missing or wrong, or chosen equals rejected; names
            the line.
    """
    stage, data = config.reward_model, config.data
    examples = []
    if data.last_assistant == "split":
        raise ConfigError(
            "data.last_assistant split takes the last turn of a prompt for its answer, and a pair "
            f"has its answers in {stage.chosen_column} and {stage.rejected_column}. Leave it out, "
            "or sort single answers into classes with --reward-model.label-column."
        )
    rows = read_rows(data, path)
    for place, row in islice(rows.items(), limit):
        chosen = _text(row, stage.chosen_column, place)
        rejected = _text(row, stage.rejected_column, place)
        if chosen == rejected:
            raise TaskSourceError(
                f"{place}: chosen equals rejected ({chosen!r:.60}), which says nothing of what is "
                "better. Remove the row."
            )
        examples.append(
            LabeledExample(
                messages=dialogue(row, data, place, NO_PROMPT)[0],
                responses=(chosen, rejected),
                margin=_margin(row, stage.margin_column, place),
                place=place,
            )
        )
    return examples


def labeled_examples(
    config: Config, path: str, classes: Classes | None = None, *, limit: int | None = None
) -> tuple[list[LabeledExample], Classes, int]:
    """Read responses with their classes.

    Args:
        config: settings.
        path: of the file.
        classes: those of the rows that are learned; None makes them of this file.
        limit: most rows, the first ones.

    Returns:
        The rows, the classes, and how many rows were left out: their labels lie in several
        classes, or in none.

    Raises:
        TaskSourceError: a file, row or column is missing or wrong.
        ConfigError: the labels make no classes, or a class has no row.
    """
    stage, data = config.reward_model, config.data
    column = stage.label_column or ""
    names = label_names(stage.labels or labels_beside(Path(path)))
    table = dict(islice(read_rows(data, path).items(), limit))
    labels_of_rows = [_labels(row, column, names, place) for place, row in table.items()]
    is_first = classes is None
    classes = classes or _classes(stage, names, labels_of_rows)
    examples = []
    for (place, row), labels in zip(table.items(), labels_of_rows, strict=True):
        number = classes.of(labels)
        messages, answer = dialogue(row, data, place, NO_PROMPT)
        text = _text(row, data.response_column, place) if answer is None else answer
        if number is not None:
            examples.append(
                LabeledExample(messages=messages, responses=(text,), label=number, place=place)
            )
    if is_first:
        _check_classes(
            examples, classes, f'Labels in column "{column}" of {path}: {_most(labels_of_rows)}.'
        )
    return examples, classes, len(table) - len(examples)


def tokenize_labeled(
    tokenizer: Tokenizer,
    rows: Sequence[LabeledExample],
    *,
    longest: int,
    too_long: str,
    day: date | None = None,
) -> tuple[list[RewardModelExample], int]:
    """Return the rows in token ids, and how many were dropped as too long.

    Args:
        tokenizer: the reward model's own.
        rows: what is judged.
        longest: tokens that the model takes.
        too_long: `raise` or `drop`.
        day: what a template prints that prints the day; None: today.

    Raises:
        ConfigError: one is too long and `too_long` is raise, or one has no token; names its place.
    """
    kept = []
    control = control_tokens(tokenizer)
    for row in rows:
        try:
            ids = [
                tuple(judged_ids(tokenizer, row.messages, text, control=control, day=day))
                for text in row.responses
            ]
        except TemplateError as error:
            raise ConfigError(
                f"{row.place}: the chat template refuses the dialogue: {error}. Give one that "
                "knows its roles: --tokenizer.chat-template FILE."
            ) from error
        longer = max(ids, key=len)
        if not all(ids):
            raise ConfigError(f"{row.place}: the tokenizer makes no token of a response.")
        if len(longer) <= longest:
            example = RewardModelExample(
                texts=tuple(ids), label=row.label, margin=row.margin, subject=row.subject
            )
            kept.append(example)
        elif too_long == "raise":
            raise ConfigError(
                f"{row.place} has {len(longer)} tokens, prompt and response together; the reward "
                f"model takes {longest}. Raise --model.context for a fresh model, or leave such "
                "rows out with --data.too-long drop."
            )
    if not kept:
        raise ConfigError(f"no row fits the reward model's {longest} tokens.")
    return kept, len(rows) - len(kept)


def split_subjects(
    examples: Sequence[RewardModelExample], holdout: float, seed: int
) -> tuple[list[RewardModelExample], list[RewardModelExample]]:
    """Return (train, held out): a share of the subjects, drawn by seed, with all their rows."""
    subjects = list(dict.fromkeys(example.subject for example in examples))
    order = np.random.default_rng((seed, len(subjects))).permutation(len(subjects))
    number = min(int(len(subjects) * holdout), len(subjects) - 1)
    kept_back = {subjects[i] for i in order[:number]}
    return (
        [example for example in examples if example.subject not in kept_back],
        [example for example in examples if example.subject in kept_back],
    )


def file_of_test(config: Config) -> str | None:
    """Return the file that is judged at the end: the one named, or the one next to `train`."""
    if config.reward_model.test is not None or config.data.path is None:
        return config.reward_model.test
    path = Path(config.data.path)
    beside = path.with_name(path.name.replace("train", "test"))
    return str(beside) if beside != path and beside.is_file() else None


def _classes(
    stage: RewardModelConfig, names: Sequence[str], rows: Sequence[Sequence[str]]
) -> Classes:
    known = [name.strip() for name in names] or sorted({label for row in rows for label in row})
    if stage.groups is None:
        if len(known) > max(MANY_LABELS, len(rows) // 2):
            raise ConfigError(
                f'column "{stage.label_column}" has {len(known)} labels in {len(rows)} rows: '
                f"{_most(rows)}. Name the column of labels with --reward-model.label-column."
            )
        return Classes(names=tuple(known), labels=tuple(frozenset([label]) for label in known))
    for name, labels in stage.groups.items():
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise ConfigError(
                f'reward_model.groups.{name} lists "{unknown[0]}", which no row is labelled with. '
                f"The labels are {', '.join(known[:MANY_LABELS])}."
            )
    return Classes(names=tuple(stage.groups), labels=tuple(map(frozenset, stage.groups.values())))


def _check_classes(rows: Sequence[LabeledExample], classes: Classes, source: str) -> None:
    counts = Counter(row.label for row in rows)
    sizes = ", ".join(f"{name} {counts[number]}" for number, name in enumerate(classes.names))
    if len(classes.names) < 2:
        raise ConfigError(f"there must be two classes or more, got {sizes or 'none'}. {source}")
    empty = [name for number, name in enumerate(classes.names) if not counts[number]]
    if empty:
        raise ConfigError(
            f'the class "{empty[0]}" has no row; rows of each: {sizes}. {source}\nGive rows of it, '
            "or other classes with --reward-model.groups '{NAME: [LABEL], NAME: [LABEL]}'."
        )


def _most(labels: Sequence[Sequence[str]]) -> str:
    counts = Counter(label for row in labels for label in row)
    shown = [f"{label[:20]} ({count} x)" for label, count in counts.most_common(SHOWN_LABELS)]
    return ", ".join(shown) + (", ..." if len(counts) > SHOWN_LABELS else "")


def _labels(
    row: Mapping[str, Any], column: str, names: Sequence[str], place: str
) -> tuple[str, ...]:
    value = cell(row, column, place, "--reward-model.label-column")
    labels = tuple(str(label).strip() for label in labels_of(value, names, place))
    if value is None or not all(labels):
        raise TaskSourceError(f'{place} has no label in column "{column}", got {value!r}')
    return labels


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    options = "--reward-model.chosen-column and --reward-model.rejected-column, or --reward-model."
    option = f"{options}label-column with --data.response-column"
    return response_of(row, column, place, option)


def _margin(row: Mapping[str, Any], column: str | None, place: str) -> float:
    if column is None:
        return 0.0
    value = cell(row, column, place, "--reward-model.margin-column")
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = -1.0
    if not 0.0 <= margin < float("inf"):
        raise TaskSourceError(
            f'{place}, column "{column}": a margin is a number of at least 0, got {value!r:.40}'
        )
    return margin
