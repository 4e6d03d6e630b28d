"""Held-out scores: their intervals, who plays what, and that nothing is disturbed."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import llmgym
from llmgym.errors import RewardError, TaskSourceError
from llmgym.vector import LLMVectorEnv
from tests.unit.trainers.evaluation.oracles import wilson
from trainers.config import Config, EvalConfig, GenerationConfig
from trainers.config.ppo import PPOConfig
from trainers.distributed.collectives import World
from trainers.evaluation import text as text_evaluation
from trainers.evaluation.statistics import interval, paired_rows
from trainers.evaluation.text import check_disjoint, evaluate_text, rounds
from trainers.evaluation.undisturbed import undisturbed
from trainers.generation.base import Generator, Response
from trainers.models.chat import ChatFormat, train_tokenizer


@pytest.mark.parametrize("num_tasks", [1, 5, 8, 13])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_task_is_played_and_ranks_play_equally_often(num_tasks, size):
    dealt = [rounds(num_tasks, 2, World(rank=rank, size=size)) for rank in range(size)]
    assert len({len(one) for one in dealt}) == 1
    assert all(len(slots) == 2 for one in dealt for slots in one)
    assert {task for one in dealt for slots in one for task in slots} == set(range(num_tasks))


TOKENIZER = train_tokenizer(["yes no 0 1 2 3 4 5"], 300)
CHAT = ChatFormat(TOKENIZER, eos_token_ids=[TOKENIZER.eos_token_id])


class Echo(Generator):
    """Answers with the prompt's last letter; notes how it was asked to draw."""

    exact = True
    policy_version = 0

    def __init__(self):
        self.asked = []
        self.calls = 0

    def generate(self, requests, sampling):
        self.asked.append(sampling)
        self.calls += 1
        random.random(), torch.rand(1), np.random.rand()  # noqa: NPY002
        return [self.answer(one) for one in requests]

    def answer(self, request):
        text = CHAT.tokenizer.decode([request.token_ids[-3]])
        ids = tuple(CHAT.response_ids(text))
        return Response(
            token_ids=ids, logprobs=(0.0,) * len(ids), finish_reason="stop", policy_version=0
        )

    def load_weights(self, weights, version):
        """Nothing to load."""

    def sleep(self):
        """Nothing to free."""


def length(answer, response):
    """1.0 where the response is the answer."""
    return float(response.strip() == answer)


def judges(num_envs=2, number=5, reward=length, **settings):
    tasks = llmgym.from_list([
        llmgym.Task(id=str(i), prompt=f"say {i}", answer=str(i if i != 3 else "no"))
        for i in range(number)
    ])  # fmt: skip
    make = lambda: llmgym.SingleTurnEnv(tasks, reward, **settings)  # noqa: E731 - one callable, one group
    return LLMVectorEnv([make] * num_envs)


def settings(num_tasks=99, **ppo):
    return Config(
        eval=EvalConfig(num_tasks=num_tasks),
        generation=GenerationConfig(max_new_tokens=8),
        ppo=PPOConfig(**ppo),
    )


def judged(envs, config, generator=None):
    return evaluate_text(envs, generator or Echo(), chat=CHAT, config=config, world=World())


def test_each_task_is_answered_once_greedily_and_in_order():
    generator = Echo()
    found = judged(judges(), settings(), generator)
    assert found.scores == (1.0, 1.0, 1.0, 0.0, 1.0)
    assert [row["prompt"] for row in found.rows] == [f"say {i}" for i in range(5)]
    assert [row["completion"] for row in found.rows] == list("01234")
    assert all(sampling.greedy for sampling in generator.asked)
    assert generator.calls == 3


def test_the_interval_is_that_of_a_share_where_the_environment_knows_its_bounds():
    bounded = judged(judges(reward_bounds=(0.0, 1.0)), settings())
    found = judged(judges(), settings())
    assert (bounded.ci_low, bounded.ci_high) == pytest.approx(wilson(4, 5), abs=1e-12)
    assert (found.ci_low, found.ci_high) == interval(found.scores)


def test_num_tasks_is_a_limit():
    assert judged(judges(), settings(num_tasks=3)).scores == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 8])
def test_the_result_does_not_depend_on_the_number_of_slots(num_envs):
    assert judged(judges(num_envs), settings()) == judged(judges(5), settings())


def test_ranks_together_score_what_one_does(monkeypatch):
    whole = judged(judges(), settings())
    parts = []
    monkeypatch.setattr("trainers.collect.play._anywhere", lambda flag, _: flag)
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_evaluation, "summarize", lambda *_, **__: None)
            patch.setattr(
                text_evaluation, "gather", lambda mine: parts.append(mine) or [_all(mine)]
            )
            world = World(rank=rank, size=2)
            evaluate_text(judges(1), Echo(), chat=CHAT, config=settings(), world=world)
    assert set(parts[0]) | set(parts[1]) == set(range(5))
    merged = {**parts[0], **parts[1]}
    assert tuple(merged[i][0] for i in range(5)) == whole.scores


def _all(mine):
    """Fill up with other ranks' tasks, whatever they are."""
    return {i: mine.get(i, (0.0, {})) for i in range(5)}


def fails_on_2(answer, response):
    """Fail on one task."""
    if answer == "2":
        raise ValueError("no idea")
    return length(answer, response)


def test_a_failed_reward_is_no_zero():
    found = judged(judges(reward=fails_on_2), settings(max_error_rate=1.0))
    assert math.isnan(found.scores[2])
    assert found.mean == pytest.approx(3 / 4)


def test_too_many_failed_rewards_raise():
    with pytest.raises(RewardError, match="the reward failed"):
        judged(judges(reward=fails_on_2), settings(max_error_rate=0.1))


def test_rows_before_and_after_stand_side_by_side():
    before, after = judged(judges(), settings()), judged(judges(), settings())
    row = paired_rows(before, after)[3]
    assert row == {
        "prompt": "say 3",
        "before": "3",
        "after": "3",
        "reward_before": 0.0,
        "reward_after": 0.0,
    }


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_evaluation_draws_nothing_from_the_global_generators():
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = draws()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    judged(judges(), settings())
    assert draws() == expected


def raised(module):
    with undisturbed(module):
        raise KeyError


def test_modes_come_back_one_by_one_even_after_an_error():
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    module[1].eval()
    with undisturbed(module):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(KeyError):
        raised(module)
    assert [part.training for part in module.modules()] == [True, True, False, False]


def test_overlap_of_train_and_held_out_tasks_is_refused():
    first = llmgym.from_list(["a", "b", "c"])
    check_disjoint(first, llmgym.from_list(["d"]))
    with pytest.raises(TaskSourceError, match="1 of 2 held-out tasks are also in train"):
        check_disjoint(first, llmgym.from_list(["c", "d"]))
