"""The reward model stage: classes by cross-entropy, pairs of responses by Bradley-Terry.

    classes      loss = -(1/N) sum_i w(c_i) log softmax(z_i)[c_i]
    preferences  loss = -(1/N) sum_i log sigmoid(r(chosen_i) - r(rejected_i) - margin_i)

N is the number of rows of a step over all ranks, so the gradient does not depend on how rows are
split into micro-batches or over ranks. `train` is a generator of metrics, as `sft.train` is, and
does no I/O; its step number is all it remembers.

Shapes: B rows, R texts of a row (1, or chosen and rejected), L tokens, K labels.
Source of the pairs' loss: Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1; the
margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from trainers.backends.base import Engine
from trainers.batch import Metrics
from trainers.config import Config
from trainers.distributed.collectives import World, global_max, global_sum
from trainers.errors import NonFiniteError
from trainers.functional.calibration import NUM_BINS, calibration_error, reliability
from trainers.functional.packing import packed
from trainers.supervised.preference_data import Example
from trainers.supervised.schedule import num_steps, rate, rows_of_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
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

    def to(self, device: torch.device) -> "Batch":
        """Return a copy on `device`."""
        return Batch(
            tokens=self.tokens.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
            margins=self.margins.to(device),
            weights=self.weights.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """What does not change over a run.

    Attributes:
        config: settings.
        world: this process among its peers.
        pad_token_id: fills rows up.
        class_weights: of each class in the loss; empty for pairs.
    """

    config: Config
    world: World
    pad_token_id: int
    class_weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How well rows are judged.

    Attributes:
        num_rows: how many.
        loss: mean, in nats a row, unweighted and without margins.
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


def class_weights(examples: Sequence[Example], num_classes: int, kind: str) -> tuple[float, ...]:
    """Return a weight a class: 1, or where balanced N / (K N_k), whose mean over rows is 1 too."""
    counts = Counter(one.label for one in examples)
    if kind == "none":
        return (1.0,) * num_classes
    return tuple(len(examples) / (num_classes * counts[number]) for number in range(num_classes))


def baseline(learned: Sequence[Example], judged: Sequence[Example]) -> float:
    """Return the accuracy on `judged` of the best rule on `learned` that reads no text.

    Classes: always the most frequent one. Pairs: always the longer response, or always the
    shorter one; equally long ones count half.
    """
    if len(learned[0].texts) == 1:
        most = Counter(one.label for one in learned).most_common(1)[0][0]
        return sum(one.label == most for one in judged) / len(judged)
    shares = []
    for rows in (learned, judged):
        longer = [len(one.texts[0]) - len(one.texts[1]) for one in rows]
        shares.append(sum((by > 0) + 0.5 * (by == 0) for by in longer) / len(rows))
    return shares[1] if shares[0] >= 0.5 else 1.0 - shares[1]


def collate(examples: Sequence[Example], judging: Judging) -> Batch:
    """Pad rows on the right to one shape."""
    texts = [text for column in zip(*(one.texts for one in examples), strict=True)
             for text in column]  # fmt: skip
    tokens = torch.full((len(texts), max(map(len, texts))), judging.pad_token_id)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = True
    weights = [
        judging.class_weights[one.label] if judging.class_weights else 1.0 for one in examples
    ]
    return Batch(
        tokens=tokens,
        attention_mask=mask,
        labels=torch.tensor([one.label for one in examples]),
        margins=torch.tensor([one.margin for one in examples], dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
    )


def micro_batches(
    examples: Sequence[Example], judging: Judging, device: torch.device
) -> list[tuple[list[int], Batch]]:
    """Group rows by token budget, into the same number on every rank.

    Returns:
        Row numbers of each group, and the group; blank ones, of no weight, fill up.
    """
    budget = judging.config.backend.micro_batch_tokens
    widths = [[0, len(one.texts) * max(map(len, one.texts))] for one in examples]
    groups = [] if not widths else packed(torch.tensor(widths), budget)
    parts = [(group.tolist(), collate([examples[i] for i in group.tolist()], judging))
             for group in groups]  # fmt: skip
    number = int(global_max(torch.tensor(max(len(parts), 1), device=device)))
    texts = 1 if judging.class_weights else 2
    blank = collate([Example(texts=((judging.pad_token_id,),) * texts)], judging)
    blank = replace(blank, weights=torch.zeros_like(blank.weights))
    parts += [([], blank)] * (number - len(parts))
    return [(rows, batch.to(device)) for rows, batch in parts]


def losses(logits: Tensor, batch: Batch) -> Tensor:
    """Return the weighted loss [B] of logits [R * B, K]."""
    if len(logits) == len(batch.labels):
        loss = functional.cross_entropy(logits, batch.labels, reduction="none")
    else:
        chosen, rejected = logits.squeeze(1).chunk(2)
        loss = bradley_terry(chosen, rejected, batch.margins)
    return loss * batch.weights


def judgements(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, confidence, correct), each [B], of logits [R * B, K], margins left out."""
    if len(logits) == len(batch.labels):
        confidence, said = logits.softmax(1).max(1)
        loss = functional.cross_entropy(logits, batch.labels, reduction="none")
        return loss, confidence, (said == batch.labels).float()
    chosen, rejected = logits.squeeze(1).chunk(2)
    right = torch.sigmoid(chosen - rejected)
    correct = (chosen > rejected).float() + 0.5 * (chosen == rejected)
    loss = bradley_terry(chosen, rejected, torch.zeros_like(chosen))
    return loss, torch.maximum(right, 1.0 - right), correct


