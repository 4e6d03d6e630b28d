"""The gradient of an update does not depend on how its rows are split."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from trainers.functional.row_groups import padded_groups

BUDGETS = {"1 x 8": 88, "2 x 4": 44, "8 x 1": 1}
"""Micro-batches x rows, and the budget of tokens that gives them."""
PARTS = {"1 x 8": 1, "2 x 4": 2, "8 x 1": 8}
MODES = {
    "token": {},
    "sequence": {"loss_aggregation": "sequence"},
    "constant": {"loss_aggregation": "constant"},
    "every term": {
        "entropy_coef": 0.2,
        "kl_placement": "loss",
        "kl_loss_coef": 0.5,
        "mismatch_correction": "tis",
        "clip_dual": 3.0,
    },
    "a critic that reads log-probabilities": {"critic_reads_logprobs": True},
}


def batch():
    """Eight rows whose long halves have one width, so that budgets give the splits named."""
    prompts, responses = (3, 1, 5, 2, 5, 1, 2, 3), (1, 2, 6, 1, 6, 6, 6, 2)
    made = tiny.rollout(prompts=prompts, responses=responses)
    shape = made.response_mask.shape
    return tiny.experience(
        inputs=made.inputs,
        response_mask=made.response_mask,
        old_logprobs=made.logprobs,
        ref_logprobs=made.ref_logprobs,
        generator_logprobs=made.generator_logprobs,
        old_values=made.values,
        advantages=tiny.noise(shape, 8),
        returns=tiny.noise(shape, 9),
    )


@pytest.mark.parametrize("critic", ["separate", "shared", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_do_not_depend_on_the_micro_batches(critic, mode):
    found = {}
    for split, budget in BUDGETS.items():
        config = tiny.settings(critic=critic, tokens=budget, **MODES[mode])
        learner = tiny.learner(config)
        assert len(learner.micro_batches(batch())) == PARTS[split]
        found[split] = tiny.gradients_of(learner, batch(), config)

    assert tiny.difference(found["1 x 8"], found["2 x 4"]) < 1e-6
    assert tiny.difference(found["1 x 8"], found["8 x 1"]) < 1e-6


@pytest.mark.parametrize("critic", ["separate", "shared", "none"])
def test_the_order_of_rows_does_not_matter(critic):
    config = tiny.settings(critic=critic, tokens=44)
    turned = batch().rows(torch.tensor([3, 0, 6, 1, 7, 2, 5, 4]))

    one, other = (tiny.gradients_of(tiny.learner(config), x, config) for x in (batch(), turned))

    assert tiny.difference(one, other) < 1e-6


def test_the_budgets_give_the_splits_that_they_name():
    sizes = batch().inputs.sizes
    assert {split: len(padded_groups(sizes, budget)) for split, budget in BUDGETS.items()} == PARTS


def grouped():
    """The same batch, three rows of each prompt but the last, which has two."""
    made = batch()
    prompt, first = made.inputs.num_prompt, torch.arange(8) // 3 * 3
    tokens, mask = made.inputs.tokens.clone(), made.inputs.attention_mask.clone()
    for columns in (tokens, mask):
        columns[:, :prompt] = columns[first, :prompt].clone()
    return replace(made, inputs=replace(made.inputs, tokens=tokens, attention_mask=mask))


@pytest.mark.parametrize("critic", ["separate", "shared", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_do_not_depend_on_padding_or_on_sharing_prompts(critic, mode):
    found = {}
    for made, name in ((batch(), "rows"), (grouped(), "groups")):
        for packs, tokens in ((False, 1_000_000), (True, 1_000_000), (True, 20)):
            config = tiny.settings(critic=critic, tokens=tokens, **MODES[mode])
            learner = tiny.learner(config, packs=packs)
            found[name, packs, tokens] = tiny.gradients_of(learner, made, config)
        for tokens in (1_000_000, 20):
            packed = found[name, True, tokens]
            assert tiny.difference(found[name, False, 1_000_000], packed) < 2e-6
    assert tiny.difference(found["rows", True, 20], found["groups", True, 20]) > 1e-3


def test_packed_micro_batches_count_no_padding_and_a_shared_prompt_once():
    config = tiny.settings(tokens=1_000_000)
    learner = tiny.learner(config, packs=True)
    seen = []
    learner.policy_module.model.model.embed_tokens.register_forward_hook(
        lambda *args: seen.append(args[2].shape[1])
    )
    tiny.gradients_of(learner, grouped(), config)
    responses = int(batch().response_mask.sum())
    prompts = grouped().inputs.attention_mask[::3, : batch().inputs.num_prompt]
    assert seen == [int(prompts.sum()) + responses]
