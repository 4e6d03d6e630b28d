import math
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests import tiny
from trainers.backends.torch import TorchEngine
from trainers.config.ppo import PPOConfig
from trainers.errors import NonFiniteError
from trainers.functional.kl import kl_estimate
from trainers.learner import FrozenPolicy, Learner
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic import SharedActorCritic
from trainers.models.loading import load_causal_lm
from trainers.ppo import make_experience, update

RATES = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2}


def naive(learner, made):
    """Log-probabilities, entropies [B, T] and values by transformers' own logits, row by row."""
    shape = made.response_mask.shape
    figures = [torch.zeros(shape, dtype=torch.float64) for _ in range(3)]
    policy, critic = learner.policy_module.model, learner.critic_module
    temperature = learner.policy_module.scorer.temperature
    for row, real in enumerate(made.inputs.attention_mask):
        tokens = made.inputs.tokens[row, real].unsqueeze(0)
        count = int(made.response_mask[row].sum())
        before = slice(tokens.shape[1] - count - 1, tokens.shape[1] - 1)
        logits = policy(input_ids=tokens).logits[0, before].double() / temperature
        logp = logits.log_softmax(-1)
        chosen = tokens[0, tokens.shape[1] - count :]
        parts = (
            logp[torch.arange(count), chosen],
            -(logp.exp() * logp).sum(-1),
            critic.head(critic.trunk(input_ids=tokens)[0])[0, before, 0].double(),
        )
        for whole, part in zip(figures, parts, strict=True):
            whole[row, :count] = part
    return figures


def shares(mask, aggregation, longest):
    """The share of each action in the loss, from the definition of the three means."""
    rows = [[1.0 if real else 0.0 for real in row] for row in mask.tolist()]
    counted = sum(1 for row in rows if sum(row))
    if aggregation == "token":
        total = sum(map(sum, rows))
        return [[one / total for one in row] for row in rows]
    if aggregation == "sequence":
        return [[one / max(sum(row), 1) / counted for one in row] for row in rows]
    return [[one / (counted * longest) for one in row] for row in rows]


def objective(learner, made, config):
    """The objective of the design, all at once and in float64."""
    options = config.ppo
    logprobs, entropies, values = naive(learner, made)
    share = torch.tensor(shares(made.response_mask, options.loss_aggregation, 8))
    ratio = (logprobs - made.old_logprobs).exp()
    near = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    loss = torch.maximum(-ratio * made.advantages, -near * made.advantages)
    if options.mismatch_correction == "tis":
        loss = loss * (made.old_logprobs - made.generator_logprobs).exp().clamp(max=2.0)
    parts = {"loss/policy_avg": (share * loss).sum()}
    total = parts["loss/policy_avg"] - options.entropy_coef * (share * entropies).sum()
    if options.kl_placement == "loss":
        estimate = kl_estimate(logprobs, made.ref_logprobs.double(), options.kl_loss_estimator)
        parts["loss/kl"] = options.kl_weight * (share * estimate).sum()
        total = total + parts["loss/kl"]
    error = ((values - made.returns) ** 2 * made.response_mask).sum() / made.response_mask.sum()
    parts["loss/value_avg"] = 0.5 * error
    parts["loss/total"] = total + 0.5 * error
    return parts


