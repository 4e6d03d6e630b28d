"""The end of each response, planted in transformers' `generate`: a rule on its logits.

Row i ends with the end token as its token number `lengths[i]`, which nothing else draws; a row of
the maximum has none. The padding token is never drawn either, because trainers read padding by it.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from scripts.bench.shapes import Shape


class PlantedEnds(LogitsProcessor):
    """Lets only the end token be drawn where a row ends, and nowhere else.

    Args:
        lengths: tokens of each response, its end token included.
        longest: maximum of the generation, at which no end token is needed.
        eos: id of the end token.
        banned: ids that are never drawn.
    """

    def __init__(
        self, lengths: Sequence[int], *, longest: int, eos: int, banned: Sequence[int]
    ) -> None:
        self._lengths = torch.tensor(lengths)
        self._longest = longest
        self._eos = eos
        self._banned = [eos, *banned]
        self._prompt_tokens: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [B, V] of the next token after `input_ids` [B, n]."""
        if self._prompt_tokens is None:
            self._prompt_tokens = input_ids.shape[1]
        number = input_ids.shape[1] - self._prompt_tokens + 1
        scores = scores.clone()
        scores[:, self._banned] = -torch.inf
        if number < self._longest:
            ending = (self._lengths == number).nonzero().flatten()
            scores[ending] = -torch.inf
            scores[ending, self._eos] = 0.0
        return scores


def planted(
    generate: Callable[..., Any],
    shape: Shape,
    tokenizer: PreTrainedTokenizerFast,
    figures: dict[str, Any],
) -> Callable[..., Any]:
    """Return transformers' `generate` with the ends planted in all rows of a call.

    Args:
        generate: of a model.
        shape: says how long each row is.
        tokenizer: names the end and padding tokens.
        figures: is told the `tokens` of an iteration's responses.
    """
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(eos, int)
    assert isinstance(pad, int)
    lengths, turn = shape.lengths, [0]

    @wraps(generate)
    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - those of `generate`
        """Write the next rows: a trainer may call several times for one iteration."""
        prompts = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        rows = [(turn[0] + row) % len(lengths) for row in range(len(prompts))]
        turn[0] = (rows[-1] + 1) % len(lengths)
        mine = [lengths[row] for row in rows]
        ends = PlantedEnds(mine, longest=shape.max_tokens, eos=eos, banned=[pad])
        written = generate(*args, **kwargs, logits_processor=LogitsProcessorList([ends]))
        ids = written if isinstance(written, Tensor) else written.sequences
        drawn = ids[:, shape.prompt_tokens :]
        figures["tokens"] = int((drawn != pad).sum()) + (figures["tokens"] if rows[0] else 0)
        return written

    return run
