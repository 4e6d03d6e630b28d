"""Bytes of models, by hand; the arithmetic of batches, by hand."""

import pytest

from trainers.backends.zero.json import engine_json
from trainers.config import BackendConfig, Config, GenerationConfig, RunConfig
from trainers.config.backend import ZeroConfig
from trainers.config.ppo import PPOConfig
from trainers.plan.batch import BatchShape, spelled
from trainers.plan.state import Holding, checkpoint_bytes, export_bytes

PLAIN = Holding()
NUM = 10**9


def zero(*, stage, offload="none", ranks=4, is_bf16=True, is_gpu=True):
    """Return how ranks hold models under ZeRO, as DeepSpeed is told to."""
    settings = ZeroConfig(stage=stage, offload=offload)
    json = engine_json(
        settings, {"lr": 1.0}, max_grad_norm=1.0, is_bf16=is_bf16, on_gpu=is_gpu, tuning={}
    )
    return Holding(ranks=ranks, is_gpu=is_gpu, json=json)


def test_a_model_that_learns_takes_sixteen_bytes_a_parameter():
    state = PLAIN.trained(1000)
    assert (state.weights, state.optimizer, state.gradients) == (4000, 8000, 4000)
    assert state.held == 12_000


def test_a_frozen_model_takes_its_weights_alone():
    state = PLAIN.trained(1000) + PLAIN.frozen(500)
    assert (state.weights, state.held, state.gradients) == (6000, 14_000, 4000)


def test_ranks_keep_a_second_copy_of_the_gradients():
    assert Holding(ranks=2).trained(1000).held == PLAIN.trained(1000).held + 4000


@pytest.mark.parametrize(
    ("stage", "offload", "on_gpu", "on_host"),
    [
        (0, "none", 4 + 4 + 8, 0),
        (1, "none", 2 + 4 + 2 + 12 / 4, 0),
        (2, "none", 2 + (4 + 12) / 4, 0),
        (3, "none", (2 + 4 + 12) / 4, 0),
        (1, "optimizer", 2 + 2, (12 + 4 + 2) / 4),
        (2, "optimizer", 2, (12 + 4 + 2 + 2) / 4),
        (3, "optimizer", 2 / 4, (12 + 4 + 4) / 4),
        (3, "params", 0, (2 + 12 + 4 + 4) / 4),
    ],
)
def test_stages_share_out_and_offloads_move(stage, offload, on_gpu, on_host):
    state = zero(stage=stage, offload=offload).trained(NUM)
    stands = state.weights + state.optimizer + state.gradients
    assert (stands / NUM, state.host / NUM) == (on_gpu, on_host)


def test_in_float32_the_masters_of_stage_three_are_a_second_copy():
    state = zero(stage=3, is_bf16=False).trained(NUM)
    assert state.weights + state.optimizer + state.gradients == (4 + 12 + 4) * NUM / 4


@pytest.mark.parametrize("offload", ["optimizer", "params"])
def test_without_a_gpu_what_is_offloaded_stays_in_the_same_memory(offload):
    away = zero(stage=3, offload=offload).trained(NUM)
    here = zero(stage=3, offload=offload, is_gpu=False).trained(NUM)
    assert here.host == 0
    assert here.weights + here.optimizer == away.weights + away.optimizer + away.host


@pytest.mark.parametrize(("stage", "share"), [(0, 4), (2, 2), (3, 0.5)])
def test_a_reference_is_shared_out_where_the_policy_is(stage, share):
    assert zero(stage=stage).frozen(NUM).weights == share * NUM


def test_a_copy_to_write_with_is_made_at_stage_three_if_it_is_small_enough():
    assert zero(stage=3).copied(NUM, 2 * NUM).weights == 2 * NUM
    assert zero(stage=3).copied(NUM, 2 * NUM - 1).weights == 0
    assert zero(stage=2).copied(NUM, 2 * NUM).weights == 0


