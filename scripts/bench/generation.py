"""Tokens per CPU second of the default generator against transformers' `generate`.

Both write with the same fresh Llama of 4.2 M parameters (float32, one thread, temperature 1, the
log-probability of each token), in turns. Lengths are the quantiles of a geometric distribution of
mean 64, at most 192: `generate` stops each row at its length, and computes it to the end.

Run: OMP_NUM_THREADS=1 python -m scripts.bench.generation --repeats 5
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.transformers import TransformersGenerator
from trainers.models.causal_lm import CausalPolicy

VOCAB, PROMPT, MEAN, MOST = 4096, 32, 64, 192
SHAPES = (("uniform", 64), ("ragged", 16), ("ragged", 64), ("ragged", 256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One shape as measured: medians of tokens per CPU second, and of their ratios by turn.

    Attributes:
        name: shape and number of rows.
        tokens: tokens of all responses.
        ours: tokens per CPU second of the default generator.
        peer: those of `generate`.
        ratios: of each turn.
    """

    name: str
    tokens: int
    ours: float
    peer: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)


class _Ends(StoppingCriteria):
    """Stops each row at its length."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = torch.tensor(lengths) + PROMPT

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ANN401 - theirs
        del scores
        return self._lengths <= input_ids.shape[1]


def fresh_model() -> PreTrainedModel:
    """Return the Llama that writes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def response_lengths(shape: str, rows: int) -> list[int]:
    """Return the tokens of each row's response."""
    if shape == "uniform":
        return [MEAN] * rows
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1)).tolist()
    going = math.log(1 - 1 / MEAN)
    return [min(MOST, 1 + int(math.log(1 - (i + 0.5) / rows) / going)) for i in order]


def write_ours(
    generator: TransformersGenerator, prompts: list[list[int]], lengths: list[int]
) -> None:
    """Write with the default generator."""
    requests = [
        Request(token_ids=prompt, index=i, max_new_tokens=length)
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    generator.generate(requests, Sampling())


@torch.no_grad()
def write_peer(model: Any, prompts: list[list[int]], lengths: list[int]) -> None:  # noqa: ANN401
    """Write with `generate`, and read the log-probability of each token."""
    ids = torch.tensor(prompts)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(lengths),
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
        stopping_criteria=StoppingCriteriaList([_Ends(lengths)]),
    )
    model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def rows(repeats: int = 5) -> Iterator[Row]:
    """Measure every shape in turns, `repeats` times after one turn that does not count."""
    torch.set_num_threads(1)
    model = fresh_model()
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    generator = TransformersGenerator(
        GeneratorParts(policy=policy, eos_token_ids=(), pad_token_id=0, batch_size=256)
    )
    for shape, count in SHAPES:
        lengths = response_lengths(shape, count)
        chance = torch.Generator().manual_seed(2)
        prompts = torch.randint(1, VOCAB, (count, PROMPT), generator=chance).tolist()
        turns = []
        for _ in range(repeats + 1):
            ours = _seconds(lambda: write_ours(generator, prompts, lengths))  # noqa: B023
            peer = _seconds(lambda: write_peer(model, prompts, lengths))  # noqa: B023
            turns.append((ours, peer))
        kept = turns[1:]
        tokens = sum(lengths)
        yield Row(
            name=f"{shape}, {count} rows",
            tokens=tokens,
            ours=statistics.median(tokens / ours for ours, _ in kept),
            peer=statistics.median(tokens / peer for _, peer in kept),
            ratios=tuple(peer / ours for ours, peer in kept),
        )


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    write = sys.stdout.write
    write("| shape | tokens | ours, tokens / CPU s | `generate` | ratio | spread |\n")
    write("| --- | --- | --- | --- | --- | --- |\n")
    for row in rows(parser.parse_args().repeats):
        spread = f"{min(row.ratios):.2f}-{max(row.ratios):.2f}"
        write(
            f"| {row.name} | {row.tokens} | {row.ours:.0f} | {row.peer:.0f} | {row.ratio:.2f} | "
            f"{spread} |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
