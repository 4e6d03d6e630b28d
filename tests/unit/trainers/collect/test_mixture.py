"""A batch of several environments: exact shares, metrics of each, curricula that follow."""

from collections import Counter

import pytest

from llmgym.data.curriculum import LevelSource
from llmgym.data.mixture import MixtureSampler
from llmgym.data.tasks import TaskSampler
from llmgym.env import core_env
from llmgym.rewards.base import per_sample
from tests.unit.trainers.collect.tiny import (
    Actor,
    chat_format,
    config,
    length_score,
    policy,
    written_by,
)
from trainers.collect.environments import mixed_envs, text_envs
from trainers.collect.mixture import prompt_envs, rank_slots, task_sampler
from trainers.collect.rollout import TextCollector
from trainers.collect.rollout_writer import TextParts
from trainers.config import CurriculumConfig
from trainers.distributed.collectives import World
from trainers.errors import ConfigError

ENVS = (
    {"id": "llmgym/Arithmetic-v0", "kwargs": {"size": 9}, "weight": 3.0},
    {"id": "llmgym/GuessNumber-v0", "kwargs": {"level": 2}},
    {"id": "llmgym/Arithmetic-v0", "name": "long", "kwargs": {"digits": 3, "size": 5}},
)


def mixed(envs=ENVS, **ppo):
    return config(envs, ppo={"num_prompts": 10, "samples_per_prompt": 2, **ppo},
                  generation={"max_new_tokens": 4})  # fmt: skip


def sources(settings):
    return [text_envs(alone, 1, env=None, reward=None) for alone in settings.alone]


def parts_of(settings, chat, actor, world=None):
    world = world or World()
    slots = rank_slots(settings, world)
    return TextParts(
        envs=mixed_envs(settings, slots, env=None, reward=None),
        env_names=[settings.envs[number].label for number in slots],
        generator=written_by(actor.policy_module, chat),
        chat=chat,
        sampler=task_sampler(settings, sources(settings), world),
    )


@pytest.fixture(scope="module")
def chat():
    return chat_format()


def test_every_batch_has_the_same_exact_share_of_each_environment(chat):
    settings = mixed()
    assert Counter(prompt_envs(settings)) == {0: 6, 1: 2, 2: 2}
    actor = Actor(policy(chat))
    collector = TextCollector(parts_of(settings, chat, actor), settings, World())
    for iteration in range(2):
        collector.collect(actor, iteration)
        named = Counter(row["env"] for row in collector.samples())
        assert named == {"llmgym/Arithmetic-v0": 12, "llmgym/GuessNumber-v0": 4, "long": 4}


def test_each_environment_has_metrics_of_its_own_and_all_have_theirs(chat):
    settings = mixed()
    actor = Actor(policy(chat))
    collector = TextCollector(parts_of(settings, chat, actor), settings, World())
    collector.collect(actor, 0)
    figures = collector.metrics().values()
    rows = collector.samples()
    for name in ("llmgym/Arithmetic-v0", "llmgym/GuessNumber-v0", "long", "all"):
        earned = [row["reward"] for row in rows if name in (row["env"], "all")]
        assert figures[f"env/{name}/reward"] == pytest.approx(sum(earned) / len(earned))
    single = mixed(ENVS[1:2])
    collector = TextCollector(parts_of(single, chat, actor), single, World())
    collector.collect(actor, 0)
    assert "env/all/reward" not in collector.metrics().values()


def test_the_ranks_together_play_what_one_rank_plays():
    settings = mixed(num_prompts=12)
    whole = rank_slots(settings, World())
    halves = [rank_slots(settings, World(rank=rank, size=2)) for rank in range(2)]
    assert [*halves[0], *halves[1]] == whole
    alone = task_sampler(settings, sources(settings), World())
    pair = [task_sampler(settings, sources(settings), World(rank=r, size=2)) for r in range(2)]
    for _ in range(5):
        assert [n for sampler in pair for n in sampler.next(6)] == alone.next(12)


def test_a_run_with_one_environment_keeps_its_sampler():
    settings = config(ENVS[1:2], ppo={"num_prompts": 4})
    assert isinstance(task_sampler(settings, sources(settings), World()), TaskSampler)


def test_a_level_follows_what_was_earned_and_is_measured(chat):
    levels = CurriculumConfig(levels=[1, 2], up=0.01, down=0.0, window=4)
    envs = ({"id": "llmgym/Arithmetic-v0", "curriculum": levels},)
    settings = mixed(envs, num_prompts=2)
    actor = Actor(policy(chat))
    parts = parts_of(settings, chat, actor)
    assert isinstance(parts.sampler, MixtureSampler)
    assert isinstance(core_env(parts.envs.envs[0]).tasks, LevelSource)
    collector = TextCollector(parts, settings, World())
    collector.collect(actor, 0)
    assert collector.metrics().values()["env/llmgym/Arithmetic-v0/level"] == 1.0
    parts.sampler.learn({"llmgym/Arithmetic-v0": (4.0, 4)})
    collector.collect(actor, 1)
    assert collector.metrics().values()["env/llmgym/Arithmetic-v0/level"] == 2.0
    assert all(core_env(env).task.level == 2 for env in parts.envs.envs)


def test_a_curriculum_needs_a_reward_with_bounds():
    levels = CurriculumConfig(levels=[1, 2])
    envs = ({"id": "llmgym/Arithmetic-v0", "curriculum": levels},)
    settings = mixed(envs, num_prompts=2)
    vector = text_envs(settings, 1, env=None, reward=per_sample(length_score))
    with pytest.raises(ConfigError, match="Drop its curriculum, or give a bounded reward"):
        task_sampler(settings, [vector], World())


def test_an_environment_of_numbers_is_no_part_of_a_mixture():
    settings = mixed((ENVS[0], {"id": "CartPole-v1"}))
    with pytest.raises(ConfigError, match="CartPole-v1 cannot be built"):
        mixed_envs(settings, [0, 1], env=None, reward=None)