def test_of_several_models_one_is_gathered_at_a_time():
    holding = zero(stage=3)
    both = holding.trained(NUM) + holding.trained(NUM // 2)
    assert both.window == holding.trained(NUM).window == 2 * NUM


@pytest.mark.parametrize(
    ("holding", "can"),
    [
        (Holding(is_gpu=True), True),
        (PLAIN, False),
        (zero(stage=1), False),
        (zero(stage=2), True),
        (zero(stage=3), True),
        (zero(stage=3, is_gpu=False), False),
        (zero(stage=2, offload="optimizer"), False),
        (zero(stage=3, offload="params"), False),
    ],
)
def test_moments_leave_a_gpu_where_the_backend_can_move_them(holding, can):
    assert holding.can_leave is can


def test_a_checkpoint_has_weights_and_moments_and_an_export_the_weights():
    assert (checkpoint_bytes(10), export_bytes(10)) == (120, 40)


@pytest.mark.parametrize(("stage", "main", "other"), [(0, 12, 0), (1, 3, 3), (2, 3, 3), (3, 3, 3)])
def test_a_rank_saves_its_share_and_rank_0_what_all_have(stage, main, other):
    holding = zero(stage=stage)
    assert holding.saved(NUM, is_main=True) == main * NUM
    assert holding.saved(NUM, is_main=False) == other * NUM


@pytest.mark.parametrize(
    ("holding", "bytes_each"),
    [
        (zero(stage=3), 2),  # gathered
        (zero(stage=3, is_bf16=False, is_gpu=False), 4),
        (zero(stage=2), 2),  # from the GPU
        (Holding(is_gpu=True), 4),
        (zero(stage=2, is_gpu=False), 0),  # from where it lies
        (PLAIN, 0),
    ],
)
def test_an_export_copies_what_does_not_lie_on_the_host(holding, bytes_each):
    assert holding.exported(NUM, is_adapted=False) == bytes_each * NUM


def test_an_export_reads_a_gpu_one_file_after_another_and_gathers_shares_at_once():
    much = 100 * NUM
    assert zero(stage=2).exported(much, is_adapted=False) == 50 * 10**9
    assert zero(stage=3).exported(much, is_adapted=False) == 2 * much


@pytest.mark.parametrize("holding", [zero(stage=3), zero(stage=2, is_gpu=False)])
def test_an_export_adds_adapters_to_copies(holding):
    assert holding.exported(NUM, is_adapted=True) == 2 * holding.weight * NUM


def settings(**ppo):
    return Config(
        ppo=PPOConfig(num_prompts=12, samples_per_prompt=5, num_minibatches=4, num_epochs=3, **ppo),
        generation=GenerationConfig(max_prompt_tokens=60, max_new_tokens=40),
        backend=BackendConfig(micro_batch_tokens=650),
    )


def test_the_arithmetic_of_a_batch():
    batch = BatchShape.of(settings())
    assert (batch.rows, batch.width, batch.minibatch_rows, batch.micro_rows) == (60, 100, 15, 6)
    assert (batch.micro_batches, batch.steps, batch.scored_batches) == (3, 12, 10)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (100, 1), (199, 1), (200, 2), (10**6, 15)])
def test_a_micro_batch_holds_what_the_budget_does_and_at_least_one_row(tokens, rows):
    config = settings()
    object.__setattr__(config, "backend", BackendConfig(micro_batch_tokens=tokens))
    assert BatchShape.of(config).micro_rows == rows


def test_ranks_share_the_rows():
    batch = BatchShape.of(settings(), ranks=3)
    assert (batch.rank_rows, batch.minibatch_rows) == (20, 5)


def test_the_arithmetic_is_spelled_out():
    said = "\n".join(spelled(settings(num_iterations=7), BatchShape.of(settings(), ranks=8)))
    for line in (
        "12 prompts x 5 responses = 60 episodes an iteration",
        "60 rows / 8 ranks = 7.5 rows a rank",
        "60 rows / 4 minibatches = 15 rows an optimizer step",
        "4 minibatches x 3 epochs = 12 optimizer steps an iteration",
        "7 iterations: 420 episodes, 84 optimizer steps",
    ):
        assert line in said


def test_a_numeric_run_counts_steps():
    config = Config(run=RunConfig(kind="control"), ppo=PPOConfig(num_prompts=8, num_steps=16))
    assert BatchShape.of(config).rows == 128
    assert spelled(config, BatchShape.of(config))[0] == "8 environments x 16 steps = 128 rows"
