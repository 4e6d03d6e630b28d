"""Recorded drafts along a target's own greedy text: the trace of `llmgym/Speculative-v0`.

P positions, K drafted tokens, F features.
"""

import time
from collections.abc import Callable, Collection, Sequence
from statistics import median

import numpy as np
import torch
from transformers import PreTrainedModel

from llmgym.speculative.observing import DraftView
from llmgym.speculative.traces import FEATURES, Trace
from trainers.generation.base import Request, Sampling
from trainers.generation.drafting import (
    RowDrawing,
    RowPair,
    RowReader,
    fixed_length,
    logit_features,
)

REPEATS = 15
"""Measurements of each time; the median counts."""


@torch.no_grad()
def record_trace(
    target: PreTrainedModel,
    drafter: PreTrainedModel,
    requests: Sequence[Request],
    *,
    ends: Collection[int],
    longest: int = 8,
    name: str = "recorded",
) -> Trace:
    """Return the drafts along the greedy responses of the target to some requests.

    Args:
        target: the large model.
        drafter: the small one, of the same vocabulary.
        requests: prompts.
        ends: tokens that end a response.
        longest: K.
        name: of the trace.
    """
    texts = [_greedy(target, drafter, request, ends) for request in requests]
    rows = list(zip(requests, texts, strict=True))
    features = [_target_features(target, request, text) for request, text in rows]
    drafts = [_drafts(drafter, request, text, longest) for request, text in rows]
    accepted = [row for counts, _ in drafts for row in counts]
    draft_ms, verify_ms = measure_times(target, drafter, requests[0].token_ids, longest)
    return Trace(
        name=name,
        starts=np.cumsum([0, *(len(text) for text in texts)]),
        accepted=np.array(accepted),
        target=np.array([row for rows in features for row in rows], dtype=np.float32),
        draft=np.array([row for _, rows in drafts for row in rows], dtype=np.float32),
        draft_ms=draft_ms,
        verify_ms=np.array(verify_ms),
    )


def _greedy(
    target: PreTrainedModel, drafter: PreTrainedModel, request: Request, ends: Collection[int]
) -> list[int]:
    """Return the target's own response."""
    pair = RowPair(
        target=RowReader(target),
        drafter=RowReader(drafter),
        rule=fixed_length(0),
        ends=ends,
        drawing=RowDrawing(Sampling(greedy=True), request),
        view=DraftView(longest=1, draft_cost=0.0, verify_cost=0.0),
    )
    return pair.write(request).token_ids


def _target_features(
    target: PreTrainedModel, request: Request, text: Sequence[int]
) -> list[list[float]]:
    """Return the features [n, F] of the distribution behind the token before each position."""
    row = [*request.token_ids, *text]
    logits = RowReader(target).read(row)[len(request.token_ids) - 1 : len(row) - 2]
    return [[0.0] * len(FEATURES), *(logit_features(values) for values in logits)]


def _drafts(
    drafter: PreTrainedModel, request: Request, text: Sequence[int], longest: int
) -> tuple[list[int], list[list[list[float]]]]:
    """Return at each position how many drafted tokens are the text's, and features [K, F]."""
    reader, row = RowReader(drafter), list(request.token_ids)
    counts: list[int] = []
    features: list[list[list[float]]] = []
    for position in range(len(text)):
        drafts: list[int] = []
        seen: list[list[float]] = []
        for _ in range(longest):
            logits = reader.read([*row, *drafts])[-1]
            drafts.append(int(logits.argmax()))
            seen.append(logit_features(logits))
        reader.keep(len(row))
        pairs = enumerate(zip(drafts, text[position:], strict=False))
        most = min(longest, len(text) - position)
        counts.append(next((number for number, (a, b) in pairs if a != b), most))
        features.append(seen)
        row.append(text[position])
    return counts, features


@torch.no_grad()
def measure_times(
    target: PreTrainedModel, drafter: PreTrainedModel, row: Sequence[int], longest: int
) -> tuple[float, list[float]]:
    """Return milliseconds of a drafted token, and [K + 1] of the target over k + 1 tokens.

    Measured behind `row`, in turns; on one thread CPU time, else wall time.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    readers = [RowReader(drafter), RowReader(target)]
    for reader in readers:
        reader.read(row)
    tokens = [[*row, *[row[-1]] * (count + 1)] for count in range(longest + 1)]
    spent: list[list[float]] = [[] for _ in range(longest + 2)]
    for _ in range(REPEATS):
        spent[0].append(_milliseconds(readers[0], tokens[0], clock))
        for count in range(longest + 1):
            spent[count + 1].append(_milliseconds(readers[1], tokens[count], clock))
    times = [median(values) for values in spent]
    return times[0], times[1:]


def _milliseconds(reader: RowReader, row: Sequence[int], clock: Callable[[], float]) -> float:
    begin, before = reader.length, clock()
    reader.read(row)
    spent = 1000 * (clock() - before)
    reader.keep(begin)
    return spent
