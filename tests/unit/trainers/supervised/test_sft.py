"""The supervised stage: its loss, its order, and that nothing depends on the split."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.backends.torch import OptimizerSettings, TorchEngine
from trainers.config import BackendConfig, Config, RunConfig, SFTConfig
from trainers.distributed.collectives import World
from trainers.errors import NonFiniteError
from trainers.models.causal_lm import CausalPolicy
from trainers.models.packed_rows import longest_packed
from trainers.models.packing import pack_rows
from trainers.supervised import fit as supervised
from trainers.supervised import sft
from trainers.supervised.fit import fit, num_steps, rows_of_step, take_step
from trainers.supervised.sft_data import SFTExample

VOCAB = 24


def config(*, budget=64, **settings):
    given = {"num_epochs": 2, "batch_size": 4, "learning_rate": 1e-2, **settings}
    return Config(
        sft=SFTConfig(**given),
        backend=BackendConfig(micro_batch_tokens=budget),
        run=RunConfig(seed=3),
    )


def loss_of(settings, packed_up_to=0.0):
    return sft.SFTLoss(
        config=settings,
        world=World(),
        device=torch.device("cpu"),
        packed_up_to=packed_up_to,
    )


def held_out_loss(one, rows):
    return loss_of(config(budget=1000)).measure(one, rows).values()["sft/holdout_loss"]


def engine():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )
    return TorchEngine(
        CausalPolicy(model, temperature=1.0, chunk=16),
        OptimizerSettings(learning_rate=1e-2),
        name="policy",
        device=torch.device("cpu"),
    )


def examples(number=10):
    rng = torch.Generator().manual_seed(1)

    def ids(longest):
        length = int(torch.randint(1, longest + 1, (1,), generator=rng))
        return tuple(torch.randint(1, VOCAB, (length,), generator=rng).tolist())

    return [SFTExample(prompt=ids(5), response=ids(7)) for _ in range(number)]


def gradient(one):
    return torch.cat([p.grad.flatten() for p in one.module.parameters()])


def oracle(model, rows):
    """Cross-entropy of the responses, row by row, from the model's own logits."""
    total, count = 0.0, 0
    for row in rows:
        tokens = torch.tensor([[*row.prompt, *row.response]])
        table = model(input_ids=tokens).logits[0].double().log_softmax(-1)
        for place, token in enumerate(row.response):
            total -= table[len(row.prompt) + place - 1, token]
            count += 1
    return total / count


@pytest.fixture
def no_step(monkeypatch):
    """Keep the gradient: the engine's step only measures its norm."""
    monkeypatch.setattr(TorchEngine, "step", lambda self: float(gradient(self).norm()))


def test_the_loss_is_the_cross_entropy_of_the_responses(no_step):
    one, rows = engine(), examples()
    expected = oracle(one.module.model, rows)
    metrics = take_step(one, rows, loss_of(config(budget=1000)))
    assert metrics.values()["sft/loss"] == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    ours = 0.5 * gradient(one)  # ours + theirs, which are equal
    one.module.zero_grad()
    oracle(one.module.model, rows).backward()
    torch.testing.assert_close(ours, gradient(one), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("budget", "is_packed", "number"),
    [(1, False, 10), (13, False, 10), (40, False, 3), (1, True, 10), (13, True, 8), (40, True, 2)],
)
def test_the_gradient_does_not_depend_on_the_split(no_step, budget, is_packed, number):
    rows = examples()
    whole, parts = engine(), engine()
    assert not is_packed or pack_rows(parts.module.model)
    expected = take_step(whole, rows, loss_of(config(budget=1000))).values()
    loss = loss_of(config(budget=budget), longest_packed(parts.module))
    assert len(loss.batches(rows)) == number
    assert take_step(parts, rows, loss).values() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient(parts), gradient(whole), rtol=1e-4, atol=1e-6)


def test_ranks_add_up_to_the_gradient_of_one(no_step, monkeypatch):
    rows = examples()
    whole = engine()
    expected = take_step(whole, rows, loss_of(config(budget=1000))).values()["sft/loss"]
    count = sum(len(row.response) for row in rows)
    gradients, losses = [], []
    for rank in range(3):
        totals = iter([torch.tensor(float(count))])  # the count is over all ranks, first asked for
        monkeypatch.setattr(supervised, "global_sum", lambda mine, left=totals: next(left, mine))
        one = engine()
        losses.append(
            take_step(one, rows[rank::3], loss_of(config(budget=20))).values()["sft/loss"]
        )
        gradients.append(gradient(one))
    torch.testing.assert_close(sum(gradients), gradient(whole), rtol=1e-4, atol=1e-6)
    assert sum(losses) == pytest.approx(expected, rel=1e-5)


