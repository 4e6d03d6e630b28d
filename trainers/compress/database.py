"""Scores candidates: KL(dense || candidate) in float32 over held-out tokens, each once.

    one evaluation = 1,024 selection tokens through one candidate

Every searcher pays in evaluations of this counter; what the memo knows already is free. Candidates
are never built: see `candidates.py`. B rows, L tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainers.compress.candidates import (
    DensePass,
    Overrides,
    candidate_hidden,
    dense_pass,
    head_logits,
    summed_kl,
)
from trainers.compress.evaluation_log import Evaluated, EvaluationLog, Price
from trainers.compress.token_rows import Splits, TokenRows
from trainers.compress.units import Choice, SizePlan, dense_plan
from trainers.compress.variants import OURS, Method, WeightVariants, gram_matrices

EVALUATION_TOKENS = 1024
"""Tokens that one evaluation counts."""
BLOCK_TOKENS = 1024
"""Tokens of one pass, about; a whole row at least."""


def blocks(rows: TokenRows) -> list[TokenRows]:
    """Return rows in blocks of about `BLOCK_TOKENS`."""
    size = max(1, BLOCK_TOKENS // rows.tokens.shape[1])
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@final
class Database:
    """A dense model, its smaller weights, and the quality of every candidate seen.

    Args:
        model: the dense model, in evaluation mode; nothing of it is changed.
        splits: tokens; `report` is read by `report_kl` alone.
        log: keeps every evaluation, and has those of earlier processes; None keeps them in memory.

    Attributes:
        evaluations: those paid for so far, by earlier processes too.
        model: the dense model.
        variants: smaller weights.
    """

    def __init__(
        self, model: PreTrainedModel, splits: Splits, *, log: EvaluationLog | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self._splits = splits
        self.variants = WeightVariants(model, gram_matrices(model, splits.calibration))
        self._dense = dense_plan(self.variants.geometry)
        self._passes: dict[int, list[DensePass]] = {}
        self._log = log
        self._memo: dict[Evaluated, Price] = {} if log is None else log.read()
        self.evaluations = sum(price.evaluations for price in self._memo.values())

    @property
    def dense(self) -> SizePlan:
        """The plan that changes nothing."""
        return self._dense

    def evaluate(
        self,
        plans: Sequence[SizePlan],
        *,
        tokens: int = EVALUATION_TOKENS,
        method: Method = OURS,
    ) -> list[float]:
        """Return the mean KL to the dense model in nats per token of each plan, on *selection*.

        Args:
            plans: candidates.
            tokens: at least so many are read, in whole rows; all where there are fewer.
            method: how units are made smaller.
        """
        return [self._evaluated(plan, tokens, method) for plan in plans]

    def report_kl(self, plan: SizePlan, *, method: Method = OURS) -> float:
        """Return the mean KL of a plan on *report*: to be read when the search is over."""
        return self.report_kls([plan], method=method)[0]

    def report_kls(self, plans: Sequence[SizePlan], *, method: Method = OURS) -> list[float]:
        """Return the mean KL of plans on *report*, which is read once for all of them."""
        nats, tokens = [0.0] * len(plans), 0
        for part in blocks(self._splits.report):
            dense = dense_pass(self.model, part)
            tokens += int(part.counted.sum())
            for number, plan in enumerate(plans):
                hidden = candidate_hidden(self.model, dense, self._overrides(plan, method))
                nats[number] += summed_kl(self.model, dense, hidden)[0]
        return [value / tokens for value in nats]

    def logits(self, plan: SizePlan, rows: TokenRows, *, method: Method = OURS) -> Tensor:
        """Return the logits [B, L, V] float32 of a candidate on `rows` [B, L]."""
        hidden = candidate_hidden(
            self.model, dense_pass(self.model, rows), self._overrides(plan, method)
        )
        return head_logits(self.model, hidden)

    def sensitivities(self, choices: Sequence[Sequence[Choice]]) -> list[list[float]]:
        """Return the KL of every choice of every unit alone, all others dense."""
        kls = []
        for number, options in enumerate(choices):
            before, after = self._dense.choices[:number], self._dense.choices[number + 1 :]
            kls.append(self.evaluate([SizePlan((*before, choice, *after)) for choice in options]))
        return kls

    def tried(self, *, tokens: int = EVALUATION_TOKENS) -> dict[SizePlan, float]:
        """Return the KL of every plan evaluated on `tokens` selection tokens, with our weights."""
        return {
            key.plan: price.kl
            for key, price in self._memo.items()
            if key.tokens == tokens and key.method == OURS
        }

    def block_influences(self) -> list[float]:
        """Return 1 - cos(h_in, h_out) of every layer over *calibration*'s first block.

        Source: Men et al. 2024, ShortGPT, arXiv:2403.03853, eq. 1.
        """
        dense = dense_pass(self.model, blocks(self._splits.calibration)[0])
        states = [call.hidden for call in dense.calls] + [dense.final]
        mask, influences = dense.rows.mask, []
        for before, after in pairwise(states):
            cosines = torch.cosine_similarity(before[mask].float(), after[mask].float(), dim=-1)
            influences.append(1 - float(cosines.mean()))
        return influences

    def _evaluated(self, plan: SizePlan, tokens: int, method: Method) -> float:
        if plan == self._dense:
            return 0.0
        key = Evaluated(plan, tokens, method)
        if key not in self._memo:
            passes = self._selection(tokens)
            counted = sum(int(dense.rows.counted.sum()) for dense in passes)
            count = max(1, math.ceil(min(counted, tokens) / EVALUATION_TOKENS))
            price = Price(self._kl(passes, plan, method), count)
            if self._log is not None:
                self._log.add(key, price)
            self._memo[key] = price
            self.evaluations += count
        return self._memo[key].kl

    def _selection(self, tokens: int) -> list[DensePass]:
        if tokens not in self._passes:
            rows = self._splits.selection.first(tokens)
            self._passes[tokens] = [dense_pass(self.model, part) for part in blocks(rows)]
        return self._passes[tokens]

    def _kl(self, passes: list[DensePass], plan: SizePlan, method: Method) -> float:
        overrides = self._overrides(plan, method)
        total, count = 0.0, 0
        for dense in passes:
            hidden = candidate_hidden(self.model, dense, overrides)
            nats, tokens = summed_kl(self.model, dense, hidden)
            total, count = total + nats, count + tokens
        return total / count

    def _overrides(self, plan: SizePlan, method: Method) -> Overrides:
        overrides: dict[int, dict[str, Tensor] | None] = {}
        for unit, full in zip(self.variants.geometry.units, self._dense.choices, strict=True):
            choice = plan.of(unit)
            if choice == full:
                continue
            layer = overrides.setdefault(unit.layer, {})
            assert layer is not None
            layer |= self.variants.padded(unit, choice, method)
        gone = {n for n, (heads, mlp) in enumerate(plan.layers) if not (heads.size or mlp.size)}
        return overrides | dict.fromkeys(gone)
