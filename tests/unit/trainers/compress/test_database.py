import copy

import pytest
import torch

from tests.unit.trainers.compress.tiny_models import database_of, model_of, rows_of, splits
from trainers.compress.candidates import dense_pass
from trainers.compress.database import Database
from trainers.compress.token_rows import Splits, TokenRows, check_splits, pad_rows
from trainers.compress.units import Choice, SizePlan, Unit, dense_plan, uniform_plan
from trainers.compress.variants import (
    MAGNITUDE,
    OURS,
    RIDGE,
    WANDA,
    gram_matrices,
    last_linear,
    quantized,
    ridge_weight,
)
from trainers.errors import ConfigError


def half(database, **changes):
    cut = {"groups": 2, "channels": 24, **changes}
    return uniform_plan(database.variants.geometry, **cut)


def test_gram_matrices_are_the_mean_outer_product_without_padding():
    model, rows = model_of(), rows_of(0, 24)
    grams = gram_matrices(model, rows, batch=5)

    unit = Unit(2, "mlp")
    total, count = torch.zeros(48, 48, dtype=torch.float64), 0
    layer = model.model.layers[2]
    for row in range(len(rows)):
        length = int(rows.mask[row].sum())
        alone = dense_pass(model, pad_rows([rows.tokens[row, :length].tolist()]))
        hidden = (
            alone.calls[2].hidden
            + layer.self_attn(
                layer.input_layernorm(alone.calls[2].hidden), **alone.calls[2].options
            )[0]
        )
        x = layer.post_attention_layernorm(hidden)[0]
        inner = torch.nn.functional.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
        for vector in inner.double():
            total += torch.outer(vector, vector)
            count += 1
    torch.testing.assert_close(grams[unit].double(), (total / count).detach(), atol=1e-4, rtol=1e-4)


def test_the_ridge_weight_minimizes_the_regularized_error():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 12, generator=rng, dtype=torch.float64)
    x = torch.randn(100, 12, generator=rng, dtype=torch.float64) @ torch.randn(
        12, 12, generator=rng, dtype=torch.float64
    )
    gram, kept = x.T @ x / 100, torch.tensor([0, 3, 4, 9])
    ridge = RIDGE * gram.diagonal().mean()

    def error(candidate):
        return ((x @ weight.T - x[:, kept] @ candidate.T) ** 2).sum() / 100 + ridge * (
            candidate**2
        ).sum()

    best = ridge_weight(weight, gram, kept)
    for _ in range(20):
        step = 1e-3 * torch.randn(best.shape, generator=rng, dtype=torch.float64)
        assert error(best) < error(best + step)
    assert error(best) < error(weight[:, kept])


def test_scores_rank_inputs_by_weight_and_data_and_heads_together():
    database = database_of()
    variants, unit = database.variants, Unit(1, "attention")
    weight = last_linear(database.model, unit).weight
    gram = gram_matrices(model_of(), splits().calibration)[unit]
    by_hand = [
        sum(
            float(weight[:, j].norm() * gram[j, j].sqrt())
            for j in range(16 * group, 16 * group + 16)
        )
        for group in range(3)
    ]
    assert variants.scores(unit).tolist() == pytest.approx(by_hand, rel=1e-4)
    kept = variants.variant(unit, Choice(1)).kept
    best = by_hand.index(max(by_hand))
    assert kept.tolist() == list(range(16 * best, 16 * best + 16))
    assert variants.scores(unit, MAGNITUDE).tolist() != pytest.approx(by_hand, rel=1e-2)


def test_what_a_smaller_size_keeps_a_larger_one_keeps_too():
    variants = database_of().variants
    sets = [
        set(variants.variant(Unit(0, "mlp"), Choice(size)).kept.tolist()) for size in (8, 24, 40)
    ]
    assert sets[0] < sets[1] < sets[2]


def test_evaluating_is_the_kl_of_whole_models_over_counted_tokens():
    database, dense = database_of(), model_of()
    rows = splits().selection
    plan = half(database, dropped=[1])
    p = dense(input_ids=rows.tokens).logits.log_softmax(-1)
    q = database.logits(plan, rows).log_softmax(-1)
    by_token = (p.exp() * (p - q)).sum(-1).detach()
    (kl,) = database.evaluate([plan])
    assert kl == pytest.approx(float(by_token[rows.counted].mean()), rel=1e-4)
    assert kl > 0.01


def test_padding_never_matters():
    rows = splits().selection
    other = TokenRows(
        torch.where(rows.mask, rows.tokens, (rows.tokens + 7) % 60), rows.mask, rows.counted
    )
    assert not torch.equal(other.tokens, rows.tokens)
    kls = []
    for selection in (rows, other):
        made = Splits(calibration=splits().calibration, selection=selection, report=rows)
        database = Database(model_of(), made)
        kls += database.evaluate([half(database)])
    assert kls[0] == kls[1]


def test_what_follows_the_end_of_a_text_is_not_counted():
    rows = pad_rows([[5, 6, 2], [5, 6, 7]], end_ids=[2])
    assert rows.counted.tolist() == [[True, True, False], [True, True, True]]
    assert rows.mask.all()
    answers = pad_rows([[5, 6, 7, 2], [5, 8, 2]], prompts=[2, 1], end_ids=[2])
    assert answers.counted.tolist() == [[False, True, True, False], [True, True, False, False]]


