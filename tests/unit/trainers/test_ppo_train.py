from dataclasses import replace

import pytest
import torch

from tests import tiny
from trainers import ppo
from trainers.batch import Metrics
from trainers.collect.base import Collector
from trainers.ppo import learn, make_experience, minibatches, train, update

RATES = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2}


class Recorder(Collector):
    """A collector whose rollouts are the ragged batch, scored by the learner as it is."""

    def __init__(self):
        self.experiences = []

    def collect(self, actor, iteration):
        made = tiny.rollout()
        values = actor.values(made.inputs)
        logprobs = actor.logprobs(made.inputs, made.response_mask)
        rewards = made.rewards + iteration
        parts = {"logprobs": logprobs, "values": None, "next_values": None}
        if values is not None:
            parts |= {"values": values[:, :-1], "next_values": values[:, 1:]}
        return replace(made, rewards=rewards, **parts)

    def record(self, experience):
        self.experiences.append(experience)

    def metrics(self):
        return Metrics.scalars({"objective/scores": 1.0})

    def samples(self):
        return []

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert not state

    def close(self):
        pass


@pytest.mark.parametrize("critic", ["separate", "shared", "none"])
def test_a_whole_run_at_rate_zero_keeps_the_ratio_at_one(critic):
    rates = {"learning_rate": 0.0, "critic_learning_rate": 0.0}
    config = tiny.settings(critic=critic, num_iterations=3, num_minibatches=2, tokens=30, **rates)
    learner = tiny.learner(config)
    before = tiny.weights(learner)

    for metrics in train(Recorder(), learner, config):
        tiny.assert_on_policy(metrics.values())
        assert metrics.values()["policy/epochs"] == config.ppo.num_epochs

    after = tiny.weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_epochs_leave_the_experience_as_it_was():
    config = tiny.settings(num_epochs=3, num_minibatches=2, target_kl=None, **RATES)
    made = make_experience(tiny.rollout(), config.ppo)
    before = {name: column.clone() for name, column in made.columns().items()}

    figures = learn(tiny.learner(config), made, config, iteration=0).values()

    assert figures["policy/epochs"] == 3
    assert abs(figures["policy/ratio_avg"] - 1.0) > 1e-4, "the policy did move"
    for name, column in made.columns().items():
        assert torch.equal(before[name], column), name


def test_the_old_figures_of_every_epoch_are_those_of_the_collector(monkeypatch):
    config = tiny.settings(num_epochs=3, num_minibatches=2, target_kl=None, **RATES)
    made = make_experience(tiny.rollout(), config.ppo)
    seen = []

    def spy(learner, experience, config, **how):
        seen.append(experience)
        return update(learner, experience, config, **how)

    monkeypatch.setattr(ppo, "update", spy)
    learn(tiny.learner(config), made, config, iteration=0)

    rows = [r for epoch in range(3) for r in minibatches(made, config, 0, epoch)]
    assert len(seen) == 6
    for part, index in zip(seen, rows, strict=True):
        assert torch.equal(part.old_values, made.old_values[index])
        assert torch.equal(part.advantages, made.advantages[index])


@pytest.mark.parametrize(
    ("figures", "epochs"), [([0.0, 0.0, 0.15, 0.0], 3), ([0.11, 0, 0, 0], 1), ([0.1] * 4, 4)]
)
def test_an_epoch_over_the_target_is_the_last(monkeypatch, figures, epochs):
    config = tiny.settings(target_kl=0.1)
    given = iter(figures)

    def fake(*_, **__):
        return Metrics(means={"policy/approxkl_avg": (next(given) * 26, 26.0)})

    monkeypatch.setattr(ppo, "update", fake)
    metrics = learn(tiny.learner(config), tiny.experience(), config, iteration=0).values()

    assert metrics["policy/epochs"] == epochs
    assert metrics["policy/approxkl_avg"] == pytest.approx(sum(figures[:epochs]) / epochs)


def test_a_policy_that_runs_away_is_stopped():
    config = tiny.settings(target_kl=0.02, learning_rate=0.1, num_epochs=50)
    learner = tiny.learner(config)
    made = tiny.on_policy(learner, tiny.experience())

    assert learn(learner, made, config, iteration=0).values()["policy/epochs"] < 5


def test_in_the_warm_up_of_the_critic_only_the_critic_learns():
    config = tiny.settings(num_iterations=2, critic_warmup_iterations=1, target_kl=None, **RATES)
    learner = tiny.learner(config)
    first, second = (metrics.values() for metrics in train(Recorder(), learner, config))

    assert "policy/grad_norm" not in first
    assert "value/grad_norm" in first
    assert "policy/grad_norm" in second
    assert learner.policy_version == config.ppo.num_epochs


def test_train_yields_once_an_iteration_and_goes_on_where_it_is_told():
    config = tiny.settings(num_iterations=3, lr_schedule="linear", num_epochs=1, **RATES)
    whole = [m.values() for m in train(Recorder(), tiny.learner(config), config)]
    learner, collector = tiny.learner(config), Recorder()
    first = next(train(collector, learner, config)).values()
    rest = [m.values() for m in train(collector, learner, config, start=1)]

    assert [m["policy/lr"] for m in whole] == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])
    for one, other in zip(whole, [first, *rest], strict=True):
        timed = {name for name in one if name.startswith("timing_s/")}
        assert timed == {"timing_s/advantage", "timing_s/update", "timing_s/total"}
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }
    assert len(collector.experiences) == 3


class Noting(Recorder):
    """A collector that notes when it acts, and may fail."""

    def __init__(self, events, error=None):
        super().__init__()
        self.events, self.error = events, error

    def collect(self, actor, iteration):
        self.events.append("collect")
        if self.error is not None:
            raise self.error
        return super().collect(actor, iteration)


def offloading(monkeypatch, *, critic, asked):
    """A learner whose engines note what they do, its settings, and the notes."""
    config = tiny.settings(critic=critic, num_iterations=2, num_epochs=1, num_minibatches=1)
    backend = replace(config.backend, offload_between_phases=asked)
    config = replace(config, backend=backend)
    learner, events = tiny.learner(config), []

    def note(engine, kind, name):
        real = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda: (events.append(f"{kind} {name}"), real()))

    for kind in ("policy", "critic"):
        engine = getattr(learner, f"_{kind}")
        for name in ("offload", "reload", "step") if engine else ():
            note(engine, kind, name)
    return learner, config, events


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_moments_are_away_while_the_policy_acts_and_back_for_its_update(critic, monkeypatch):
    learner, config, events = offloading(monkeypatch, critic=critic, asked=True)
    list(train(Noting(events), learner, config))
    engines = ["policy", "critic"] if critic == "separate" else ["policy"]
    away, back = ([f"{one} {how}" for one in engines] for how in ("offload", "reload"))
    steps = [f"{one} step" for one in reversed(engines)]
    assert events == [*away, "collect", *back, *steps] * 2


def test_moments_come_back_where_a_rollout_fails(monkeypatch):
    learner, config, events = offloading(monkeypatch, critic="separate", asked=True)
    with pytest.raises(RuntimeError, match="no such token"):
        next(train(Noting(events, RuntimeError("no such token")), learner, config))
    assert events[-3:] == ["collect", "policy reload", "critic reload"]


def test_moments_stay_unless_they_are_asked_to_leave(monkeypatch):
    learner, config, events = offloading(monkeypatch, critic="separate", asked=False)
    list(train(Noting(events), learner, config))
    assert events == ["collect", "critic step", "policy step"] * 2
