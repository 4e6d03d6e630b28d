"""Shapes of work: a model, prompts, and how long each response is. Standard library only.

Nothing ends by itself, because weights are random: the length of each response is written here,
and every side is made to end there. `geometric` lengths are the quantiles of that distribution at
(i + 1/2) / n, in an order that a fixed seed shuffles, so that any number of rows has its mean.
"""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

DIGITS = "0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Sizes of a Llama with random weights and tied embeddings; or the folder of one that exists.

    Attributes:
        kv_heads: heads of keys and values; 0: as many as `heads`.
        path: a folder below the repository, whose sizes the others are; empty: made from them.
        around: tokens that its chat template puts around a prompt.
    """

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 0
    intermediate: int = 688
    vocab: int = 4096
    path: str = ""
    around: int = 3

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of a layer."""
        shared = self.hidden * self.hidden * (self.kv_heads or self.heads) // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * shared
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Numbers that are learned, tied ones once."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.layers * self.layer_weights + self.hidden * self.vocab + norms

    @property
    def name(self) -> str:
        """The name of its folder below runs/bench/models."""
        sizes = (self.hidden, self.layers, self.heads, self.kv_heads, self.intermediate, self.vocab)
        return "-".join(map(str, sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What an iteration is.

    Attributes:
        num_prompts: different prompts.
        group: responses to each.
        prompt_tokens: tokens of each prompt.
        mean_tokens: mean of the geometric distribution that responses end by; at `max_tokens`
            every response has that many.
        max_tokens: longest response.
        dtype: type of matrix products.
        critic: as `ppo.critic`.
        advantage: as `ppo.advantage`.
        epochs: passes over the rollout, of one minibatch each.
    """

    model: Model = field(default_factory=Model)
    num_prompts: int = 64
    group: int = 1
    prompt_tokens: int = 32
    mean_tokens: int = 64
    max_tokens: int = 192
    dtype: Literal["float32", "bfloat16"] = "float32"
    critic: Literal["separate", "shared", "none"] = "separate"
    advantage: Literal["gae", "grpo", "rloo"] = "gae"
    epochs: int = 4

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Shape":
        """Return the shape that `settings` of `as_json` describe."""
        return cls(**{**settings, "model": Model(**settings["model"])})

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch where a trainer counts rows: all, or a power of two of them.

        As many as hold no more logits than the 64 rows of the main shape, so that memory suffices.
        """
        most = 64 * (32 + 192) * 4096 / (self.prompt_tokens + self.max_tokens) / self.model.vocab
        rows = self.rows
        while rows > most and rows % 2 == 0:
            rows //= 2
        return rows

    def as_json(self, **more: Any) -> str:
        """Return all of it as JSON, with `more` for the worker."""
        return json.dumps({**asdict(self), **more}, sort_keys=True)

    @property
    def rows(self) -> int:
        """Responses of an iteration."""
        return self.num_prompts * self.group

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response, the last one included, in the order of the rows."""
        if self.mean_tokens >= self.max_tokens:
            return [self.max_tokens] * self.rows
        stay = math.log(1.0 - 1.0 / self.mean_tokens)
        quantiles = ((i + 0.5) / self.rows for i in range(self.rows))
        drawn = [math.ceil(math.log(1.0 - quantile) / stay) for quantile in quantiles]
        lengths = [min(max(length, 1), self.max_tokens) for length in drawn]
        random.Random(0).shuffle(lengths)
        return lengths

    def prompt(self, number: int) -> str:
        """Return a prompt of `prompt_tokens`: digits, each a token of its own."""
        rng = random.Random(number)
        return "".join(rng.choices(DIGITS, k=self.prompt_tokens - self.model.around))

    def changed(self, **changes: Any) -> "Shape":
        """Return the shape with some fields changed; `model` may be a mapping of its fields."""
        model = changes.pop("model", {})
        made = replace(self.model, **model) if isinstance(model, Mapping) else model
        return replace(self, model=made, **changes)


def forward_flops(shape: Shape, *, head: bool) -> float:
    """Return the useful floating-point operations of one pass over all rows.

        2 * weights * tokens + 4 * width * pairs of attention + 2 * width * vocabulary * responses

    No padding; a token attends to itself and to those before it; logits exist where a response
    token is predicted. A prompt is counted once for all responses to it.

    Args:
        shape: of the iteration.
        head: with the logits; a value head is left out, being one column.
    """
    model, prompt = shape.model, shape.prompt_tokens
    tokens = shape.num_prompts * prompt + sum(shape.lengths)
    pairs = shape.num_prompts * prompt * (prompt + 1) / 2
    pairs += sum(length * prompt + length * (length + 1) / 2 for length in shape.lengths)
    body = model.layers * (2.0 * model.layer_weights * tokens + 4.0 * model.hidden * pairs)
    logits = 2.0 * model.hidden * model.vocab * sum(shape.lengths) if head else 0.0
    return body + logits


def update_flops(shape: Shape) -> float:
    """Return the useful operations of all epochs: forward, and twice that backward."""
    trunks = forward_flops(shape, head=True)
    if shape.critic == "separate":
        trunks += forward_flops(shape, head=False)
    return 3.0 * shape.epochs * trunks
