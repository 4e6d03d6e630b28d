"""The contract of a generator, and the records it takes and gives.

To add one: `NAME.py` in this folder with `check_engine(config)`, which refuses settings before
weights load, and `make_generator(parts)`; and its name in the `Literal` of `generation.engine`
(`config/text.py`). `runner/generators.py` checks and makes the one that is set.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from llmgym.messages import FinishReason
from trainers.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, and the random stream its response is drawn from.

    Attributes:
        token_ids: the prompt.
        index: sequence index, counted over all ranks.
        position: actions this sequence has already sampled in earlier turns.
        max_new_tokens: longest response.
    """

    token_ids: Sequence[int]
    index: int
    position: int = 0
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What was sampled: ids (an end token included) and the log-probability of each.

    `logprobs` are natural, of the tempered distribution that was sampled from.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw. Training uses the defaults but for temperature, seed and iteration.

    Attributes:
        temperature: divides the logits.
        top_p: nucleus; evaluation only.
        top_k: most likely tokens, 0 for all; evaluation only.
        greedy: take the most likely token; nothing is drawn.
        seed: of the run.
        iteration: of `ppo.train`, so that each draws anew.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    seed: int = 0
    iteration: int = 0


WeightSource = Literal["shared", "copied", "sharded"]
"""Weights are the trainer's own, used in place; a copy, taken once a rollout; or lie on all ranks,
each layer's gathered as it runs, so that ranks take every step together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorParts:
    """What a generator is made of.

    Attributes:
        policy: the policy, or a copy of it to be filled: a module with a transformers model.
        eos_token_ids: each of them ends a response, and is its last token.
        pad_token_id: fills prompts up on the left; what it is never matters.
        batch_size: maximum number of rows written together.
        autocast: the type of the trainer's forward, where it is not that of the weights.
        weights: how the policy comes by them.
        cached: keep what the model has read; else it reads the whole row again for every token,
            which is slow and works for every causal model.
        config: of the run; engines in another process read it.
        tokenizer: digest of the tokenizer.
        max_tokens: longest row of the run, prompt and response, or None.
    """

    policy: Any
    eos_token_ids: Sequence[int]
    pad_token_id: int
    batch_size: int
    autocast: torch.dtype | None = None
    weights: WeightSource = "shared"
    cached: bool = True
    config: Config | None = None
    tokenizer: str = ""
    max_tokens: int | None = None


class Generator(ABC):
    """Writes responses with the weights of one policy version."""

    exact: bool
    """True where draws and log-probabilities are those of the trainer's own forward."""

    @property
    @abstractmethod
    def policy_version(self) -> int:
        """The version of the weights in use."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Write one response to each request, in the order of the requests.

        Raises:
            GenerationError: the logits of the first step are not finite.
        """

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take weights, (name, tensor) one at a time, and their version."""

    @abstractmethod
    def sleep(self) -> None:
        """Give back the memory that is only needed while generating."""

    def stop(self) -> None:  # noqa: B027 - an engine that ends its responses soon needs none
        """Let `generate`, which runs in another thread, end soon, and every later call at once.

        It returns what it has, which nobody reads, or raises `RolloutStoppedError` on every rank.
        """

    def describe(self) -> str:
        """Return what a run says of its generator in the header; empty: nothing."""
        return ""

    def close(self) -> None:
        """End what the generator has started; the last call."""
        return