def test_a_rank_without_rows_still_runs_backward(no_step, monkeypatch):
    one = engine()
    monkeypatch.setattr(
        supervised, "global_sum", lambda mine: mine + 5.0 if mine.ndim == 0 else mine
    )
    assert take_step(one, [], loss_of(config())).values()["sft/grad_norm"] == 0.0
    assert gradient(one).abs().max() == 0.0


def test_a_loss_that_is_not_finite_moves_no_weight():
    one = engine()
    with torch.no_grad():
        one.module.model.lm_head.weight[0, 0] = math.nan
    before = [p.clone() for p in one.module.parameters()]
    with pytest.raises(NonFiniteError, match=r"not finite.*--sft\.learning-rate"):
        take_step(one, examples(), loss_of(config()))
    for old, new in zip(before, one.module.parameters(), strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())


def test_padding_never_matters(monkeypatch):
    one, rows = engine(), examples()
    clean = held_out_loss(one, rows)
    real = sft.pad_around_response

    def dirty(picked):
        batch = real(picked)
        inputs = batch.inputs
        tokens = torch.where(inputs.attention_mask, inputs.tokens, VOCAB - 1)
        return replace(batch, inputs=replace(inputs, tokens=tokens))

    monkeypatch.setattr(sft, "pad_around_response", dirty)
    assert held_out_loss(one, rows) == clean


def test_collate_pads_prompts_left_and_responses_right():
    batch = sft.pad_around_response(
        [SFTExample(prompt=(5, 6), response=(7,)), SFTExample(prompt=(8,), response=(9, 10))]
    )
    assert batch.inputs.tokens.tolist() == [[5, 6, 7, 0], [0, 8, 9, 10]]
    assert batch.inputs.num_prompt == 2
    assert batch.inputs.attention_mask.tolist() == [[True, True, True, False], [False] + [True] * 3]
    assert batch.response_mask.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("number", [8, 10])
def test_each_epoch_visits_every_row_once_in_another_order(number):
    settings = config()
    each = num_steps(number, settings.sft) // 2
    epochs = [
        [row for step in range(e * each, (e + 1) * each)
         for row in rows_of_step(step, number, settings.sft, settings.run.seed)]
        for e in range(2)
    ]  # fmt: skip
    assert [sorted(epoch) for epoch in epochs] == [list(range(number))] * 2
    assert epochs[0] != epochs[1]


def test_split_keeps_every_row_on_one_side():
    rows = examples(20)
    train, held_out = sft.split_rows(rows, 0.25, seed=0)
    assert len(held_out) == 5
    assert sorted(map(repr, train + held_out)) == sorted(map(repr, rows))
    assert sft.split_rows(rows, 0.25, seed=0) == (train, held_out)
    assert sft.split_rows(rows[:1], 0.9, seed=0) == (rows[:1], [])


def test_the_rate_warms_up_and_falls_to_a_tenth():
    settings = config(num_epochs=10, warmup_fraction=0.5)
    logged = [m.values() for m in fit(engine(), examples(4), loss_of(settings))]
    rates = [values["sft/lr"] for values in logged]
    assert len(rates) == 10
    assert rates[:5] == sorted(rates[:5])
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3)


def test_training_lowers_the_loss_and_measures_the_held_out_one_each_epoch():
    rows = examples(8)
    settings = config(num_epochs=12)
    logged = [m.values() for m in fit(engine(), rows, loss_of(settings), held_out=rows[:2])]
    assert logged[-1]["sft/loss"] < 0.7 * logged[0]["sft/loss"]
    assert [i for i, values in enumerate(logged) if "sft/holdout_loss" in values] == [
        2 * e + 1 for e in range(12)
    ]
    assert [values["sft/step"] for values in logged] == list(range(1, 25))


def test_a_resumed_stage_equals_one_that_never_stopped():
    rows, settings = examples(), config(num_epochs=3)
    whole = engine()
    expected = [m.values() for m in fit(whole, rows, loss_of(settings))]
    first = engine()
    stage = fit(first, rows, loss_of(settings))
    begun = [next(stage).values() for _ in range(4)]
    second = engine()
    second.load_state_dict([first.state_dict()])
    rest = [m.values() for m in fit(second, rows, loss_of(settings), start=4)]
    assert begun + rest == expected
    for one, other in zip(whole.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_stage_that_ended_at_its_held_out_loss_learns_nothing_more_when_resumed():
    rows, settings = examples(8), config(num_epochs=3, stop_loss=1e9)
    one = engine()

    def steps(start):
        return list(fit(one, rows, loss_of(settings), held_out=rows[:2], start=start))

    assert len(steps(0)) == 2
    assert steps(2) == []
    assert len(steps(1)) == 1  # killed before that epoch's end
