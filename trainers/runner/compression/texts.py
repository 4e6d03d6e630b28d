"""What quality is measured on: rows of a file, or what the dense model writes to tasks.

Rows of equal content are in one split. Of a file, rows are dealt_out out by the digest of their
content, so that their order does not matter; of an environment, calibration and selection are
training tasks and report is held-out tasks. A prompt is read and only the response counts.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmgym.data.files import READERS, read_table
from llmgym.vector import LLMVectorEnv
from trainers.collect.environments import reward_of, text_envs
from trainers.collect.episodes import Row
from trainers.collect.play import PlayOptions, play
from trainers.compress.row_files import SPLIT_NAMES
from trainers.compress.token_rows import Splits, TokenRows, check_splits, pad_rows
from trainers.compress.variants import LEAST_TOKENS
from trainers.config import Config
from trainers.config.compression import CompressionSettings
from trainers.config.text import DataConfig
from trainers.distributed.collectives import World
from trainers.errors import ConfigError
from trainers.evaluation.undisturbed import undisturbed
from trainers.generation.base import Sampling
from trainers.models.chat import ChatFormat
from trainers.runner.compression.writer import TextWriter
from trainers.supervised.sft_data import from_rows, read_rows

SPLIT_SHARES = {"report": 0.15, "selection": 0.15}
"""Of the rows of a file; the rest is calibration."""
TEXT_COLUMN = "text"


class Piece(NamedTuple):
    """A row before it is one of a matrix.

    Attributes:
        key: equal for equal content.
        prompt: ids that are read.
        tokens: ids after them.
        sampled: for each of `tokens`, whether its prediction counts.
    """

    key: str
    prompt: Sequence[int]
    tokens: Sequence[int]
    sampled: Sequence[bool]


def rows_matrix(pieces: Sequence[Piece], chat: ChatFormat) -> TokenRows:
    """Return pieces as a matrix; predictions of tokens that nobody chose do not count."""
    rows = pad_rows(
        [[*piece.prompt, *piece.tokens] for piece in pieces],
        prompts=[max(1, len(piece.prompt)) for piece in pieces],
        end_ids=chat.eos_token_ids,
        pad_id=chat.pad_token_id,
    )
    chosen = torch.ones_like(rows.counted)
    for number, piece in enumerate(pieces):
        begin = max(0, len(piece.prompt) - 1)
        flags = piece.sampled if piece.prompt else piece.sampled[1:]
        chosen[number, begin : begin + len(flags)] = torch.tensor(flags, dtype=torch.bool)
    return TokenRows(rows.tokens, rows.mask, rows.counted & chosen)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def pieces_of_file(path: str, chat: ChatFormat, longest: int) -> list[Piece]:
    """Return the rows of a file, cut to `longest` tokens.

    Args:
        path: a .txt file, whose paragraphs are rows; or rows with a column `text`, or with prompts
            and responses in any format that training reads.
        chat: renders them.
        longest: tokens of a row.

    Raises:
        TaskSourceError: it cannot be read, or a row has neither.
    """
    tokenizer = chat.tokenizer
    texts = _texts(path)
    if texts is not None:
        ids = [tokenizer(text)["input_ids"][:longest] for text in texts]
        return [Piece(_digest(row), (), row, [True] * len(row)) for row in ids if len(row) > 1]
    data = DataConfig(path=path)
    pieces: list[Piece] = []
    for shown in from_rows(read_rows(data, path), data):
        prompt = chat.prompt_ids(shown.messages)[:longest]
        response = chat.response_ids(shown.response, shown.messages)[: longest - len(prompt)]
        if prompt and response:
            pieces.append(Piece(_digest(prompt), prompt, response, [True] * len(response)))
    return pieces


def _texts(path: str) -> list[str] | None:
    """Return the texts of a file of text, or of rows with a column of it; None: it has none."""
    file = Path(path)
    if file.suffix.lower() == ".txt":
        try:
            return [part for part in file.read_text("utf-8").split("\n\n") if part.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{file} cannot be read as text: {error}. Name another file."
            ) from error
    if file.suffix.lower() not in READERS:
        return None
    rows: list[Mapping[str, Any]] = [row for _, row in read_table(file)]
    if not rows or TEXT_COLUMN not in rows[0] or "prompt" in rows[0]:
        return None
    return [str(row.get(TEXT_COLUMN) or "") for row in rows]


def dealt_out(pieces: Sequence[Piece], names: Sequence[str]) -> dict[str, list[Piece]]:
    """Deal pieces out to splits by the digest of their content.

    Args:
        pieces: of one file.
        names: the splits; calibration has what the others leave.
    """
    by_key: dict[str, Piece] = {piece.key: piece for piece in pieces}
    order = sorted(by_key.values(), key=lambda piece: piece.key)
    splits: dict[str, list[Piece]] = {}
    for name in names:
        count = len(order) if name == "calibration" else round(SPLIT_SHARES[name] * len(by_key))
        splits[name], order = order[:count], order[count:]
    return splits


def size_of(piece: Piece, split: str) -> int:
    """Return the tokens of a piece: all for calibration, for the others those that count."""
    return len(piece.prompt) + len(piece.tokens) if split == "calibration" else sum(piece.sampled)


def first_tokens(pieces: Sequence[Piece], split: str, tokens: int) -> list[Piece]:
    """Return the first pieces of a split, as few as have `tokens` tokens."""
    taken: list[Piece] = []
    total = 0
    for piece in pieces:
        if total >= tokens:
            break
        taken.append(piece)
        total += size_of(piece, split)
    return taken


def splits_of_files(settings: CompressionSettings, chat: ChatFormat) -> dict[str, list[Piece]]:
    """Return the three splits of `data` and `report_data`.

    Raises:
        ConfigError: a row of the report is in another split, too.
        TaskSourceError: a file cannot be read.
    """
    assert settings.data is not None, "there is a file"
    pieces = pieces_of_file(settings.data, chat, settings.row_tokens)
    if settings.report_data is None:
        splits = dealt_out(pieces, ("report", "selection", "calibration"))
    else:
        splits = dealt_out(pieces, ("selection", "calibration"))
        splits["report"] = pieces_of_file(settings.report_data, chat, settings.row_tokens)
    check_splits(**{name: [piece.key for piece in rows] for name, rows in splits.items()})
    counts = token_counts(settings)
    return {name: first_tokens(splits[name], name, counts[name]) for name in SPLIT_NAMES}


def token_counts(settings: CompressionSettings) -> dict[str, int]:
    """Return how many tokens each split is to have, by its name."""
    return {name: getattr(settings, f"{name}_tokens") for name in SPLIT_NAMES}


def _indices(envs: LLMVectorEnv, taken: set[str]) -> Iterator[int]:
    """Yield the numbers of tasks that are new, and note their ids; a source may have no end."""
    size, number, stale = envs.num_tasks(), 0, 0
    while (size is None or number < size) and stale < 1000:
        task = envs.tasks([number])[0]
        stale += 1
        if task.id not in taken:
            taken.add(task.id)
            stale = 0
            yield number
        number += 1


def played(
    writer: TextWriter, envs: LLMVectorEnv, indices: Iterator[int], *, split: str, tokens: int
) -> list[Piece]:
    """Return what the model writes to tasks, sampled as in training, until `tokens` are read.

    Args:
        writer: the dense model.
        envs: gives the tasks.
        indices: of tasks that no other split has.
        split: that the rows are for; each has random streams of its own.
        tokens: enough of them, as `size_of` counts.
    """
    config, pieces = writer.config, list[Piece]()
    stream = 1 + SPLIT_NAMES.index(split)
    sampling = Sampling(
        temperature=config.generation.temperature, seed=config.run.seed, iteration=stream
    )
    while numbers := list(islice(indices, envs.num_envs)):
        filled = [*numbers, *numbers[:1] * (envs.num_envs - len(numbers))]
        options = PlayOptions(
            indices=filled,
            index=[at + 1_000_003 * stream for at in filled],
            world=World(),
            max_tokens=writer.longest,
        )
        with undisturbed():
            episodes = play(
                envs,
                writer.generator,
                chat=writer.chat,
                config=config,
                sampling=sampling,
                options=options,
            )
        for slot in episodes.slots[: len(numbers)]:
            pieces += [_piece(row) for row in slot.rows if row.tokens]
        if sum(size_of(piece, split) for piece in pieces) >= tokens:
            break
    return pieces


def _piece(row: Row) -> Piece:
    return Piece(_digest(row.prompt, row.tokens), row.prompt, row.tokens, row.sampled)


def splits_of_tasks(writer: TextWriter, counts: Mapping[str, int]) -> dict[str, list[Piece]]:
    """Return what the dense model writes to the tasks of its environment, by split.

    Args:
        writer: the dense model.
        counts: tokens of each split, as `size_of` counts.

    Raises:
        ConfigError: a held-out task is a training task, too.
    """
    splits: dict[str, list[Piece]] = {}
    ids: dict[str, set[str]] = {}
    config: Config = writer.config
    size = min(config.generation.batch_size, 64)
    reward = reward_of(config, None)
    for held_out in (False, True):
        envs = text_envs(config, size, env=None, reward=reward, held_out=held_out)
        try:
            taken: set[str] = set()
            indices = _indices(envs, taken)
            for name in ("report",) if held_out else ("calibration", "selection"):
                before = set(taken)
                splits[name] = played(writer, envs, indices, split=name, tokens=counts[name])
                ids[name] = taken - before
        finally:
            envs.close()
    check_splits(**ids)
    return splits


def matrices(splits: Mapping[str, Sequence[Piece]], chat: ChatFormat) -> Splits:
    """Return the splits as matrices.

    Raises:
        ConfigError: one has no row.
    """
    empty = [name for name, pieces in splits.items() if not pieces]
    if empty:
        raise ConfigError(
            f"the {empty[0]} split has no row. Give more text with --data FILE, or --report-data."
        )
    return Splits(**{name: rows_matrix(pieces, chat) for name, pieces in splits.items()})


def least_calibration(widest: int) -> int:
    """Return the tokens that calibration needs for a unit of `widest` inputs."""
    return LEAST_TOKENS * widest


def split_sizes(splits: Splits) -> dict[str, dict[str, int]]:
    """Return rows, tokens and tokens that count of each split."""
    parts = {name: getattr(splits, name) for name in SPLIT_NAMES}
    return {
        name: {
            "rows": len(rows),
            "tokens": int(rows.mask.sum()),
            "counted": int(rows.counted.sum()),
        }
        for name, rows in parts.items()
    }


def texts_words(sizes: Mapping[str, Mapping[str, int]]) -> str:
    """Return the sizes of the splits, for a person."""
    return ", ".join(
        f"{name} {size['rows']} rows, "
        f"{size['tokens' if name == 'calibration' else 'counted']} tokens"
        for name, size in sizes.items()
    )
