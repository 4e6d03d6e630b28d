import pytest
import torch

from llmgym.errors import RewardError
from tests.distributed.ranks import run_ranks
from tests.unit.trainers.collect.tiny import (
    Actor,
    by_task,
    chat_format,
    collector_of,
    config,
    policy,
    single_turn,
    written_by,
)
from trainers.distributed import World

SETTINGS = {"num_prompts": 4, "samples_per_prompt": 2, "reward_normalize": "batch"}


def collected(settings, score, max_new_tokens=8):
    """One rollout of this rank: its tokens by sequence index, its rewards, the pooled metrics."""
    world = World.from_launcher()
    chat = chat_format()
    actor = Actor(policy(chat))
    made = config(ppo=settings, generation={"max_new_tokens": max_new_tokens})
    envs = single_turn(score, num_envs=8 // world.size)
    generator = written_by(actor.policy_module, chat)
    collector = collector_of(chat, envs, generator, made, world=world)
    rollout = collector.collect(actor, 1)
    rows = zip(
        rollout.index.tolist(),
        rollout.inputs.actions,
        rollout.response_mask,
        rollout.rewards.sum(1).tolist(),
        strict=True,
    )
    return {
        "rows": {index: (ids[mask].tolist(), reward) for index, ids, mask, reward in rows},
        "metrics": collector.metrics().values(),
    }


def fails_on_rank_one(sample):
    if World.from_launcher().rank == 1:
        raise ValueError("only here")
    return 1.0


def broken_on_rank_one(sample):
    return None if World.from_launcher().rank == 1 else 1.0


def message_of(score):
    try:
        collected(SETTINGS, score)
    except RewardError as error:
        return str(error)
    return "nothing raised"


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(collected, SETTINGS, by_task)


def test_two_ranks_collect_the_rows_of_one(two_ranks):
    alone = collected(SETTINGS, by_task)
    rows = two_ranks[0]["rows"] | two_ranks[1]["rows"]

    assert {index: ids for index, (ids, _) in rows.items()} == {
        index: ids for index, (ids, _) in alone["rows"].items()
    }
    wanted = torch.tensor([alone["rows"][index][1] for index in range(8)])
    torch.testing.assert_close(torch.tensor([rows[index][1] for index in range(8)]), wanted)


def test_metrics_are_pooled_over_ranks_and_equal_on_each(two_ranks):
    alone = collected(SETTINGS, by_task)
    one, other = (rank["metrics"] for rank in two_ranks)

    assert one == other
    for key, value in alone["metrics"].items():
        if not key.startswith(("timing_s/", "perf/")):
            assert one[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize(
    ("score", "said"), [(fails_on_rank_one, "only here"), (broken_on_rank_one, "returned None")]
)
def test_a_reward_that_fails_on_one_rank_raises_on_both(score, said):
    messages = run_ranks(message_of, score)

    assert messages[0] == messages[1]
    assert said in messages[0]
