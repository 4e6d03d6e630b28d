"""How long the texts of a run are: tasks of its environment in tokens, or what is assumed of them.

Memory is planned at the limits, time at these. Weights are not needed, a tokenizer helps.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Literal

import gymnasium

from llmgym.data.tasks import num_tasks
from llmgym.env import core_env
from llmgym.errors import TaskSourceError
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.models.chat import Messages
from trainers.models.loading import load_chat, load_config, load_tokenizer
from trainers.plan.counting import Usage
from trainers.supervised.sft_data import Demonstration, from_env

TokenCounter = Callable[[Messages], int]

SAMPLED = 64
"""Tasks that are looked at."""

CHARACTERS_PER_TOKEN, TOKENS_AROUND_MESSAGE = 4, 4
"""Assumed where no tokenizer is there; the tokens are those a chat template adds to a message."""

SHARES = (0.3, 0.7)
"""Of `generation.max_new_tokens` that responses have on average, where no solution tells."""

SPREAD = (0.75, 1.5)
"""Of the length of solutions that responses have on average."""

LONGEST_OVER_MEAN = 2
"""Times the mean that the longest response of a batch has: steps are taken until it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of an episode on average.

    Attributes:
        prompt: of its first prompt.
        between: of what the environment says between turns.
        response: least and most expected of all its responses together.
        turns: responses.
        source: where the figures come from, in words.
    """

    prompt: float
    between: float = 0.0
    response: tuple[float, float]
    turns: float = 1.0
    source: str

    def row(self, end: int) -> float:
        """Return the tokens of all, with the least (0) or the most (1) of responses."""
        return self.prompt + self.between + self.response[end]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Work of a rank, with texts at their limits.

    Attributes:
        name: of its phase.
        usage: of all passes once.
        often: how many times in the run.
        passes: over which the calls are spread.
        part: what it is proportional to the tokens of.
    """

    name: str
    usage: Usage
    often: float
    passes: float = 1.0
    part: Literal["row", "prompt", "response"] = "row"

    def real(self, config: Config, lengths: Lengths, end: int) -> Usage:
        """Return the same with texts as long as they are, at the least (0) or the most (1)."""
        limits, turns, response = config.generation, lengths.turns, lengths.response[end]
        if self.part == "prompt":  # of every turn, half of the rest behind the first on average
            rest = (lengths.row(end) - lengths.prompt) / 2 if turns > 1 else 0.0
            share = turns * (lengths.prompt + rest) / limits.max_prompt_tokens
            calls = turns
        elif self.part == "response":
            share = response / limits.max_new_tokens
            calls = turns * min(1.0, LONGEST_OVER_MEAN * share / turns)
        else:
            share = lengths.row(end) / (limits.max_prompt_tokens + limits.max_new_tokens)
            calls = max(share, 1 / max(self.passes, 1.0))
        scaled = self.usage.times(share)
        passes = self.usage.times(calls)
        return replace(scaled, calls=passes.calls, received=passes.received)


def at_limits(config: Config) -> Lengths:
    """Return what is assumed where no task can be looked at.

    Raises:
        ConfigError: the model is here, and a run would refuse its tokenizer or chat template.
    """
    _counting(config, ())
    limits = config.generation
    low, high = (share * limits.max_new_tokens for share in SHARES)
    return Lengths(
        prompt=limits.max_prompt_tokens, response=(low, high), source="no task was looked at"
    )


def measured_lengths(config: Config, env: gymnasium.Env) -> Lengths:
    """Return the lengths of an environment's tasks, and of its own solutions where it has some.

    Args:
        config: limits, and where a tokenizer is.
        env: an `LLMEnv`, wrapped or not; nothing is scored.

    Raises:
        ConfigError: the model is here, and a run would refuse its tokenizer or chat template.
    """
    size = num_tasks(core_env(env).tasks) or SAMPLED
    indices = range(0, size, max(1, size // SAMPLED))[:SAMPLED]
    prompts: list[Messages] = [env.reset(options={"index": index})[0] for index in indices]
    try:
        shown = from_env(env, indices)
    except TaskSourceError:
        shown = []
    texts = [str(message["content"]) for messages in prompts for message in messages]
    count, how = _counting(config, [*texts, *(demonstration.response for demonstration in shown)])
    limits = config.generation
    prompt = min(fmean(map(count, prompts)), limits.max_prompt_tokens)
    source = f"{len(prompts)} tasks {how}"
    if not shown:
        low, high = (share * limits.max_new_tokens for share in SHARES)
        return Lengths(prompt=prompt, response=(low, high), source=source)
    episodes = [
        [*group] for _, group in groupby(shown, key=lambda demonstration: demonstration.place)
    ]
    turns = fmean(map(len, episodes))
    written = fmean(
        sum(_response(demonstration, count) for demonstration in episode) for episode in episodes
    )
    whole = fmean(
        count(episode[-1].messages) + _response(episode[-1], count) for episode in episodes
    )
    low, high = (min(share * written, turns * limits.max_new_tokens) for share in SPREAD)
    return Lengths(
        prompt=prompt,
        between=max(0.0, whole - prompt - written) if turns > 1 else 0.0,
        response=(low, high),
        turns=turns,
        source=f"{source}, {SPREAD[0]:g} to {SPREAD[1]:g} of their solutions",
    )


def mixed_lengths(lengths: Sequence[Lengths], shares: Sequence[int]) -> Lengths:
    """Return the mean lengths of several environments, by their shares of a batch."""

    def mean(figures: Iterable[float]) -> float:
        return sum(f * n for f, n in zip(figures, shares, strict=True)) / sum(shares)

    return Lengths(
        prompt=mean(entry.prompt for entry in lengths),
        between=mean(entry.between for entry in lengths),
        response=(
            mean(entry.response[0] for entry in lengths),
            mean(entry.response[1] for entry in lengths),
        ),
        turns=mean(entry.turns for entry in lengths),
        source="; ".join(dict.fromkeys(entry.source for entry in lengths)),
    )


def _response(demonstration: Demonstration, count: TokenCounter) -> int:
    """Return the tokens of a response and its end."""
    message = {"role": "assistant", "content": demonstration.response}
    return max(1, count([message]) - count([{**message, "content": ""}])) + 1


def _counting(config: Config, texts: Sequence[str]) -> tuple[TokenCounter, str]:
    """Return what counts the tokens of messages, and how in words.

    Raises:
        ConfigError: the model is here, and a run would refuse its tokenizer or chat template.
    """
    paths = [path for path in (config.tokenizer.path, config.model.path) if path is not None]
    is_here = all(Path(path).is_dir() for path in paths) and not config.reward_model.num_epochs
    try:
        tokenizer = load_tokenizer(config, texts)
        if config.model.path is not None:
            load_config(config.model.path)
        is_here = not config.reward_model.num_epochs
        chat = load_chat(config, tokenizer, env=config.env.id)
    except ConfigError:
        if is_here:
            raise

        def guessed(messages: Messages) -> int:
            return sum(
                TOKENS_AROUND_MESSAGE + len(str(message["content"])) // CHARACTERS_PER_TOKEN
                for message in messages
            )

        return guessed, f"at {CHARACTERS_PER_TOKEN} characters a token"
    return lambda messages: len(chat.prompt_ids(messages)), "in tokens"