def update(engine: Engine, examples: Sequence[Example], judging: Judging) -> Metrics:
    """Take one optimizer step on this rank's share of a batch.

    Returns:
        Loss in nats a row, accuracy and gradient norm, over all ranks.

    Raises:
        NonFiniteError: on every rank, before a weight is changed.
    """
    batches = micro_batches(examples, judging, engine.device)
    count = float(global_sum(torch.tensor(float(len(examples)), device=engine.device)))
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for number, (rows, batch) in enumerate(batches, start=1):
        logits = engine.forward(batch.tokens, batch.attention_mask, last=number == len(batches))
        loss = losses(logits, batch).sum() / count
        engine.backward(loss)
        correct = judgements(logits.detach(), batch)[2].sum() if rows else loss.new_zeros(())
        sums += torch.stack([loss.detach().double(), correct.double() / count])
    total, accuracy = global_sum(sums).tolist()
    if not math.isfinite(total):
        raise NonFiniteError(
            f"the loss of the reward model is not finite ({total}); no weight was changed. Often "
            "the rate is too high: lower --reward-model.learning-rate."
        )
    norm = engine.clip()
    engine.step()
    return Metrics.scalars(
        {
            "reward_model/loss": total,
            "reward_model/accuracy": accuracy,
            "reward_model/grad_norm": norm,
        }
    )


@torch.no_grad()
def judge(
    engine: Engine, examples: Sequence[Example], learned: Sequence[Example], judging: Judging
) -> Verdict:
    """Judge rows that every rank has, shared among the ranks.

    Args:
        engine: of the reward model.
        examples: what is judged; not empty.
        learned: what the baseline is made of.
        judging: of the run.
    """
    world = judging.world
    mine = list(examples[world.rank :: world.size])
    sums = torch.zeros(3 * NUM_BINS + 1, dtype=torch.float64, device=engine.device)
    for rows, batch in micro_batches(mine, judging, engine.device):
        logits = engine.forward(batch.tokens, batch.attention_mask)
        if rows:
            loss, confidence, correct = judgements(logits, batch)
            sums[0] += loss.double().sum()
            sums[1:] += reliability(confidence, correct).flatten()
    sums = global_sum(sums).cpu()
    bins = sums[1:].reshape(NUM_BINS, 3)
    return Verdict(
        num_rows=len(examples),
        loss=float(sums[0]) / len(examples),
        accuracy=float(bins[:, 2].sum()) / len(examples),
        baseline=baseline(learned, examples),
        calibration_error=calibration_error(bins),
        bins=tuple((int(n), sure / n, right / n) for n, sure, right in bins.tolist() if n),
    )


def train(
    engine: Engine,
    examples: Sequence[Example],
    judging: Judging,
    *,
    held_out: Sequence[Example] = (),
    start: int = 0,
) -> Iterator[Metrics]:
    """Learn to judge, one optimizer step at a time.

    Args:
        engine: a `Judge` and its optimizer.
        examples: what is learned from, the same on every rank.
        judging: of the run.
        held_out: rows judged at the end of each epoch.
        start: steps taken already, by the run this one continues.

    Yields:
        The metrics of each step.
    """
    stage, world = judging.config.reward_model, judging.world
    total = num_steps(len(examples), stage)
    each_epoch = total // max(stage.num_epochs, 1)
    for step in range(start, total):
        now = rate(step, total, stage)
        engine.set_learning_rate(now)
        picked = rows_of_step(step, len(examples), stage, judging.config.run.seed)
        rows = picked[world.rank :: world.size]
        metrics = update(engine, [examples[row] for row in rows], judging)
        figures = {"reward_model/step": step + 1.0, "reward_model/lr": now}
        if held_out and (step + 1) % each_epoch == 0:
            verdict = judge(engine, held_out, examples, judging)
            figures |= verdict.metrics("holdout")
        yield metrics | Metrics.scalars(figures)
