from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from llmgym.env import SingleTurnEnv
from llmgym.errors import RewardError
from llmgym.messages import Score
from llmgym.rewards.base import Reward
from llmgym.vector import LLMVectorEnv
from tests.unit.trainers.collect.tiny import (
    Actor,
    Talk,
    chat_format,
    collector_of,
    config,
    length_score,
    policy,
    scripted,
    single_turn,
    tasks,
)
from trainers.batch import TextInputs
from trainers.collect.rollout import next_values
from trainers.ppo import make_experience


@pytest.fixture(scope="module")
def chat():
    return chat_format()


def talking(chat, turns, generator, *, settings=None, num_envs=4, **kwargs):
    envs = LLMVectorEnv([lambda: Talk(turns, **kwargs)] * num_envs)
    return collector_of(chat, envs, generator, settings or config())


def test_several_turns_keep_their_rewards_and_only_sampled_tokens_count(chat):
    end = chat.eos_token_ids[0]
    script = {i: [[40, end], [41, 42, end], [43, end]] for i in range(4)}
    generator = scripted(chat, script)
    collector = talking(chat, 3, generator)
    rollout = collector.collect(Actor(policy(chat)), 0)

    assert rollout.response_mask.sum(1).tolist() == [7] * 4
    paid = [row[row != 0].tolist() for row in rollout.rewards]
    assert paid == [[1.0, 2.0, 3.0]] * 4
    assert (rollout.rewards[~rollout.response_mask] == 0).all()
    positions = [[one.position for one in asked] for asked in generator.asked]
    assert positions == [[0] * 4, [2] * 4, [5] * 4]
    assert rollout.terminated.sum(1).tolist() == [1] * 4
    assert torch.equal(rollout.terminated, rollout.boundary)


def test_the_next_value_is_that_of_the_state_of_the_next_action(chat):
    end = chat.eos_token_ids[0]
    script = {i: [[40, end], [41, 42, end]] for i in range(4)}
    collector = talking(chat, 2, scripted(chat, script))
    rollout = collector.collect(Actor(policy(chat)), 0)

    mask = rollout.response_mask[0]
    places = mask.nonzero().flatten().tolist()
    assert rollout.values[0].tolist() == list(range(len(mask)))
    wanted = [*places[1:], len(mask)]  # behind the end: nothing was said after the last turn
    assert rollout.next_values[0, places].tolist() == wanted


def test_a_cut_dialogue_bootstraps_behind_the_last_observation(chat):
    end = chat.eos_token_ids[0]
    script = {i: [[40, end], [41, end]] for i in range(4)}
    collector = talking(chat, 9, scripted(chat, script), max_turns=2)
    rollout = collector.collect(Actor(policy(chat)), 0)

    last = int(rollout.boundary[0].nonzero())
    length = int(rollout.inputs.attention_mask[0, rollout.inputs.num_prompt :].sum())
    assert not rollout.terminated.any()
    assert length > last + 1
    assert float(rollout.next_values[0, last]) == length


def test_values_of_padding_never_reach_the_next_values(chat):
    end = chat.eos_token_ids[0]
    script = {0: [[40] * 6 + [end]], 1: [[40, end]], 2: [[end]], 3: [[40] * 8]}
    collector = collector_of(chat, single_turn(length_score), scripted(chat, script), config())
    actor = Actor(policy(chat))
    rollout = collector.collect(actor, 0)

    class Wild(Actor):
        def values(self, inputs):
            values = super().values(inputs).clone()
            used = inputs.attention_mask[:, inputs.num_prompt - 1 :].clone()
            used[:, 0] = True
            return values.masked_fill(~used, float("nan"))

    again = collector_of(
        chat,
        single_turn(length_score),
        scripted(chat, {0: [[40] * 6 + [end]], 1: [[40, end]], 2: [[end]], 3: [[40] * 8]}),
        config(),
    ).collect(Wild(actor.policy_module), 0)
    mask = rollout.response_mask
    assert torch.equal(rollout.values[mask], again.values[mask])
    assert torch.equal(rollout.next_values[mask], again.next_values[mask])


