"""`llmgym/Speculative-v0` equals the replay of its trace, and its rewards add up to speed."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from llmgym.env_state import Stateful
from llmgym.envs.speculative import Speculative, make
from llmgym.errors import EpisodeOverError, TaskSourceError
from llmgym.speculative.observing import OBSERVATION_NAMES
from llmgym.speculative.replay import entropy_below, fixed, oracle, replay
from llmgym.speculative.traces import made_trace, write_trace

MADE = made_trace(5, sequences=6, length=40)


def play(env, rule, index):
    """Play a sequence by a rule of `replay`; returns its rewards and last info."""
    env.reset(options={"index": index})
    over, rewards, info = False, [], {"position": 0}
    while not over:
        length = rule(env.trace, int(env.trace.starts[index]) + info["position"])
        if env.action_space.n > 2:
            actions = [length]
        else:
            actions = [1] * length + [0] * (length < env.trace.longest)
        for action in actions:
            _, reward, over, truncated, info = env.step(action)
            assert not truncated
            rewards.append(reward)
    return rewards, info


@pytest.mark.parametrize("form", ["cycle", "token"])
@pytest.mark.parametrize("paid", ["throughput", "ratio", "speed"])
def test_it_is_an_environment_of_gymnasium(form, paid):
    env = gym.make("llmgym/Speculative-v0", form=form, paid=paid)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space.shape == (len(OBSERVATION_NAMES),)


@pytest.mark.parametrize("form", ["cycle", "token"])
@pytest.mark.parametrize("rule", [fixed(0), fixed(3), fixed(8), entropy_below(0.5), oracle(MADE)])
def test_it_takes_the_time_of_the_replay(form, rule):
    env = Speculative(MADE, form=form)
    spent = [play(env, rule, index)[1]["milliseconds"] for index in range(MADE.num_sequences)]
    assert sum(spent) == pytest.approx(replay(MADE, rule).milliseconds)


@pytest.mark.parametrize("form", ["cycle", "token"])
def test_throughput_rewards_are_tokens_less_time_at_the_running_speed(form):
    env = Speculative(MADE, form=form)
    env.speed = 1.7
    rewards, info = play(env, fixed(4), 2)
    assert sum(rewards) == pytest.approx(40 - 1.7 * info["milliseconds"] / MADE.plain_ms)
    assert info["speed"] == pytest.approx(40 * MADE.plain_ms / info["milliseconds"])
    assert env.speed == pytest.approx(0.8 * 1.7 + 0.2 * info["speed"])


def test_at_its_fixed_point_the_mean_reward_of_a_rule_is_zero():
    env = Speculative(MADE)
    speed = replay(MADE, fixed(4)).speed
    total = 0.0
    for index in range(MADE.num_sequences):
        env.speed = speed
        total += sum(play(env, fixed(4), index)[0])
    assert total == pytest.approx(0, abs=1e-9)


def test_more_speed_is_more_reward_whatever_the_running_speed():
    """The order of two rules by throughput is that of their sums at the speed of either."""
    rules = [fixed(0), fixed(2), fixed(8), oracle(MADE)]
    speeds = [replay(MADE, rule).speed for rule in rules]

    def total(rule, at):
        done = replay(MADE, rule)
        return done.tokens - at * done.milliseconds / done.plain_ms

    for at in speeds:
        better = [total(rule, at) > 1e-9 for rule in rules]
        assert better == [speed > at + 1e-12 for speed in speeds]


def test_ratio_rewards_are_tokens_per_time():
    rewards, info = play(Speculative(MADE, paid="ratio"), fixed(0), 0)
    assert rewards == pytest.approx([1.0] * 40)
    assert info["speed"] == pytest.approx(1.0)


def test_for_evaluation_a_sequence_earns_its_speed():
    rewards, info = play(Speculative(MADE, paid="speed"), fixed(2), 0)
    assert sum(rewards) == rewards[-1] == info["speed"]


def test_the_last_token_of_a_draft_is_verified_at_once():
    env = Speculative(MADE, form="token")
    env.reset(options={"index": 0})
    infos = [env.step(1)[-1] for _ in range(MADE.longest)]
    assert [info["position"] for info in infos[:-1]] == [0] * (MADE.longest - 1)
    assert infos[-1]["position"] > 0


def test_observations_show_nothing_that_was_not_drafted():
    """What is ahead may change without changing what is seen."""
    other = replace(MADE, draft=MADE.draft + 1, accepted=(MADE.accepted + 1) % MADE.longest)
    first, second = (
        Speculative(made, form="token").reset(options={"index": 1})[0] for made in (MADE, other)
    )
    np.testing.assert_array_equal(first, second)


def test_what_it_remembers_is_kept_for_a_checkpoint():
    env, other = Speculative(MADE), Speculative(MADE)
    assert isinstance(env, Stateful)
    play(env, fixed(4), 0)
    other.load_state_dict(env.state_dict())
    assert other.speed == env.speed != 1.0


def test_a_step_behind_the_end_and_wrong_settings_are_refused(tmp_path):
    env = Speculative(MADE)
    play(env, fixed(8), 0)
    with pytest.raises(EpisodeOverError, match="reset"):
        env.step(0)
    with pytest.raises(TaskSourceError, match="sequences 0 to 5"):
        env.reset(options={"index": 6})
    with pytest.raises(TaskSourceError, match="form is one of cycle, token"):
        make(form="turn")
    write_trace(tmp_path / "made.npz", MADE)
    assert make(trace=str(tmp_path / "made.npz")).trace.num_sequences == 6
