from contextlib import nullcontext
from functools import partial
from unittest import mock

import pytest
import torch

from llmgym.errors import RewardError
from llmgym.vector import LLMVectorEnv
from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.unit.trainers.collect.tiny import (
    Actor,
    Talk,
    by_task,
    chat_format,
    collector_of,
    config,
    llama,
    policy,
    scripted,
    single_turn,
    written_by,
)
from trainers.distributed.collectives import World
from trainers.models.chat import ChatFormat
from trainers.ppo import learn, make_experience

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


def talked(turns):
    """Actions of each row of a rollout in which the k-th episode of all ranks takes turns[k]."""
    world = World.from_launcher()
    chat = chat_format()
    said = [chat.response_ids(text) for text in ("abc", "hello", "cab")]
    mine = turns[world.rank * len(turns) // world.size :][: len(turns) // world.size]
    envs = LLMVectorEnv([partial(Talk, count) for count in mine])
    settings = tiny.settings(num_prompts=len(turns), samples_per_prompt=1, kl_placement="none")
    script = {index: said * 2 for index in range(len(turns))}  # an idle rank asks as 0
    # The second half of the episodes has a row for each turn.
    apart = mock.patch.object(ChatFormat, "suffix_ids", return_value=None)
    learner = tiny.learner(settings, model=llama(chat))
    with apart if world.rank else nullcontext():
        collector = collector_of(chat, envs, scripted(chat, script), settings, world=world)
        rollout = collector.collect(learner, 0)
    experience = make_experience(rollout, settings.ppo)
    figures = learn(learner, experience, settings, 0).values()
    weights = torch.cat([value.flatten() for _, value in learner.weights()])
    rows = zip(rollout.index.tolist(), rollout.response_mask.sum(1).tolist(), strict=True)
    return list(rows), figures["loss/total"], float(weights.double().sum())


def test_ranks_whose_episodes_take_unequal_turns_and_rows_stay_in_step():
    turns = [1, 1, 3, 2]
    (first, loss, weights), (second, other_loss, other_weights) = run_ranks(talked, turns)

    assert [index for index, _ in first] == [0, 1]
    assert [index for index, _ in second] == [2, 2, 2, 3, 3]
    assert (loss, weights) == (other_loss, other_weights)
    alone, alone_loss, alone_weights = talked(turns)
    assert sum(count for _, count in alone) == sum(count for _, count in first + second)
    assert loss == pytest.approx(alone_loss, rel=1e-4)
    assert weights == pytest.approx(alone_weights, rel=1e-6)


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