@pytest.mark.parametrize("kind", ["single", "several"])
def test_on_truncation_auto_scores_one_turn_and_bootstraps_several(chat, kind):
    script = {i: [[40] * 8] for i in range(4)}
    envs = single_turn(length_score) if kind == "single" else LLMVectorEnv([Talk] * 4)
    rollout = collector_of(chat, envs, scripted(chat, script), config()).collect(
        Actor(policy(chat)), 0
    )

    assert rollout.boundary.sum(1).tolist() == [1] * 4
    assert rollout.terminated.any(1).tolist() == [kind == "single"] * 4


@pytest.mark.parametrize(
    ("mode", "rewards", "ends", "counts"),
    [
        ("score", [1.0, 2.0], True, True),
        ("bootstrap", [1.0, 2.0], False, True),
        ("penalty", [1.0, -3.0], True, True),
        ("mask", [], False, False),
    ],
)
@pytest.mark.parametrize("limit", ["turns", "tokens"])
def test_a_cut_dialogue_is_what_on_truncation_says(chat, mode, rewards, ends, counts, limit):
    end = chat.eos_token_ids[0]
    script = {i: [[40, end], [41, end] if limit == "turns" else [41] * 8] for i in range(4)}
    settings = config(
        ppo={"on_truncation": mode, "truncation_penalty": -3.0, "whiten_advantages": False}
    )
    turns = 2 if limit == "turns" else 9
    collector = talking(chat, 9, scripted(chat, script), settings=settings, max_turns=turns)
    rollout = collector.collect(Actor(policy(chat)), 0)

    mask = rollout.response_mask
    assert mask.any(1).tolist() == [counts] * 4
    assert [row[row != 0].tolist() for row in rollout.rewards] == [rewards] * 4
    assert rollout.terminated.any(1).tolist() == [ends] * 4
    if counts:  # the law: at gamma = lambda = 1 the return counts what comes after, or nothing
        made = make_experience(rollout, replace(settings.ppo, gae_lambda=1.0))
        last = rollout.boundary.nonzero()[:, 1]
        after = rollout.next_values[torch.arange(4), last]
        found = made.returns[torch.arange(4), mask.float().argmax(1)]
        torch.testing.assert_close(found, sum(rewards) + after * (not ends))


def test_a_dialogue_that_fills_the_model_is_cut_and_bootstraps_behind_its_last_token(chat):
    end = chat.eos_token_ids[0]
    script = {i: [[40, end], [41, end], [42, end]] for i in range(4)}
    opening = len(chat.prompt_ids([{"role": "user", "content": "ask 0"}]))
    collector = talking(chat, 9, scripted(chat, script))
    collector._writer._parts = replace(collector._parts, max_tokens=opening + 12)
    rollout = collector.collect(Actor(policy(chat)), 0)

    assert {row["stop_reason"] for row in collector.samples()} == {"context"}
    last = rollout.boundary.nonzero()[:, 1]
    assert not rollout.terminated.any()
    assert (rollout.next_values[torch.arange(4), last] % 100).tolist() == (last + 1).tolist()