def test_no_weight_is_touched_even_when_a_candidate_fails(monkeypatch):
    database = database_of("llama biased")
    before = copy.deepcopy(database.model.state_dict())
    database.evaluate([half(database), half(database, dropped=[0])])
    plan = half(database, channels=8)
    monkeypatch.setattr("trainers.compress.database.summed_kl", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        database.evaluate([plan])
    for name, tensor in database.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    monkeypatch.undo()
    assert database.evaluate([plan])[0] > 0  # what failed was not remembered


def test_states_before_the_first_changed_layer_are_reused_and_change_nothing(monkeypatch):
    database = database_of()
    ran = []
    for number, layer in enumerate(database.model.model.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    geometry = database.variants.geometry
    choices = list(dense_plan(geometry).choices)
    choices[5] = Choice(16)  # the MLP of layer 2
    database.evaluate([database.dense, half(database, groups=1)])
    ran.clear()
    (kl,) = database.evaluate([SizePlan(tuple(choices))])
    assert ran == [2, 3]
    assert kl > 0


def test_evaluations_are_counted_once_each_and_by_tokens():
    database = database_of()
    plan, other = half(database), half(database, channels=8)
    first = database.evaluate([plan, other, plan, database.dense])
    assert database.evaluations == 2
    assert first[0] == first[2]
    assert first[3] == 0
    database.evaluate([plan], method=WANDA)
    assert database.evaluations == 3
    few = database.evaluate([plan], tokens=40)
    assert database.evaluations == 4
    assert few[0] != first[0]  # fewer rows


def test_many_tokens_count_as_many_evaluations():
    rows = rows_of(3, 150, 22)
    made = Splits(calibration=splits().calibration, selection=rows, report=rows_of(2))
    database = Database(model_of(), made)
    (kl,) = database.evaluate([half(database)], tokens=2500)
    assert database.evaluations == 3
    whole = rows.first(2500)
    p = database.logits(database.dense, whole).log_softmax(-1)
    q = database.logits(half(database), whole).log_softmax(-1)
    by_token = (p.exp() * (p - q)).sum(-1)[whole.counted]
    assert kl == pytest.approx(float(by_token.mean()), rel=1e-4)


def test_report_is_read_when_asked_for_alone(monkeypatch):
    made = splits()
    database = Database(model_of(), made)
    read = []
    original = TokenRows.__getitem__

    def noting(self, rows):
        read.append(self.tokens.data_ptr() == made.report.tokens.data_ptr())
        return original(self, rows)

    monkeypatch.setattr(TokenRows, "__getitem__", noting)
    database.evaluate([half(database)])
    database.sensitivities([[Choice(0)]])
    database.block_influences()
    assert not any(read)
    assert database.report_kl(half(database)) > 0
    assert any(read)


def test_compensation_lowers_the_kl_of_a_trained_like_model():
    database = database_of()
    plan = half(database)
    ours, wanda = (database.evaluate([plan], method=method)[0] for method in (OURS, WANDA))
    assert ours < wanda


def test_fewer_bits_change_every_weight_of_a_unit_and_little_of_the_output():
    database = database_of()
    dense = list(database.dense.choices)
    coarse, fine = ([Choice(dense[1].size, bits), *dense[2:]] for bits in (3, 8))
    kls = database.evaluate([SizePlan((dense[0], *rest)) for rest in (coarse, fine)])
    assert kls[0] > 10 * kls[1] > 0
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    levels = quantized(weight, 8) / (weight.abs().amax(1, keepdim=True) / 127)
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert (quantized(weight, 8) - weight).abs().max() <= weight.abs().max() / 254 + 1e-6


def test_a_dropped_unit_leaves_its_residual_alone():
    database = database_of("llama biased")
    rows = rows_of(4)
    choices = [Choice(0)] * 8
    plan = SizePlan(tuple(choices))
    embedded = database.model.model.embed_tokens(rows.tokens)
    expected = database.model.lm_head(database.model.model.norm(embedded))
    torch.testing.assert_close(database.logits(plan, rows), expected)
    attention_only = SizePlan((Choice(0), *database.dense.choices[1:]))
    layer = dense_pass(database.model, rows).calls[0].hidden
    mlp = database.model.model.layers[0].mlp
    after = layer + mlp(database.model.model.layers[0].post_attention_layernorm(layer))
    hidden = dense_pass(database.model, rows)
    from_here = hidden.calls[1]._replace(hidden=after)
    for number in range(1, 4):
        after = database.model.model.layers[number](after, **hidden.calls[number].options)
    assert from_here.options.keys() == hidden.calls[1].options.keys()
    expected = database.model.lm_head(database.model.model.norm(after))
    torch.testing.assert_close(database.logits(attention_only, rows), expected)


def test_a_calibration_set_that_is_too_small_is_refused():
    with pytest.raises(ConfigError, match=r"has 20 tokens, and the widest unit has 48 inputs: it "):
        gram_matrices(model_of(), rows_of(0, 1))


def test_splits_that_share_a_task_are_refused():
    check_splits(calibration=["a"], selection=["b"], report=["c"])
    with pytest.raises(ConfigError, match="1 tasks are in calibration and in report, such as a"):
        check_splits(calibration=["a"], selection=["b"], report=["c", "a"])
    with pytest.raises(ConfigError, match="there is no token"):
        pad_rows([[]])
