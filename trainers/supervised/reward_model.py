"""The loss of the reward model: classes by cross-entropy, pairs of responses by Bradley-Terry.

    classes      loss = -(1/N) sum_i w(c_i) log softmax(z_i)[c_i]
    preferences  loss = -(1/N) sum_i log sigmoid(r(chosen_i) - r(rejected_i) - margin_i)

N is the number of rows of a step over all ranks, so the gradient does not depend on how rows are
split into micro-batches or over ranks.

Shapes: B rows, R texts of a row (1, or chosen and rejected), L tokens, K labels.
Source of the pairs' loss: Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1; the
margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from trainers.backends.base import Engine
from trainers.batch import Metrics
from trainers.distributed.collectives import global_sum
from trainers.functional.calibration import NUM_BINS, calibration_error, reliability
from trainers.functional.row_groups import padded_groups
from trainers.supervised.fit import Loss, over_ranks
from trainers.supervised.preference_data import RewardModelExample

HOLDOUT = "holdout"
"""The part of the metrics of held-out rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelBatch:
    """Rows padded on the right to one shape.

    Attributes:
        tokens: [R * B, L] ids; first all first texts, then all second ones.
        attention_mask: [R * B, L] True on real tokens.
        labels: [B] class of a row.
        margins: [B] of a pair.
        weights: [B] of a row in the loss; 0 of a blank one.
    """

    tokens: Tensor
    attention_mask: Tensor
    labels: Tensor
    margins: Tensor
    weights: Tensor

    @property
    def is_blank(self) -> bool:
        """True where no row counts."""
        return not bool(self.weights.any())

    def to(self, device: torch.device) -> "RewardModelBatch":
        """Return a copy on `device`."""
        return RewardModelBatch(
            tokens=self.tokens.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
            margins=self.margins.to(device),
            weights=self.weights.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierMetrics:
    """How well rows are judged.

    Attributes:
        num_rows: how many.
        loss: mean, in nats per row, unweighted and without margins.
        accuracy: share that is right; a tie of two responses counts half.
        baseline: accuracy of a judge that reads no text, see `baseline`.
        calibration_error: see `functional/calibration.py`.
        bins: of confidence: count, mean confidence, accuracy; empty ones left out.
    """

    num_rows: int
    loss: float
    accuracy: float
    baseline: float
    calibration_error: float
    bins: tuple[tuple[int, float, float], ...]

    def metrics(self, part: str) -> dict[str, float]:
        """Return the figures by metric key; `part` is holdout or test."""
        return {
            f"reward_model/{part}/loss": self.loss,
            f"reward_model/{part}/accuracy": self.accuracy,
            f"reward_model/{part}/baseline": self.baseline,
            f"reward_model/{part}/calibration_error": self.calibration_error,
        }


def bradley_terry(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
    """Return -log sigmoid(chosen - rejected - margins) [B] of scores [B] and margins [B]."""
    return -functional.logsigmoid(chosen - rejected - margins)


def class_weights(
    examples: Sequence[RewardModelExample], num_classes: int, kind: str
) -> tuple[float, ...]:
    """Return a weight a class: 1, or where balanced N / (K N_k), whose mean over rows is 1 too."""
    counts = Counter(example.label for example in examples)
    if kind == "none":
        return (1.0,) * num_classes
    return tuple(len(examples) / (num_classes * counts[number]) for number in range(num_classes))


def baseline(learned: Sequence[RewardModelExample], judged: Sequence[RewardModelExample]) -> float:
    """Return the accuracy on `judged` of the best rule on `learned` that reads no text.

    Classes: always the most frequent one. Pairs: always the longer response, or always the
    shorter one; equally long ones count half.
    """
    if len(learned[0].texts) == 1:
        most = Counter(example.label for example in learned).most_common(1)[0][0]
        return sum(example.label == most for example in judged) / len(judged)
    shares = []
    for rows in (learned, judged):
        longer = [len(row.texts[0]) - len(row.texts[1]) for row in rows]
        shares.append(sum((by > 0) + 0.5 * (by == 0) for by in longer) / len(rows))
    return shares[1] if shares[0] >= 0.5 else 1.0 - shares[1]


def pad_right(
    examples: Sequence[RewardModelExample], *, pad_token_id: int, weights: Sequence[float] = ()
) -> RewardModelBatch:
    """Pad rows on the right to one shape; `weights` are those of the classes, none of pairs."""
    texts = [text for column in zip(*(example.texts for example in examples), strict=True)
             for text in column]  # fmt: skip
    tokens = torch.full((len(texts), max(map(len, texts))), pad_token_id)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = True
    of_rows = [weights[example.label] if weights else 1.0 for example in examples]
    return RewardModelBatch(
        tokens=tokens,
        attention_mask=mask,
        labels=torch.tensor([example.label for example in examples]),
        margins=torch.tensor([example.margin for example in examples], dtype=torch.float32),
        weights=torch.tensor(of_rows, dtype=torch.float32),
    )


def losses(logits: Tensor, batch: RewardModelBatch) -> Tensor:
    """Return the weighted loss [B] of logits [R * B, K]."""
    if len(logits) == len(batch.labels):
        loss = functional.cross_entropy(logits, batch.labels, reduction="none")
    else:
        chosen, rejected = logits.squeeze(1).chunk(2)
        loss = bradley_terry(chosen, rejected, batch.margins)
    return loss * batch.weights


def predictions(logits: Tensor, batch: RewardModelBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, confidence, correct), each [B], of logits [R * B, K], margins left out."""
    if len(logits) == len(batch.labels):
        confidence, predicted = logits.softmax(1).max(1)
        loss = functional.cross_entropy(logits, batch.labels, reduction="none")
        return loss, confidence, (predicted == batch.labels).float()
    chosen, rejected = logits.squeeze(1).chunk(2)
    right = torch.sigmoid(chosen - rejected)
    correct = (chosen > rejected).float() + 0.5 * (chosen == rejected)
    loss = bradley_terry(chosen, rejected, torch.zeros_like(chosen))
    return loss, torch.maximum(right, 1.0 - right), correct


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelLoss(Loss[RewardModelExample, RewardModelBatch]):
    """Cross-entropy of classes, or Bradley-Terry of pairs, in nats per row.

    The engine holds a `SequenceClassifier`.

    Attributes:
        pad_token_id: fills rows up.
        class_weights: of each class in the loss; empty for pairs.
    """

    stage = "reward_model"
    held_out_loss = f"reward_model/{HOLDOUT}/loss"
    pad_token_id: int
    class_weights: tuple[float, ...] = ()

    def count(self, rows: Sequence[RewardModelExample]) -> int:
        """Return the number of rows."""
        return len(rows)

    def _collated(self, rows: Sequence[RewardModelExample]) -> RewardModelBatch:
        return pad_right(rows, pad_token_id=self.pad_token_id, weights=self.class_weights)

    def batches(self, rows: Sequence[RewardModelExample]) -> list[RewardModelBatch]:
        """Group rows by the token budget, on the device."""
        if not rows:
            return []
        widths = [[0, len(row.texts) * max(map(len, row.texts))] for row in rows]
        groups = padded_groups(torch.tensor(widths), self.config.backend.micro_batch_tokens)
        return [
            self._collated([rows[i] for i in group.tolist()]).to(self.device) for group in groups
        ]

    def blank(self) -> RewardModelBatch:
        """Return a row of no weight."""
        texts = 1 if self.class_weights else 2
        blank = self._collated([RewardModelExample(texts=((self.pad_token_id,),) * texts)])
        return replace(blank, weights=torch.zeros_like(blank.weights)).to(self.device)

    def sums(self, engine: Engine, batch: RewardModelBatch, *, last: bool) -> dict[str, Tensor]:
        """Return the summed loss, and the number of rows that are judged rightly."""
        logits = engine.forward(batch.tokens, batch.attention_mask, last=last)
        correct = predictions(logits.detach(), batch)[2] * (batch.weights > 0)
        return {"loss": losses(logits, batch).sum(), "accuracy": correct.double().sum()}

    def measure(
        self,
        engine: Engine,
        rows: Sequence[RewardModelExample],
        learned: Sequence[RewardModelExample],
    ) -> Metrics:
        """Return the figures of rows kept back."""
        return Metrics.scalars(self.judge(engine, rows, learned).metrics(HOLDOUT))

    @torch.no_grad()
    def judge(
        self,
        engine: Engine,
        rows: Sequence[RewardModelExample],
        learned: Sequence[RewardModelExample],
    ) -> ClassifierMetrics:
        """Judge rows that every rank has, shared among the ranks.

        Args:
            engine: of the reward model.
            rows: what is judged; not empty.
            learned: what the baseline is made of.
        """
        mine = self.batches(rows[self.world.rank :: self.world.size])
        sums = torch.zeros(3 * NUM_BINS + 1, dtype=torch.float64, device=self.device)
        for batch in over_ranks(mine, self.blank(), self.device):
            logits = engine.forward(batch.tokens, batch.attention_mask)
            if not batch.is_blank:
                loss, confidence, correct = predictions(logits, batch)
                sums[0] += loss.double().sum()
                sums[1:] += reliability(confidence, correct).flatten()
        sums = global_sum(sums).cpu()
        bins = sums[1:].reshape(NUM_BINS, 3)
        return ClassifierMetrics(
            num_rows=len(rows),
            loss=float(sums[0]) / len(rows),
            accuracy=float(bins[:, 2].sum()) / len(rows),
            baseline=baseline(learned, rows),
            calibration_error=calibration_error(bins),
            bins=tuple((int(n), sure / n, right / n) for n, sure, right in bins.tolist() if n),
        )
