"""The gradient of an update does not depend on how its rows are split."""

import pytest
import torch

from tests import tiny
from trainers.functional.packing import packed

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
    assert {split: len(packed(sizes, budget)) for split, budget in BUDGETS.items()} == PARTS
