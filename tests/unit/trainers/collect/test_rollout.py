from dataclasses import replace

import numpy as np
import pytest
import torch

from llmgym.env import LLMEnv
from llmgym.errors import RewardError, TaskSourceError
from llmgym.messages import Reply
from llmgym.vector import LLMVectorEnv
from tests.unit.trainers.collect.tiny import (
    Actor,
    Scripted,
    by_task,
    chat_format,
    collector_of,
    config,
    length_score,
    policy,
    rollout_of,
    scripted,
    single_turn,
    tasks,
    written_by,
)
from trainers.collect.play import PlayOptions, play
from trainers.distributed.collectives import World
from trainers.errors import GenerationError
from trainers.generation.base import Sampling


@pytest.fixture(scope="module")
def chat():
    return chat_format()


def test_the_support_of_training_is_the_whole_vocabulary(chat):
    # Expected importance weight under the sampler: 1 where the two supports are the same.
    settings = config(
        ppo={"num_prompts": 2, "samples_per_prompt": 300}, generation={"max_new_tokens": 1}
    )
    actor = Actor(policy(chat))
    envs = single_turn(length_score, num_envs=600)
    collector = collector_of(chat, envs, written_by(actor.policy_module, chat), settings)
    rollout = collector.collect(actor, 0)

    ratio = torch.exp(rollout.logprobs - rollout.generator_logprobs)[rollout.response_mask]
    assert float(ratio.mean()) == pytest.approx(1.0, abs=1e-4)
    assert len(set(rollout.inputs.actions[:, 0].tolist())) > 100


def test_rows_have_the_same_draws_at_any_number_of_ranks(chat):
    settings = config(ppo={"num_prompts": 4, "samples_per_prompt": 2})
    actor = Actor(policy(chat))

    def rows(rank, size):
        envs = single_turn(by_task, num_envs=8 // size)
        generator = written_by(actor.policy_module, chat)
        world = World(rank=rank, size=size)
        collector = collector_of(chat, envs, generator, settings, world=world)
        rollout = collector.collect(actor, 2)
        return {
            int(index): (row["prompt"], tuple(actions[mask].tolist()))
            for index, row, actions, mask in zip(
                rollout.index,
                collector.samples(),
                rollout.inputs.actions,
                rollout.response_mask,
                strict=True,
            )
        }

    whole = rows(0, 1)
    assert sorted(whole) == list(range(8))
    assert rows(0, 2) | rows(1, 2) == whole


def test_prompts_and_rewards_belong_together_and_groups_share_a_prompt(chat):
    collector, rollout = rollout_of(chat, score=by_task)

    for row, reward in zip(collector.samples(), rollout.rewards.sum(1), strict=True):
        assert row["prompt"] == f"ask {int(row['reward'])}"
        assert float(reward) == row["reward"]
    prompts = [row["prompt"] for row in collector.samples()]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]


def test_the_next_rollout_draws_other_tasks_and_other_tokens(chat):
    actor = Actor(policy(chat))
    envs, generator = single_turn(length_score), written_by(actor.policy_module, chat)
    collector = collector_of(chat, envs, generator, config())

    first = (collector.collect(actor, 0), collector.samples())
    second = (collector.collect(actor, 1), collector.samples())

    assert {row["prompt"] for row in first[1]}.isdisjoint(row["prompt"] for row in second[1])
    assert first[1][0]["completion"] != second[1][0]["completion"]


def test_a_failed_reward_leaves_the_loss_and_every_mean(chat):
    def fails_on_the_third(sample):
        return float("nan") if sample.response.startswith("c") else 1.0 + len(sample.response)

    plain = {t: chat.tokenizer.convert_tokens_to_ids(t) for t in "abc"}
    end = chat.eos_token_ids[0]
    script = {0: [[plain["a"], end]], 1: [[plain["a"]] * 3 + [end]]}
    script |= {2: [[plain["c"], end]], 3: [[plain["b"], end]]}
    settings = config(ppo={"max_error_rate": 0.25})
    envs = single_turn(fails_on_the_third)
    collector = collector_of(chat, envs, scripted(chat, script), settings)

    rollout = collector.collect(Actor(policy(chat)), 0)
    figures = collector.metrics().values()

    assert rollout.response_mask.any(1).tolist() == [True, True, False, True]
    assert not rollout.rewards[2].any()
    assert figures["objective/scores"] == pytest.approx((2 + 4 + 2) / 3)
    assert figures["objective/scores_std"] == pytest.approx(np.std([2, 4, 2]))
    assert figures["rewards/errors"] == 1


def test_too_many_failed_rewards_stop_the_run_with_the_first_failure(chat):
    def divides(sample):
        return 1 / 0 if sample.task.id != "t9" else 1.0

    script = {i: [[40, chat.eos_token_ids[0]]] for i in range(4)}
    collector = collector_of(chat, single_turn(divides), scripted(chat, script), config())

    with pytest.raises(RewardError, match=r"failed on 100% of samples, max_error_rate is 20%") as e:
        collector.collect(Actor(policy(chat)), 0)

    assert "ZeroDivisionError: division by zero at" in str(e.value)
    assert "on task t" in str(e.value)
    assert "never counted as 0" in str(e.value)


