"""The reward model stage: its losses, its figures, and that nothing depends on the split."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import kendalltau
from transformers import LlamaConfig, LlamaForSequenceClassification

from trainers.backends.torch import OptimizerSettings, TorchEngine
from trainers.config import BackendConfig, Config, PPOConfig, RewardModelConfig, RunConfig
from trainers.distributed.collectives import World
from trainers.errors import NonFiniteError
from trainers.models.classifier import SequenceClassifier
from trainers.supervised import fit as supervised
from trainers.supervised import reward_model
from trainers.supervised.fit import fit, over_ranks, take_step
from trainers.supervised.preference_data import RewardModelExample

VOCAB, PAD = 24, 0


def loss_of(*, budget=64, classes=0, weights=None, **settings):
    given = {"num_epochs": 2, "batch_size": 4, "learning_rate": 1e-2, **settings}
    config = Config(
        reward_model=RewardModelConfig(**given),
        ppo=PPOConfig(num_iterations=0),
        backend=BackendConfig(micro_batch_tokens=budget),
        run=RunConfig(seed=3),
    )
    weights = weights or (1.0,) * classes
    return reward_model.RewardModelLoss(
        config=config,
        world=World(),
        device=torch.device("cpu"),
        pad_token_id=PAD,
        class_weights=weights,
    )


def collated(rows, loss):
    return reward_model.pad_right(rows, pad_token_id=PAD, weights=loss.class_weights)


def engine(labels=1, rate=1e-2):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=PAD,
            num_labels=labels,
        )
    )
    return TorchEngine(
        SequenceClassifier(model),
        OptimizerSettings(learning_rate=rate),
        name="reward model",
        device=torch.device("cpu"),
    )


def examples(number=10, *, pairs=True, margin=0.0):
    rng = torch.Generator().manual_seed(1)

    def ids(longest=7):
        length = int(torch.randint(1, longest + 1, (1,), generator=rng))
        return tuple(torch.randint(1, VOCAB, (length,), generator=rng).tolist())

    return [
        RewardModelExample(texts=(ids(), ids()), margin=margin * n) if pairs
        else RewardModelExample(texts=(ids(),), label=n % 3)
        for n in range(number)
    ]  # fmt: skip


def gradient(one, rows, rules):
    one.module.zero_grad()
    stepped = []
    one.step = lambda: stepped.append(
        torch.cat([p.grad.flatten() for p in one.module.parameters() if p.grad is not None])
    )
    one.clip = lambda: 0.0
    take_step(one, rows, rules)
    return stepped[0]


def test_the_loss_of_pairs_equals_a_float64_oracle():
    cases = [(0.3, -0.2, 0.0), (5.0, 1.0, 1.5), (-40.0, 60.0, 0.0), (1.0, 1.0, 2.0)]
    chosen, rejected, margins = (torch.tensor(column) for column in zip(*cases, strict=True))
    expected = [-math.log(1.0 / (1.0 + math.exp(-(c - r - m)))) for c, r, m in cases]
    got = reward_model.bradley_terry(chosen, rejected, margins)
    assert got.tolist() == pytest.approx(expected, rel=1e-6)
    far = torch.tensor(900.0)
    assert reward_model.bradley_terry(far, -far, torch.tensor(0.0)) == 0.0


def test_the_loss_of_classes_equals_a_float64_oracle():
    rules = loss_of(classes=3, weights=(0.5, 2.0, 1.0))
    rows = examples(4, pairs=False)
    batch = collated(rows, rules)
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 3.0], [9.0, 1.0, 1.0], [0.1, 0.2, 0.3]])
    expected = []
    for row, one in zip(logits.double().tolist(), rows, strict=True):
        total = sum(math.exp(value) for value in row)
        weight = (0.5, 2.0, 1.0)[one.label]
        expected.append(-weight * math.log(math.exp(row[one.label]) / total))
    assert reward_model.losses(logits, batch).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pairs", [True, False])
def test_the_gradient_does_not_depend_on_the_split_into_micro_batches(pairs):
    rows = examples(9, pairs=pairs, margin=0.1)
    one = engine(1 if pairs else 3)
    weights = () if pairs else (0.5, 2.0, 0.7)
    whole = gradient(one, rows, loss_of(budget=100_000, weights=weights))
    assert whole.abs().max() > 1e-3
    for budget in (1, 20, 40):
        torch.testing.assert_close(
            gradient(one, rows, loss_of(budget=budget, weights=weights)), whole,
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip


@pytest.mark.parametrize("pairs", [True, False])
def test_two_ranks_take_the_gradient_of_one(pairs, monkeypatch):
    rows = examples(9, pairs=pairs)
    one, rules = engine(1 if pairs else 3), loss_of(classes=0 if pairs else 3)
    whole = gradient(one, rows, rules)

    def summed(value):  # the only count that is summed: rows
        return torch.tensor(9.0) if value.ndim == 0 else value

    monkeypatch.setattr(supervised, "global_sum", summed)
    parts = [gradient(one, rows[rank::2], rules) for rank in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-5, atol=1e-6)


def test_a_rank_without_rows_gives_no_gradient(monkeypatch):
    one = engine()
    monkeypatch.setattr(supervised, "global_sum", lambda v: v + 5.0 if v.ndim == 0 else v)
    assert gradient(one, [], loss_of()).abs().max() == 0.0


@pytest.mark.parametrize("pairs", [True, False])
def test_micro_batches_hold_every_row_once_within_the_budget(pairs):
    rows = examples(11, pairs=pairs)
    loss = loss_of(budget=40, classes=0 if pairs else 3)
    batches = loss.batches(rows)
    assert len(batches) > 1
    assert all(batch.tokens.numel() <= 40 for batch in batches)
    assert all((batch.tokens[~batch.attention_mask] == PAD).all() for batch in batches)
    assert sorted(rows_of(batches)) == sorted((one.texts, one.label) for one in rows)


def rows_of(batches):
    """The texts and labels of each row of some batches."""
    for batch in batches:
        texts = [tuple(ids[mask].tolist())
                 for ids, mask in zip(batch.tokens, batch.attention_mask, strict=True)]  # fmt: skip
        size = len(batch.labels)
        for row, label in enumerate(batch.labels.tolist()):
            yield tuple(texts[row::size]), label


def test_a_rank_with_less_to_do_gets_blank_batches_and_one_without_rows_one(monkeypatch):
    loss, device = loss_of(), torch.device("cpu")
    real = loss.batches(examples(3))
    monkeypatch.setattr(supervised, "global_max", lambda number: number + 2)
    filled = over_ranks(real, loss.blank(), device)
    assert [batch.is_blank for batch in filled] == [False] * len(real) + [True] * 2
    assert [batch.is_blank for batch in over_ranks([], loss.blank(), device)] == [True] * 3


@pytest.mark.parametrize("pairs", [True, False])
def test_a_verdict_does_not_depend_on_batches(pairs):
    rows = examples(9, pairs=pairs)
    one = engine(1 if pairs else 3)
    classes = 0 if pairs else 3
    whole, small = (
        loss_of(budget=budget, classes=classes).judge(one, rows, rows) for budget in (1000, 1)
    )
    assert small.loss == pytest.approx(whole.loss, rel=1e-5)
    assert small.accuracy == whole.accuracy
    assert small.calibration_error == pytest.approx(whole.calibration_error, abs=1e-6)
    assert sum(number for number, *_ in whole.bins) == 9


def test_a_pair_that_is_tied_is_half_right_and_no_surer_than_a_coin():
    rules = loss_of()
    rows = [RewardModelExample(texts=((1,), (1,)))]
    loss, confidence, correct = reward_model.predictions(
        torch.tensor([[2.0], [2.0]]), collated(rows, rules)
    )
    assert (confidence.item(), correct.item()) == (0.5, 0.5)
    assert loss.item() == pytest.approx(math.log(2.0))


def test_the_baseline_reads_no_text():
    learned = [RewardModelExample(texts=((1,),), label=label) for label in (2, 2, 0)]
    judged = [RewardModelExample(texts=((1,),), label=label) for label in (2, 0, 0, 1)]
    assert reward_model.baseline(learned, judged) == 0.25
    longer, shorter, same = ((1, 1), (1,)), ((1,), (1, 1)), ((1,), (2,))
    pairs = [RewardModelExample(texts=texts) for texts in (longer, longer, shorter)]
    tested = [RewardModelExample(texts=texts) for texts in (longer, shorter, shorter, same)]
    assert reward_model.baseline(pairs, tested) == 0.375
    assert reward_model.baseline(tested, pairs) == pytest.approx(1 / 3)


def test_balanced_classes_weigh_the_same_in_total():
    rows = [RewardModelExample(texts=((1,),), label=label) for label in (0, 0, 0, 1)]
    weights = reward_model.class_weights(rows, 2, "balanced")
    assert weights == (4 / 6, 2.0)
    assert sum(weights[one.label] for one in rows) == pytest.approx(len(rows))
    assert reward_model.class_weights(rows, 2, "none") == (1.0, 1.0)


def test_a_loss_that_is_not_finite_moves_no_weight():
    one = engine()
    with torch.no_grad():
        one.module.model.score.weight[0, 0] = math.nan
    before = [p.clone() for p in one.module.parameters()]
    with pytest.raises(NonFiniteError, match=r"not finite.*--reward-model\.learning-rate"):
        take_step(one, examples(), loss_of())
    for old, new in zip(before, one.module.parameters(), strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())


@pytest.mark.parametrize("pairs", [True, False])
def test_a_resumed_stage_equals_one_that_never_stopped(pairs):
    rows = examples(pairs=pairs)
    rules, labels = loss_of(classes=0 if pairs else 3, num_epochs=3), 1 if pairs else 3

    def steps(one, start=0):
        return fit(one, rows[2:], rules, held_out=rows[:2], start=start)

    whole = engine(labels)
    expected = [m.values() for m in steps(whole)]
    first = engine(labels)
    stage = steps(first)
    begun = [next(stage).values() for _ in range(3)]
    second = engine(labels)
    second.load_state_dict([first.state_dict()])
    assert begun + [m.values() for m in steps(second, 3)] == expected
    for one, other in zip(whole.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)
    held_out = [n for n, values in enumerate(expected, 1) if "reward_model/holdout/loss" in values]
    assert held_out == [2, 4, 6]


def test_preferences_with_a_known_utility_recover_its_order():
    utility = {token: (token * 7) % 23 for token in range(1, VOCAB)}  # no order by id
    rng = torch.Generator().manual_seed(2)
    rows = []
    while len(rows) < 600:
        one, other = (int(t) for t in torch.randint(1, VOCAB, (2,), generator=rng))
        better = torch.rand((), generator=rng) < 1 / (1 + math.exp(utility[other] - utility[one]))
        if one != other:
            rows.append(
                RewardModelExample(texts=((one,), (other,)) if better else ((other,), (one,)))
            )
    judge, rules = engine(), loss_of(num_epochs=6, batch_size=32, budget=10_000)
    for _ in fit(judge, rows, rules):
        pass
    tokens = torch.arange(1, VOCAB)[:, None]
    with torch.no_grad():
        scores = judge.module(tokens, torch.ones_like(tokens, dtype=torch.bool)).flatten()
    tau = kendalltau(scores.tolist(), [utility[int(token)] for token in tokens]).statistic
    assert tau >= 0.9


def test_a_margin_asks_for_a_larger_difference():
    rows = examples(6)
    wide = [replace(one, margin=4.0) for one in rows]
    gaps = []
    for learned in (rows, wide):
        judge, rules = engine(), loss_of(num_epochs=60, batch_size=6, budget=1000)
        for _ in fit(judge, learned, rules):
            pass
        batch = collated(rows, rules)
        with torch.no_grad():
            chosen, rejected = judge.module(batch.tokens, batch.attention_mask).flatten().chunk(2)
        gaps.append(float((chosen - rejected).mean()))
    assert gaps[1] > gaps[0] + 1.0
