"""LengthReward: each mode against a table, no pay for a short wrong answer, and its state."""

from functools import partial
from pathlib import Path

import pytest

from llmgym import LLMVectorEnv
from llmgym.addresses import load
from llmgym.env_state import load_states, stateful_layers, states_of
from llmgym.errors import EnvContractError, RewardError
from llmgym.messages import Completion
from llmgym.rewards.base import per_sample
from llmgym.wrappers import LengthReward

TOYS = Path(__file__).parent / "toys.py"
say = load(f"{TOYS}:say")


def is_right(sample):
    return float(sample.response.startswith("right"))


def responses(rows):
    """Completions of (is right, tokens)."""
    return [Completion("right" if right else "no", token_ids=(1,) * n) for right, n in rows]


def vector(size, **settings):
    def build():
        return LengthReward(say(per_sample(is_right)), **settings)

    return LLMVectorEnv([build] * size)


def rewards(envs, rows, group_size=None):
    envs.reset(options={"indices": [0], "group_size": group_size or len(rows)})
    return envs.step(responses(rows))[1].tolist()


ROWS = [(True, 10), (True, 30), (False, 5), (False, 40)]
TABLES = {
    "exact": ({"target": 20, "alpha": 0.01}, [0.9, 0.9, -0.15, -0.2]),
    "max": ({"target": 20, "alpha": 0.02}, [0.7, 0.3, 0.0, 0.0]),
    "group": ({"alpha": 1.0}, [1 + 0.5 - 5 / 35, 1 + 0.5 - 25 / 35, 0.0, -0.5]),
    "lazy": ({"alpha": 0.01, "band": 5}, [1.0, 1 - 0.01 * 15, 0.0, 0.0]),
    "latency": (
        {"alpha": 0.5, "ttft": 20.0, "tpot": 2.0, "slo": 100.0},
        [1 - 0.5 * 0.4, 1 - 0.5 * 0.8, 0.0, 0.0],
    ),
    "constrained": (
        {"floor": 0.5, "scale": 40},
        [(1 - 0.25) / 2, (1 - 0.75) / 2, -0.5, -0.5],
    ),
}


@pytest.mark.parametrize("mode", TABLES)
def test_each_mode_gives_the_rewards_of_its_table(mode):
    settings, expected = TABLES[mode]
    envs = vector(4, mode=mode, **settings)
    assert rewards(envs, ROWS) == pytest.approx(expected)
    low, high = envs.envs[0].reward_bounds
    assert all(low <= value <= high for value in expected)


@pytest.mark.parametrize("mode", sorted(TABLES))
def test_the_task_reward_stays_readable(mode):
    envs = vector(4, mode=mode, **TABLES[mode][0])
    envs.reset(options={"indices": [0], "group_size": 4})
    infos = envs.step(responses(ROWS))[-1]
    assert infos["reward/task_reward"].tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("mode", sorted(set(TABLES) - {"exact"}))
def test_no_wrong_response_earns_more_by_being_shorter(mode):
    envs = vector(4, mode=mode, **TABLES[mode][0])
    wrong = [(False, n) for n in (1, 10, 20, 40)]
    assert len(set(rewards(envs, wrong))) == 1, "all are wrong: nothing pulls towards the end"


def test_responses_are_compared_within_their_own_prompt():
    envs = vector(8, mode="lazy", alpha=0.01)
    envs.reset(options={"indices": [0, 1], "group_size": 4})
    rows = [(True, n) for n in (10, 11, 12, 13, 50, 51, 52, 53)]
    expected = [1 - 0.01 * over for over in (0, 1, 2, 3)] * 2
    assert envs.step(responses(rows))[1].tolist() == pytest.approx(expected)


def test_lazy_waits_while_accuracy_falls():
    envs = vector(4, mode="lazy", alpha=0.01, tolerance=0.1, decay=0.5)
    good = [(True, n) for n in (10, 20, 20, 20)]
    assert rewards(envs, good) == pytest.approx([1.0, 0.9, 0.9, 0.9])
    bad = [(True, 10), (True, 20), (False, 5), (False, 5)]
    assert rewards(envs, bad) == [1.0, 1.0, 0.0, 0.0], "0.5 is below the running 1.0"
    assert rewards(envs, good) == pytest.approx([1.0, 0.9, 0.9, 0.9])


def test_the_multiplier_rises_below_the_floor_and_falls_above_it():
    envs = vector(4, mode="constrained", floor=0.5, scale=40, rate=2.0)
    layer = envs.envs[0].rule
    rewards(envs, [(False, 5)] * 4)
    assert layer.multiplier == pytest.approx(1 + 2 * 0.5)
    rewards(envs, [(True, 5)] * 4)
    assert layer.multiplier == pytest.approx(1.0)
    for _ in range(5):
        rewards(envs, [(True, 5)] * 4)
    assert layer.multiplier == 0.0, "it is never negative"


@pytest.mark.parametrize("mode", ["lazy", "constrained"])
def test_restored_state_scores_as_the_first_one_does(mode):
    settings = TABLES[mode][0]
    first, other = (vector(4, mode=mode, **settings) for _ in range(2))
    for _ in range(3):
        rewards(first, [(True, 10), (True, 20), (True, 30), (False, 3)])
    layers = [stateful_layers(envs.scoring_envs()) for envs in (first, other)]
    states = states_of(layers[0])
    load_states(layers[1], states)
    better = [*ROWS[:2], (True, 20), (True, 5)]
    assert rewards(other, better) == rewards(first, better)
    assert states_of(layers[1]) == states_of(layers[0]) != states


def test_states_of_other_layers_are_refused():
    with pytest.raises(EnvContractError, match=r"1 layers .* 0 remember"):
        load_states(stateful_layers([say()]), [{"accuracy": 1.0}])


def test_a_group_of_too_few_names_the_setting():
    envs = vector(2, mode="group")
    with pytest.raises(RewardError, match="samples_per_prompt to 4"):
        rewards(envs, ROWS[:2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "short"}, "modes lazy"),
        ({"mode": "exact"}, "needs target"),
        ({"mode": "constrained", "scale": 5}, "needs floor, scale"),
        ({"mode": "latency"}, "needs slo, tpot"),
        ({"alpha": -1.0}, "alpha -1"),
        ({"decay": 1.0}, "decay 1"),
        ({"mode": "constrained", "scale": 0, "floor": 0.5}, "scale 0"),
        ({"unit": "words"}, "unit is"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(EnvContractError, match=message):
        partial(LengthReward, say())(**settings)
