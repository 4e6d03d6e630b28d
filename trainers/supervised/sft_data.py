"""What the supervised stage learns from: dialogues with their responses, and their token ids."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import gymnasium
from pydantic import TypeAdapter

from llmgym.content import cell_of, has_column, no_column, prompt_of, text_of
from llmgym.data.files import READERS, place_of, read_table
from llmgym.data.formats import Table, formatted
from llmgym.data.tasks import hub_rows, num_tasks
from llmgym.env import LLMEnv, inner_env
from llmgym.errors import TaskSourceError
from llmgym.messages import Message
from trainers.config import Config, DataConfig
from trainers.errors import ConfigError

COLUMN_OPTIONS = (
    "--data.prompt-column and --data.response-column; a list of messages that ends with its answer "
    "with --data.prompt-column messages --data.last-assistant split"
)
DATA_SCHEMA: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)
UNBOUNDED_DEMONSTRATIONS = 1024  # demonstrations taken of an environment whose tasks have no end


class Chat(Protocol):
    """What this stage needs of a tokenizer and its chat template."""

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """Return the ids of a dialogue, up to where the response begins."""
        ...

    def response_ids(self, text: str, messages: Sequence[Mapping[str, Any]] = ()) -> Sequence[int]:
        """Return the ids of a response to a dialogue, its end token included."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A dialogue and the response to learn; `place` says where it came from."""

    messages: tuple[Mapping[str, Any], ...]
    response: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTExample:
    """A demonstration in token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def demonstrations(config: Config, envs: Sequence[gymnasium.Env]) -> list[Demonstration]:
    """Read the rows of `data.path`, or else play the environments with their own solutions.

    Args:
        config: settings.
        envs: one a config entry; each gives an equal share of `data.num_examples`.

    Raises:
        TaskSourceError: a file, row or column is missing or wrong, or no task has a solution.
    """
    data = config.data
    if data.path is not None:
        return from_rows(read_rows(data, data.path), data)
    shown: list[Demonstration] = []
    for env in envs:
        core = env.unwrapped
        assert isinstance(core, LLMEnv)
        size = num_tasks(core.tasks)
        share = None if data.num_examples is None else -(-data.num_examples // len(envs))
        most = [n for n in (size, share) if n is not None]
        shown += from_env(env, range(min(most, default=UNBOUNDED_DEMONSTRATIONS)))
    return shown


def from_rows(rows: Mapping[str, Mapping[str, Any]], config: DataConfig) -> list[Demonstration]:
    """Make demonstrations of a table's rows.

    Args:
        rows: cells by column, by the place of the row: "p.jsonl, line 3".
        config: names the columns.

    Raises:
        TaskSourceError: a row lacks a column, or its prompt or response is no text; names it.
    """
    return [
        Demonstration(messages=messages, response=response, place=place)
        for place, row in islice(rows.items(), config.num_examples)
        for messages, response in [_pair(row, config, place)]
    ]


def _pair(
    row: Mapping[str, Any], config: DataConfig, place: str
) -> tuple[tuple[Mapping[str, Any], ...], str]:
    messages, answer = dialogue(row, config, place, COLUMN_OPTIONS)
    if answer is None:
        answer = response_of(row, config.response_column, place, COLUMN_OPTIONS)
    return messages, answer


def from_env(env: gymnasium.Env, indices: Sequence[int]) -> list[Demonstration]:
    """Play an environment with its own solutions; each turn is a demonstration.

    Args:
        env: an `LLMEnv`, wrapped or not.
        indices: of its tasks.

    Raises:
        TaskSourceError: no task has a solution.
    """
    shown: list[Demonstration] = []
    layer = inner_env(env)
    for index in indices:
        messages, _ = env.reset(options={"index": index})
        over = False
        while not over and (solution := layer.solve()) is not None:
            shown.append(Demonstration(messages=messages, response=solution, place=f"task {index}"))
            messages, terminated, truncated, _ = layer.advance(solution)
            over = terminated or truncated
    if not shown:
        raise TaskSourceError(
            "the tasks have no solutions to learn from. Give demonstrations with --data FILE, or "
            "leave the stage out with --sft.num-epochs 0."
        )
    return shown


def tokenize_demonstrations(
    chat: Chat, demonstrations: Sequence[Demonstration], *, longest: int, too_long: str
) -> tuple[list[SFTExample], int]:
    """Return the examples in token ids, and how many were dropped as too long.

    Args:
        chat: renders them.
        demonstrations: what is learned.
        longest: tokens of prompt and response together that the model takes.
        too_long: `raise` or `drop`.

    Raises:
        ConfigError: one is too long and `too_long` is raise; names its place and lengths.
    """
    kept = []
    for demonstration in demonstrations:
        prompt = chat.prompt_ids(demonstration.messages)
        response = chat.response_ids(demonstration.response, demonstration.messages)
        if not prompt:
            raise ConfigError(
                f"{demonstration.place} has no prompt, and the chat template puts nothing before "
                "a first response. Give one that does: --tokenizer.chat-template FILE."
            )
        if len(prompt) + len(response) <= longest:
            kept.append(SFTExample(prompt=tuple(prompt), response=tuple(response)))
        elif too_long == "raise":
            raise ConfigError(
                f"{demonstration.place} has {len(prompt)} prompt and {len(response)} response "
                f"tokens, the model takes {longest} in all. Raise --model.context for a fresh "
                "model, or leave such rows out with --data.too-long drop."
            )
    if not kept:
        raise ConfigError(f"no demonstration fits the model's {longest} tokens.")
    return kept, len(demonstrations) - len(kept)


def read_rows(data: DataConfig, source: str) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a file or hub data set by their place: "p.jsonl, line 3".

    Args:
        data: names the columns, the format and the split.
        source: file, or hub id.

    Raises:
        TaskSourceError: it cannot be read, or a row is not of its format.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    held = Counter[int]()
    for number, row in read_format(data, source).rows:
        held[number] += 1
        pair = f", pair {held[number]}" if held[number] > 1 else ""
        rows[f"{place_of(source, number)}{pair}"] = row
    return rows


def read_format(data: DataConfig, source: str) -> Table:
    """Return the rows of a file or hub data set with the columns that everything reads.

    Raises:
        TaskSourceError: as of `read_rows`.
    """
    path = Path(source)
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _read_format(DATA_SCHEMA.dump_json(data), source, stamp)


@lru_cache(maxsize=2)
def _read_format(settings: bytes, source: str, stamp: int) -> Table:
    del stamp  # part of the key only: a file that changed is read again
    data, path = DATA_SCHEMA.validate_json(settings), Path(source)
    if path.suffix.lower() in READERS or path.exists():
        rows = read_table(path, data.columns)
    else:
        rows = hub_rows(source, split=data.split)
    return formatted(
        rows,
        source,
        data.format,
        prompt_column=data.prompt_column if data.has_prompts else "",
        last_assistant=data.last_assistant,
    )


def cell(row: Mapping[str, Any], column: str, place: str, options: str) -> Any:  # noqa: ANN401 - user data
    """Return what a row has in a column.

    Raises:
        TaskSourceError: there is no such column; names those there are, and `options` to set.
    """
    if has_column(row, column):
        return cell_of(row, column)
    raise TaskSourceError(
        f"{no_column(place, column, row)}\nName yours with {options}. A CSV or TSV without a "
        "header line takes --data.columns NAME,NAME."
    )


def dialogue(
    row: Mapping[str, Any], config: DataConfig, place: str, options: str
) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    """Return a row's prompt as messages, none where rows have no prompts, and an answer at its end.

    The answer is None unless `data.last_assistant` is split.

    Raises:
        TaskSourceError: the prompt is neither text nor messages; names its place.
    """
    if not config.has_prompts:
        return (), None
    column = config.prompt_column
    where = f'{place}, column "{column}"'
    prompt, answer = prompt_of(cell(row, column, place, options), where, config.last_assistant)
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return tuple(message.as_dict() for message in messages), answer


def response_of(row: Mapping[str, Any], column: str, place: str, options: str) -> str:
    """Return a response that a row has in a column.

    Raises:
        TaskSourceError: it is no text, or empty; names its place.
    """
    value, where = cell(row, column, place, options), f'{place}, column "{column}"'
    text = text_of(value, where, "a response") if value else ""
    if not text.strip():
        raise TaskSourceError(f"{where}: a response is text that is not empty, got {value!r:.80}")
    return text