VARIANTS = {
    "token": {},
    "sequence": {"loss_aggregation": "sequence"},
    "constant": {"loss_aggregation": "constant"},
    "entropy": {"entropy_coef": 0.3},
    "kl in the loss": {"kl_placement": "loss", "kl_loss_coef": 0.7},
    "tis": {"mismatch_correction": "tis"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("budget", [1000, 20])
def test_loss_and_gradient_are_the_objective_s(variant, budget):
    options = {"value_clip": None, "critic_learning_rate": 0.0, "learning_rate": 0.0}
    config = tiny.settings(tokens=budget, **options, **VARIANTS[variant])
    learner = tiny.learner(config, temperature=0.7)
    made = tiny.experience()

    found = tiny.gradients_of(learner, made, config)
    figures = update(learner, made, config).values()

    parts = objective(learner, made, config)
    parts["loss/total"].backward()
    assert tiny.difference(tiny.gradients(learner), found) < 1e-5
    expected = {name: float(value.detach()) for name, value in parts.items()}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert ("loss/kl" in figures) == (variant == "kl in the loss")


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_entropy_bonus_raises_the_entropy(critic):
    rates = {"learning_rate": 3e-3, "critic_learning_rate": 0.0}
    config = tiny.settings(entropy_coef=1.0, value_coef=1e-6, critic=critic, **rates)
    learner = tiny.learner(config)
    made = tiny.experience()
    made = replace(made, advantages=torch.zeros_like(made.advantages))

    seen = [update(learner, made, config).values()["policy/entropy_avg"] for _ in range(4)]

    assert seen == sorted(seen)
    most = math.log(tiny.VOCAB)
    assert seen[-1] <= most
    assert most - seen[-1] < (most - seen[0]) / 2


@pytest.mark.parametrize("budget", [1000, 20, 1])
def test_metrics_equal_a_flat_recomputation_with_ragged_rows(budget):
    config = tiny.settings(tokens=budget, clip_dual=1.5, value_clip=0.3, clip_high=0.3)
    learner = tiny.learner(config)
    made = tiny.experience()
    made = replace(made, old_logprobs=tiny.noise(made.response_mask.shape, 2, 0.7) - 3.7)
    logprobs, entropies, values = (one.detach() for one in naive(learner, made))

    figures = update(learner, made, config).values()

    real = made.response_mask
    gap, gain = (logprobs - made.old_logprobs)[real], made.advantages[real]
    ratio, count = gap.exp(), int(real.sum())
    clipped = ((gain > 0) & (ratio > 1.3)) | ((gain < 0) & (ratio < 0.8))
    expected = {
        "policy/approxkl_avg": (ratio - 1 - gap).sum() / count,
        "policy/clipfrac_avg": clipped.sum() / count,
        "policy/clipfrac_dual": ((gain < 0) & (ratio > 1.5)).sum() / count,
        "policy/entropy_avg": entropies[real].sum() / count,
        "policy/ratio_avg": ratio.sum() / count,
        "policy/ratio_max": ratio.max(),
        "value/clipfrac_avg": ((values - made.old_values)[real].abs() > 0.3).sum() / count,
    }
    assert 0 < expected["policy/clipfrac_avg"] < 1
    assert 0 < expected["policy/clipfrac_dual"] < 1
    assert {name: figures[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("budget", [1000, 20])
def test_the_ratio_is_one_on_the_first_minibatch(temperature, critic, budget):
    config = tiny.settings(tokens=budget, critic=critic)
    learner = tiny.learner(config, temperature=temperature)

    figures = update(learner, tiny.on_policy(learner, tiny.experience()), config).values()

    tiny.assert_on_policy(figures)


def test_the_ratio_is_one_on_the_first_minibatch_of_a_model_with_dropout(tmp_path):
    half = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": tiny.VOCAB}
    GPT2LMHeadModel(GPT2Config(**sizes, **half)).save_pretrained(tmp_path)
    config = tiny.settings(critic="shared")
    module = SharedActorCritic(load_causal_lm(str(tmp_path)), temperature=1.0, chunk=512)
    engine = TorchEngine(module, tiny.optimizer(config, 0.0), name="policy", device=tiny.CPU)
    learner = Learner(engine, None, config)

    figures = update(learner, tiny.on_policy(learner, tiny.experience()), config).values()

    assert module.training
    tiny.assert_on_policy(figures)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_reference_with_the_policy_s_weights_is_no_distance_from_it(temperature):
    config = tiny.settings(tokens=20)
    learner = tiny.learner(config, temperature=temperature)
    twin = CausalPolicy(tiny.llama(), temperature=temperature, chunk=512)
    reference = FrozenPolicy(twin, config, device=tiny.CPU, autocast=None)
    made = tiny.rollout()

    pair = [one.logprobs(made.inputs, made.response_mask) for one in (learner, reference)]

    assert torch.equal(*pair)


@pytest.mark.parametrize("poison", [1e6, math.nan])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_padding_content_changes_no_loss_no_gradient_and_no_metric(poison, critic):
    extras = {"kl_placement": "loss", "mismatch_correction": "tis", "clip_dual": 3.0}
    config = tiny.settings(critic=critic, tokens=30, **extras)
    results = []
    for content in (0.0, poison):
        made = tiny.rollout()
        names = ("logprobs", "generator_logprobs", "ref_logprobs", "rewards", "values")
        junk = {
            name: torch.where(made.response_mask, getattr(made, name), torch.tensor(content))
            for name in (*names, "next_values")
        }
        experience = make_experience(replace(made, **junk), config.ppo)
        learner = tiny.learner(config)
        gradients = tiny.gradients_of(learner, experience, config)
        results.append((gradients, update(learner, experience, config)))
    (clean, metrics), (other, others) = results
    assert metrics == others
    assert all(torch.equal(clean[name], other[name]) for name in clean)


def test_token_ids_in_the_padding_change_no_gradient():
    config = tiny.settings(tokens=30)
    made = tiny.experience()
    hidden = ~made.inputs.attention_mask
    tokens = made.inputs.tokens.masked_fill(hidden, 0)
    other = replace(made, inputs=replace(made.inputs, tokens=tokens))

    one, two = (tiny.gradients_of(tiny.learner(config), x, config) for x in (made, other))

    assert not torch.equal(tokens, made.inputs.tokens)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_a_row_without_actions_contributes_nothing(aggregation):
    config = tiny.settings(loss_aggregation=aggregation)
    made = tiny.experience()
    mask = made.response_mask.clone()
    mask[2] = False
    masked = replace(made, response_mask=mask)
    kept = masked.rows(torch.tensor([0, 1, 3, 4, 5, 6, 7]))
    empty = torch.tensor([2])

    one, two = (tiny.gradients_of(tiny.learner(config), x, config) for x in (masked, kept))

    assert tiny.difference(one, two) < 1e-6
    nothing = tiny.gradients_of(tiny.learner(config), masked.rows(empty), config)
    assert all(not gradient.any() for gradient in nothing.values())


def test_a_minibatch_of_empty_responses_is_finite_and_moves_nothing():
    config = tiny.settings(**RATES)
    learner = tiny.learner(config)
    before = tiny.weights(learner)
    made = tiny.rollout(prompts=(2, 3), responses=(0, 0))

    figures = update(learner, make_experience(made, config.ppo), config).values()

    assert all(math.isfinite(figure) for figure in figures.values())
    after = tiny.weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("gap", [1e3, -1e3])
def test_a_huge_log_ratio_keeps_the_update_finite(gap):
    config = tiny.settings(**RATES, target_kl=None)
    learner = tiny.learner(config)
    made = tiny.experience()
    old = torch.where(made.response_mask, made.old_logprobs + gap, torch.tensor(0.0))

    figures = update(learner, replace(made, old_logprobs=old), config).values()

    assert math.isfinite(figures["policy/grad_norm"])
    assert math.isfinite(figures["loss/total"])
    assert all(weight.isfinite().all() for weight in tiny.weights(learner).values())


def test_a_loss_that_is_not_finite_raises_before_a_weight_moves():
    config = tiny.settings(**RATES)
    learner = tiny.learner(config)
    before = tiny.weights(learner)
    made = tiny.experience(returns=torch.full_like(tiny.experience().returns, math.nan))

    with pytest.raises(
        NonFiniteError, match=r"loss/value_avg nan.*no weight was changed.*--resume"
    ):
        update(learner, made, config)

    after = tiny.weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_kl_is_in_the_reward_or_in_the_loss_and_a_stray_coefficient_is_refused():
    made = tiny.experience()
    moved = replace(made, ref_logprobs=made.ref_logprobs - 1.0)
    for placement, same in (("reward", True), ("none", True), ("loss", False)):
        config = tiny.settings(kl_placement=placement)
        one, two = (tiny.gradients_of(tiny.learner(config), x, config) for x in (made, moved))
        assert all(torch.equal(one[name], two[name]) for name in one) == same
    with pytest.raises(ValueError, match=r"ppo.kl_loss_coef 0.1 has no effect"):
        PPOConfig(kl_placement="reward", kl_loss_coef=0.1)
    with pytest.raises(ValueError, match=r"ppo.kl_coef 0.1 has no effect"):
        PPOConfig(kl_placement="loss", kl_coef=0.1)
