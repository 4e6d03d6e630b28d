"""Bytes of models, by hand; the arithmetic of batches, by hand."""

import pytest

from trainers.config import BackendConfig, Config, GenerationConfig, ModelConfig
from trainers.config_ppo import PPOConfig
from trainers.plan.batch import Batch, spelled
from trainers.plan.state import checkpoint_bytes, export_bytes, frozen, trained


def test_a_model_that_learns_takes_sixteen_bytes_a_parameter():
    state = trained(1000)
    assert (state.weights, state.optimizer, state.gradients) == (4000, 8000, 4000)
    assert state.held == 12_000


def test_a_frozen_model_takes_its_weights_alone():
    state = trained(1000) + frozen(500)
    assert (state.weights, state.held, state.gradients) == (6000, 14_000, 4000)


def test_ranks_keep_a_second_copy_of_the_gradients():
    assert trained(1000, ranks=2).held == trained(1000).held + 4000


def test_a_checkpoint_has_weights_and_moments_and_an_export_the_weights():
    assert (checkpoint_bytes(10), export_bytes(10)) == (120, 40)


def settings(**ppo):
    return Config(
        ppo=PPOConfig(num_prompts=12, samples_per_prompt=5, num_minibatches=4, num_epochs=3, **ppo),
        generation=GenerationConfig(max_prompt_tokens=60, max_new_tokens=40),
        backend=BackendConfig(micro_batch_tokens=650),
    )


def test_the_arithmetic_of_a_batch():
    batch = Batch.of(settings())
    assert (batch.rows, batch.width, batch.minibatch_rows, batch.micro_rows) == (60, 100, 15, 6)
    assert (batch.micro_batches, batch.steps, batch.scored_batches) == (3, 12, 10)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (100, 1), (199, 1), (200, 2), (10**6, 15)])
def test_a_micro_batch_holds_what_the_budget_does_and_at_least_one_row(tokens, rows):
    config = settings()
    object.__setattr__(config, "backend", BackendConfig(micro_batch_tokens=tokens))
    assert Batch.of(config).micro_rows == rows


def test_ranks_share_the_rows():
    batch = Batch.of(settings(), ranks=3)
    assert (batch.rank_rows, batch.minibatch_rows) == (20, 5)


def test_the_arithmetic_is_spelled_out():
    said = "\n".join(spelled(settings(num_iterations=7), Batch.of(settings(), ranks=8)))
    for line in (
        "12 prompts x 5 responses = 60 episodes an iteration",
        "60 rows / 8 ranks = 7.5 rows a rank",
        "60 rows / 4 minibatches = 15 rows an optimizer step",
        "4 minibatches x 3 epochs = 12 optimizer steps an iteration",
        "7 iterations: 420 episodes, 84 optimizer steps",
    ):
        assert line in said


def test_a_numeric_run_counts_steps():
    config = Config(model=ModelConfig(preset="mlp"), ppo=PPOConfig(num_prompts=8, num_steps=16))
    assert Batch.of(config).rows == 128
    assert spelled(config, Batch.of(config))[0] == "8 environments x 16 steps = 128 rows"