def test_an_episode_whose_end_nobody_scored_is_dropped_and_no_zero(chat):
    class Some(Reward):
        name, per_turn, collective = "some", False, False

        def score(self, samples):
            return [
                Score(0.0, status="abstain") if sample.task.id in ("t0", "t1", "t2") else 5.0
                for sample in samples
            ]

    end = chat.eos_token_ids[0]
    settings = config(ppo={"num_prompts": 6, "samples_per_prompt": 1, "max_error_rate": 0.5})
    for envs, paid in (([lambda: Talk(2, Some())] * 6, 8.0), ([single(Some())] * 6, 5.0)):
        script = {i: [[40, end], [41, end]] for i in range(6)}
        collector = collector_of(chat, LLMVectorEnv(envs), scripted(chat, script), settings)
        rollout = collector.collect(Actor(policy(chat)), 0)
        figures = collector.metrics().values()

        assert sorted(rollout.response_mask.any(1).tolist()) == [False] * 3 + [True] * 3
        assert figures["objective/scores"] == paid
        assert figures["rewards/errors"] == 3
    strict = config(ppo={"num_prompts": 6, "samples_per_prompt": 1})
    script = {i: [[40, end], [41, end]] for i in range(6)}
    envs = LLMVectorEnv([lambda: Talk(2, Some())] * 6)
    with pytest.raises(RewardError, match="abstained from the last response of the episode on"):
        collector_of(chat, envs, scripted(chat, script), strict).collect(Actor(policy(chat)), 0)


def single(reward):
    """Makes an environment of one turn."""
    return lambda: SingleTurnEnv(tasks(), reward)


def test_spans_of_a_score_reach_their_tokens(chat):
    class Steps(Reward):
        name, per_turn, collective = "steps", False, False

        def score(self, samples):
            return [Score(3.0, spans=((0, 1, 0.5), (1, 2, 0.25))) for _ in samples]

    a, b, c = chat.tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    script = {i: [[a, b, c, chat.eos_token_ids[0]]] for i in range(4)}
    envs = LLMVectorEnv([single(Steps())] * 4)
    rollout = collector_of(chat, envs, scripted(chat, script), config()).collect(
        Actor(policy(chat)), 0
    )

    assert rollout.rewards.tolist() == [[0.5, 0.25, 0.0, 2.25]] * 4


def test_the_final_score_of_a_cut_dialogue_is_not_paid_on_top_of_its_value(chat):
    class AtEnd(Reward):
        name, per_turn, collective = "at_end", False, False

        def score(self, samples):
            return [50.0 for _ in samples]

    end = chat.eos_token_ids[0]
    script = {i: [[40, end], [41, end]] for i in range(4)}
    collector = talking(chat, 9, scripted(chat, script), max_turns=2, reward=AtEnd())
    rollout = collector.collect(Actor(policy(chat)), 0)

    assert rollout.rewards.sum(1).tolist() == [3.0] * 4  # what the world paid for both turns


def test_next_values_skip_what_the_environment_said():
    # As drawn in next_values: two actions, two observed tokens, one action, one of padding.
    values = torch.arange(7.0)[None]

    episodes = laid_out([[1, 1, 0, 0, 1, 0]], [[1, 1, 1, 1, 1, 1, 0]], owner=[0])

    assert next_values(values, episodes)[0, [0, 1, 4]].tolist() == [1.0, 4.0, 5.0]


def test_the_next_value_of_a_rows_last_action_is_the_first_of_the_episodes_next_row():
    values = torch.arange(12.0).reshape(4, 3)
    said = [[1, 1, 0]] + [[1, 1, 1]] * 2 + [[1, 0, 0]]  # the last row is a state, without actions
    episodes = laid_out([[1, 0], [1, 1], [0, 1], [0, 0]], said, owner=[0, 0, 1, 1])

    found = next_values(values, episodes)
    assert found[0, 0] == 3.0
    assert found[1].tolist() == [4.0, 5.0]  # the episode ends with its row
    assert found[2, 1] == 9.0


def laid_out(sampled, attention, owner):
    """Rows of one prompt token, as far as `next_values` looks at them."""
    mask = torch.tensor(attention, dtype=torch.bool)
    inputs = TextInputs(tokens=torch.zeros_like(mask).long(), attention_mask=mask, num_prompt=1)
    sampled = torch.tensor(sampled, dtype=torch.bool)
    return SimpleNamespace(inputs=inputs, sampled=sampled, owner=torch.tensor(owner))
