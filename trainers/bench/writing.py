"""A loaded model that writes a fixed number of tokens, with the time of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol, final

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from trainers.compress.timing import clock
from trainers.errors import ConfigError
from trainers.generation.llama import LlamaRows, agrees, has_layout
from trainers.models.int8 import Int8Linear, is_int8, quantize_model
from trainers.models.loading import load_causal_lm

Forward = Literal["llmgym", "transformers"]
NumberType = Literal["float32", "bfloat16", "int8"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WritingTimes:
    """Seconds of one call.

    Attributes:
        first: until the first token of every row, tokenization included.
        steps: until each further token.
        tokens: [B][n] what was written.
    """

    first: float
    steps: list[float]
    tokens: list[list[int]] = field(default_factory=list)

    @property
    def per_token(self) -> float:
        """Mean seconds of a further token."""
        return sum(self.steps) / len(self.steps)

    @property
    def total(self) -> float:
        """Seconds of the call."""
        return self.first + sum(self.steps)


class TimedRows(Protocol):
    """What writes rows: `trainers/generation/llama.py`, or transformers."""

    logits: Tensor

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read prompts."""
        ...

    def advance(self, tokens: Tensor, live: Tensor) -> None:
        """Append one token [B] to every row."""
        ...

    def keep(self, live: Tensor) -> object:
        """Drop rows that are not live [B]."""
        ...


@final
class PlainRows:
    """Rows of one length, written by transformers' own forward and cache.

    Args:
        model: any causal language model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._cache = model, DynamicCache(config=model.config)
        self.logits = torch.empty(0)

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read prompts of one length."""
        self._cache = DynamicCache(config=self._model.config)
        self._read(torch.tensor(prompts))

    def advance(self, tokens: Tensor, live: Tensor) -> None:
        """Append one token [B] to every row; all are live [B]."""
        del live
        self._read(tokens[:, None])

    def keep(self, live: Tensor) -> None:
        """Forget all rows [B]."""
        del live

    def _read(self, ids: Tensor) -> None:
        made = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self.logits = made.logits[:, -1]


def load_as(source: str, number_type: NumberType) -> PreTrainedModel:
    """Load a model to write with weights of a type; an int8 folder stays int8.

    Raises:
        ConfigError: it does not load, has int8 weights and another type is named, or the processor
            has no int8 kernels.
    """
    if is_int8(source) and number_type != "int8":
        raise ConfigError(f"{source} holds int8 weights; it is not measured in {number_type}.")
    model = load_causal_lm(source).eval()
    if number_type == "bfloat16":
        return model.bfloat16()
    if number_type == "int8" and not is_int8(source):
        return quantize_model(model)
    return model


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of a model's weights in memory; tied ones count once."""
    packed = [part for part in model.modules() if isinstance(part, Int8Linear)]
    plain = sum(weight.numel() * weight.itemsize for weight in model.parameters())
    return plain + sum(part.out_features * (part.in_features + 4) for part in packed)


@final
class ModelWriter:
    """Writes and takes the time.

    Args:
        model: in eval mode.
        tokenizer: of the texts.
        rows: most rows of a call.
        tokens: most tokens of a row, prompt and response.
        forward: see `BenchSettings`.

    Attributes:
        forward: what writes: "llmgym", or "transformers" where the model is not of its families.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        rows: int,
        tokens: int,
        forward: Forward,
    ) -> None:
        self._tokenizer = tokenizer
        self._rows: TimedRows = PlainRows(model)
        self.forward: Forward = "transformers"
        if forward == "llmgym" and has_layout(model) and agrees(model):
            self.forward = "llmgym"
            self._rows = LlamaRows(model, rows=rows, tokens=tokens, dtype=model.dtype)

    @torch.no_grad()
    def write(self, texts: Sequence[str], new_tokens: int) -> WritingTimes:
        """Answer texts together with `new_tokens` tokens each, the most likely ones.

        No end token ends a row. Texts of several lengths are cut to the shortest.
        """
        now = clock()
        began = now()
        ids = [self._tokenizer(text)["input_ids"] for text in texts]
        length = min(map(len, ids))
        self._rows.add(sorted(row[:length] for row in ids))
        token = self._rows.logits.argmax(-1)
        times, tokens = [now()], [token]
        live = torch.ones(len(texts), dtype=torch.bool)
        for _ in range(new_tokens - 1):
            self._rows.advance(token, live)
            token = self._rows.logits.argmax(-1)
            times.append(now())
            tokens.append(token)
        self._rows.keep(~live)
        steps = [after - before for before, after in pairwise(times)]
        written = torch.stack(tokens, 1).tolist()
        return WritingTimes(first=times[0] - began, steps=steps, tokens=written)
