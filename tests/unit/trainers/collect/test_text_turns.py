import pytest
import torch

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
)
from trainers.batch import TextInputs
from trainers.collect.text import next_values


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


def test_the_final_score_of_a_cut_dialogue_is_not_paid_on_top_of_its_value(chat):
    class AtEnd(Reward):
        name, per_turn, collective = "at_end", False, False

        def score(self, samples):
            return [50.0 for _ in samples]

    end = chat.eos_token_ids[0]
    script = {i: [[40, end], [41, end]] for i in range(4)}
    collector = talking(chat, 9, scripted(chat, script), max_turns=2, reward=AtEnd())
    rollout = collector.collect(Actor(policy(chat)), 0)

    assert rollout.rewards.sum(1).tolist() == [1.0] * 4


def test_next_values_skip_what_the_environment_said():
    # As drawn in next_values: two actions, two observed tokens, one action, one of padding.
    values = torch.arange(7.0)[None]

    inputs = TextInputs(
        tokens=torch.zeros(1, 7, dtype=torch.long),
        attention_mask=torch.tensor([[1, 1, 1, 1, 1, 1, 0]], dtype=torch.bool),
        num_prompt=1,
    )
    sampled = torch.tensor([[1, 1, 0, 0, 1, 0]], dtype=torch.bool)

    assert next_values(values, sampled, inputs)[0, [0, 1, 4]].tolist() == [1.0, 4.0, 5.0]
