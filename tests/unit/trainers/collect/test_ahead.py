"""Rollouts written ahead: by older weights, with log-probabilities of those weights."""

import copy
import threading
import time
import traceback

import pytest
import torch

from llmgym.data.tasks import TaskSampler
from llmgym.errors import RewardError
from llmgym.vector import LLMVectorEnv
from tests import tiny as models
from tests.unit.trainers.collect import tiny
from trainers.collect.ahead import PolicyCopy
from trainers.collect.rollout import TextCollector
from trainers.collect.rollout_writer import TextParts
from trainers.distributed.collectives import World
from trainers.generation.base import Generator
from trainers.ppo import make_experience, train

ITERATIONS = 4


@pytest.fixture(scope="module")
def chat():
    return tiny.chat_format()


class Mover(tiny.Actor):
    """An actor whose weights move in place, as an optimizer moves them."""

    def move(self):
        with torch.no_grad():
            for weight in self.policy_module.parameters():
                weight.add_(0.02 * torch.randn(weight.shape))
        self.policy_version += 2


def settings(**ppo):
    return tiny.config(generation={"ahead": 1}, ppo={"num_iterations": ITERATIONS, **ppo})


def collector_of(chat, actor, made, *, generator=None, envs=None):
    module = copy.deepcopy(actor.policy_module).requires_grad_(False)
    parts = TextParts(
        envs=envs or tiny.single_turn(tiny.length_score),
        generator=generator or tiny.written_by(module, chat),
        chat=chat,
        sampler=TaskSampler(6, seed=1, rank=0, world_size=1),
        copy=PolicyCopy(module, tiny.Actor(module)),
    )
    return TextCollector(parts, made, World())


@torch.no_grad()
def oracle(policy, rollout):
    """Log-probabilities [B, T] in float64, each row alone and without padding."""
    model = copy.deepcopy(policy.model).double()
    inputs, expected = rollout.inputs, torch.zeros(rollout.rewards.shape, dtype=torch.float64)
    for row, (tokens, real) in enumerate(zip(inputs.tokens, inputs.attention_mask, strict=True)):
        ids = tokens[real]
        scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        start = len(ids) - int(rollout.response_mask[row].sum())
        for place in range(start, len(ids)):
            expected[row, place - start] = scores[place - 1, ids[place]]
    return expected


def test_a_rollout_has_the_logprobs_of_the_weights_that_wrote_it_while_others_move(chat):
    actor = Mover(tiny.policy(chat))
    collector = collector_of(chat, actor, settings())
    wrote = now = copy.deepcopy(actor.policy_module)
    for iteration in range(ITERATIONS):
        rollout = collector.collect(actor, iteration)
        now = copy.deepcopy(actor.policy_module)
        actor.move()  # while the next rollout is written
        for figures in (rollout.logprobs, rollout.generator_logprobs):
            assert torch.allclose(figures.double(), oracle(wrote, rollout), atol=2e-5)
        lag = collector.metrics().values()["policy/version_lag"]
        assert lag == (0 if iteration == 0 else 2)
        if iteration:
            assert not torch.allclose(rollout.logprobs.double(), oracle(now, rollout), atol=1e-2)
            assert rollout.response_mask.any(1).all()
        wrote = now
    assert not [thread for thread in threading.enumerate() if thread.name == "rollout"]


def advantages(rollout, ppo):
    """Generalized advantages of episodes of one row, by the definition."""
    result = torch.zeros(rollout.rewards.shape, dtype=torch.float64)
    for row, length in enumerate(rollout.response_mask.sum(1).tolist()):
        after = 0.0
        for t in reversed(range(length)):
            following = 0.0 if t == length - 1 else float(rollout.values[row, t + 1])
            error = float(rollout.rewards[row, t]) + ppo.gamma * following
            after = error - float(rollout.values[row, t]) + ppo.gamma * ppo.gae_lambda * after
            result[row, t] = after
    return result


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_ratio_and_the_loss_are_those_of_the_definition_at_a_lag_of_one(chat, epochs):
    made = settings(num_epochs=epochs, num_minibatches=1, whiten_advantages=False,
                    target_kl=None, learning_rate=3e-3, critic="shared")  # fmt: skip
    learner = models.learner(made, model=tiny.llama(chat, initializer_range=0.1))
    collector, seen = collector_of(chat, learner, made), []
    collect = collector.collect

    def watched(actor, iteration):
        rollout = collect(actor, iteration)
        seen.append((rollout, copy.deepcopy(learner.policy_module)))
        return rollout

    collector.collect = watched
    figures = [metrics.values() for metrics in train(collector, learner, made)]
    for iteration, (rollout, now) in enumerate(seen):
        mask = rollout.response_mask
        ratio = (oracle(now, rollout) - oracle(seen[max(iteration - 1, 0)][1], rollout)).exp()
        expected = advantages(rollout, made.ppo)
        assert torch.allclose(
            make_experience(rollout, made.ppo).advantages.double()[mask], expected[mask], atol=1e-5
        )
        if epochs > 1:
            continue
        assert figures[iteration]["policy/ratio_avg"] == pytest.approx(float(ratio[mask].mean()))
        gain = torch.minimum(ratio * expected, ratio.clamp(0.8, 1.2) * expected)[mask]
        assert figures[iteration]["loss/policy_avg"] == pytest.approx(-float(gain.mean()), rel=1e-4)
        is_older = iteration > 0
        assert (abs(figures[iteration]["policy/ratio_max"] - 1) > 1e-3) == is_older