def test_a_broken_reward_function_stops_the_run_at_once(chat):
    script = {i: [[40, chat.eos_token_ids[0]]] for i in range(4)}
    envs = single_turn(lambda sample: None)
    collector = collector_of(chat, envs, scripted(chat, script), config())

    with pytest.raises(RewardError, match="returned None"):
        collector.collect(Actor(policy(chat)), 0)


def test_long_prompts_raise_or_are_dropped_and_counted(chat):
    long = "ask {} " + "hello " * 40
    settings = config(generation={"max_prompt_tokens": 30})
    actor = Actor(policy(chat))

    def collect(mode, **kwargs):
        envs = single_turn(length_score, **kwargs)
        generator = written_by(actor.policy_module, chat)
        changed = replace(settings, data=replace(settings.data, too_long=mode))
        collector = collector_of(chat, envs, generator, changed)
        return collector, collector.collect(actor, 0)

    with pytest.raises(TaskSourceError, match="100 % of prompts are longer than") as error:
        collect("raise", prompt=long)
    assert "--data.too-long drop" in str(error.value)

    collector, rollout = collect("drop", prompt=long)
    figures = collector.metrics().values()
    assert figures["env/llmgym/Arithmetic-v0/truncated_prompts"] == 4
    assert figures["rewards/errors"] == 0
    assert not rollout.response_mask.any()

    collector, _ = collect("drop")
    assert collector.metrics().values()["env/llmgym/Arithmetic-v0/truncated_prompts"] == 0


@pytest.mark.parametrize("reads", [False, True])
def test_a_critic_that_reads_log_probabilities_gets_the_old_ones_and_no_other(chat, reads):
    settings = config(ppo={"critic_reads_logprobs": reads})
    actor = Actor(policy(chat))
    generator = written_by(actor.policy_module, chat)
    rollout = collector_of(chat, single_turn(length_score), generator, settings).collect(actor, 0)

    logprobs = rollout.inputs.logprobs
    assert (logprobs is not None) == reads
    if logprobs is not None:
        assert torch.equal(logprobs, rollout.logprobs * rollout.response_mask)
        assert logprobs.min() < 0


def test_weights_are_synced_by_version_and_stale_text_is_refused(chat):
    script = {i: [[40, chat.eos_token_ids[0]]] for i in range(4)}
    generator = scripted(chat, script)
    collector = collector_of(chat, single_turn(length_score), generator, config())

    collector.collect(Actor(policy(chat), version=7), 0)
    assert generator.policy_version == 7
    assert {row["policy_version"] for row in collector.samples()} == {7}

    class Stale(Scripted):
        @property
        def policy_version(self):
            return 8

    stale = Stale({i: [[40]] for i in range(4)}, chat.eos_token_ids, version=7)
    collector = collector_of(chat, single_turn(length_score), stale, config())
    with pytest.raises(GenerationError, match="policy version 7, the weights in use are version 8"):
        collector.collect(Actor(policy(chat), version=8), 0)


def test_a_collector_goes_on_from_its_state_bit_for_bit(chat):
    settings = config(ppo={"reward_normalize": "running"})
    actor = Actor(policy(chat))

    def fresh():
        generator = written_by(actor.policy_module, chat)
        return collector_of(chat, single_turn(length_score), generator, settings)

    straight = fresh()
    straight.collect(actor, 0)
    state = straight.state_dict()
    wanted = straight.collect(actor, 1)
    resumed = fresh()
    resumed.load_state_dict(state)
    got = resumed.collect(actor, 1)

    assert torch.equal(got.inputs.tokens, wanted.inputs.tokens)
    assert torch.equal(got.rewards, wanted.rewards)
    assert resumed.state_dict() == straight.state_dict()


def test_play_is_greedy_where_evaluation_asks_for_it(chat):
    actor = policy(chat)
    options = PlayOptions(indices=[0, 1], index=[0, 1], world=World())

    def episodes(seed):
        return play(
            single_turn(length_score, num_envs=2),
            written_by(actor, chat),
            chat=chat,
            config=config(),
            sampling=Sampling(greedy=True, seed=seed),
            options=options,
        )

    one, other = episodes(0), episodes(1)
    assert torch.equal(one.inputs.tokens, other.inputs.tokens)
    assert one.scores.tolist() == [sum(slot.rewards) for slot in one.slots]


class Drawing(LLMEnv):
    """Draws what it asks and what it pays."""

    def __init__(self):
        super().__init__(tasks(), None)

    def prompt(self, task):
        return f"ask {self.np_random.integers(10**6)}"

    def reply(self, response):
        return Reply(messages="", done=True, reward=float(self.np_random.random()))


def test_what_an_environment_draws_is_fixed_by_seed_iteration_and_group(chat):
    actor = policy(chat)

    def drawn(index, iteration=0, seed=0):
        slots = play(
            LLMVectorEnv([Drawing] * len(index)),
            written_by(actor, chat),
            chat=chat,
            config=config(),
            sampling=Sampling(seed=seed, iteration=iteration),
            options=PlayOptions(
                indices=[0] * (len(index) // 2), index=index, group_size=2, world=World()
            ),
        ).slots
        return [(slot.opening[0]["content"], slot.rewards[0]) for slot in slots]

    whole = drawn([0, 1, 2, 3])
    assert whole[0] == whole[1] != whole[2] == whole[3]
    assert drawn([2, 3]) == whole[2:]  # another rank's share
    assert len({drawn([0, 1])[0], drawn([0, 1], iteration=1)[0], drawn([0, 1], seed=1)[0]}) == 3