def test_a_state_has_no_trace_of_the_rollout_under_way_which_is_written_anew(chat):
    actor, made = Mover(tiny.policy(chat)), settings()
    collector = collector_of(chat, actor, made)
    collector.collect(actor, 0)
    actor.move()
    states = [collector.state_dict()]
    collector._writer._ahead.wait()
    states.append(collector.state_dict())
    prompts = []
    for _ in range(2):
        collector.collect(actor, 1)
        prompts.append([row["prompt"] for row in collector.samples()])
        collector.stop()
        collector = collector_of(chat, actor, made)
        collector.load_state_dict(states[0])
    assert prompts[0] == prompts[1]
    assert states[0] == states[1]
    plain = tiny.collector_of(
        chat, tiny.single_turn(tiny.length_score), tiny.written_by(actor.policy_module, chat),
        tiny.config(),
    )  # fmt: skip
    plain.collect(actor, 0)
    assert plain.state_dict()["sampler"] == states[0]["sampler"]


def test_after_a_resume_the_first_rollout_is_of_the_weights_that_were_saved(chat):
    actor, made = Mover(tiny.policy(chat)), settings()
    collector = collector_of(chat, actor, made)
    rollout = collector.collect(actor, 2)
    assert torch.allclose(
        rollout.logprobs.double(), oracle(actor.policy_module, rollout), atol=2e-5
    )
    assert collector.metrics().values()["policy/version_lag"] == 0
    collector.stop()


class Wrapped(Generator):
    """Writes as another generator does, and does something before the second rollout."""

    exact = True

    def __init__(self, inner, before):
        self.inner, self.before, self.calls, self.stopped = inner, before, 0, threading.Event()

    @property
    def policy_version(self):
        return self.inner.policy_version

    def generate(self, requests, sampling):
        self.calls += 1
        if self.calls == 2:
            self.before(self)
        return self.inner.generate(requests, sampling)

    def load_weights(self, weights, version):
        for _ in weights:
            pass
        self.inner.load_weights(iter(()), version)

    def sleep(self):
        pass

    def stop(self):
        self.stopped.set()


def wrapped(chat, actor, before):
    policy = copy.deepcopy(actor.policy_module)
    return Wrapped(tiny.written_by(policy, chat, weights="sharded"), before)


def break_weights(generator):
    raise ArithmeticError("broken in the thread")


def test_an_error_of_the_thread_is_raised_with_its_own_traceback(chat):
    actor = Mover(tiny.policy(chat))
    collector = collector_of(chat, actor, settings(), generator=wrapped(chat, actor, break_weights))
    collector.collect(actor, 0)
    with pytest.raises(ArithmeticError, match="broken in the thread") as caught:
        collector.collect(actor, 1)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "break_weights"
    assert "generate" in frames


def test_a_run_that_ends_ends_the_rollout_under_way_before_it_is_scored(chat):
    actor, scored = Mover(tiny.policy(chat)), []
    envs = tiny.single_turn(lambda sample: float(len(scored.append(sample) or scored)))
    waits = wrapped(chat, actor, lambda generator: generator.stopped.wait(60))
    collector = collector_of(chat, actor, settings(), generator=waits, envs=envs)
    collector.collect(actor, 0)
    count, began = len(scored), time.monotonic()
    collector.stop()
    assert time.monotonic() - began < 10
    assert len(scored) == count
    assert not [thread for thread in threading.enumerate() if thread.name == "rollout"]


class Hanging(tiny.Talk):
    """Hangs in the second rollout, in a way that no signal of another thread ends."""

    released = threading.Event()
    turns_taken = 0

    def reply(self, response):
        Hanging.turns_taken += 1
        if Hanging.turns_taken > 4:
            Hanging.released.wait(60)
        return super().reply(response)


def test_an_environment_that_hangs_in_the_thread_is_a_failed_sample_in_time(chat):
    def make():
        return Hanging(turns=1)

    actor = Mover(tiny.policy(chat))
    envs = LLMVectorEnv([make] * 4, env_timeout=0.5)
    collector = collector_of(chat, actor, settings(), envs=envs)
    collector.collect(actor, 0)
    began = time.monotonic()
    with pytest.raises(
        RewardError, match=r"no reply within env_timeout=0.5 s: it was at .*test_ahead.py"
    ):
        collector.collect(actor, 1)
    collector.stop()
    assert time.monotonic() - began < 30
    Hanging.released.set()
