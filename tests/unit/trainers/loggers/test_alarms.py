"""What is said to be wrong: only what can be helped, once, when it lasts, with the remedy."""

import json

import pytest

from trainers.config.files import presets, read
from trainers.loggers.alarms import LASTING, RISE, WINDOW, Alarms, drifts, find_problems

HEALTHY = {
    "objective/scores": 0.4,
    "objective/scores_std": 0.2,
    "objective/kl": 3.0,
    "completions/mean_length": 20.0,
    "completions/distinct_2": 0.9,
    "completions/repeat_4gram": 0.02,
    "completions/clipped_ratio": 0.05,
    "completions/eos_ratio": 0.95,
    "rewards/errors": 0.0,
    "policy/approxkl_avg": 0.01,
    "value/explained_var": 0.4,
}
RISEN = {"objective/scores": 0.8}


def fed(alarms, values, times=1):
    """What is said while the same figures come again and again."""
    return [text for _ in range(times) for text in alarms.take(HEALTHY | values)]


@pytest.mark.parametrize(
    ("values", "name", "remedy"),
    [
        ({"rewards/errors": 3.0}, "failed rewards", "--ppo.max-error-rate"),
        ({"objective/scores_std": 0.0}, "equal rewards", "--generation.temperature"),
        ({"completions/clipped_ratio": 0.6}, "cut responses", "--generation.max-new-tokens 128"),
        ({"completions/eos_ratio": 0.0}, "no end token", "--generation.eos-token-ids"),
        ({"completions/unknown_ratio": 0.01}, "unknown ids", "--generation.mask-unknown true"),
        ({"policy/approxkl_avg": 0.2}, "large step", "--ppo.learning-rate 1.5e-06"),
        ({"value/explained_var": -0.2}, "critic worse than the mean", "--ppo.critic-learning-rate"),
    ],
)
def test_an_alarm_names_its_remedy_once_it_lasts_and_is_counted(config, values, name, remedy):
    assert list(find_problems(HEALTHY | values, config)) == [name]
    alarms, needed = Alarms(config), LASTING.get(name, 1)
    assert fed(alarms, values, needed - 1) == []
    (text,) = fed(alarms, values)
    assert remedy in text
    assert fed(alarms, values, 4) == []
    assert alarms.counts == {name: 5}


def test_one_reward_or_those_of_numeric_episodes_may_be_equal(config):
    equal = HEALTHY | {"objective/scores_std": 0.0}
    episodes = config.ppo.num_episodes
    text = find_problems(equal | {"rewards/errors": 2.0}, config)["equal rewards"]
    assert f"all {episodes - 2} episodes" in text
    assert "equal rewards" not in find_problems(equal | {"rewards/errors": episodes - 1.0}, config)
    assert find_problems(equal, read([presets()["cartpole"]])) == {}


def test_what_passes_by_itself_starts_to_count_anew(config):
    alarms, name = Alarms(config), "critic worse than the mean"
    for _ in range(3):
        assert fed(alarms, {"value/explained_var": -0.2}, LASTING[name] - 1) == []
        assert fed(alarms, {}) == []


def test_a_critic_with_little_or_nothing_to_explain_raises_no_alarm(config):
    equal = {"value/explained_var": -3.0, "value/return_mean": 50.0, "advantages/std": 0.5}
    assert find_problems(equal, config) == {}
    assert list(find_problems(equal | {"advantages/std": 5.0}, config)) == [
        "critic worse than the mean"
    ]
    flat = {"value/explained_var": -3.0, "objective/scores_std": 0.0}
    assert list(find_problems(flat, config)) == ["equal rewards"]
    assert find_problems({"value/explained_var": -0.05}, config) == {}


def test_a_shared_critic_is_remedied_by_its_coefficient():
    shared = read([], {"ppo.critic": "shared"})
    found = find_problems({"value/explained_var": -0.2}, shared)
    assert "--ppo.value-coef 0.2" in found["critic worse than the mean"]


def test_a_healthy_iteration_raises_no_alarm(config):
    assert find_problems(HEALTHY, config) == {}
    assert find_problems({"policy/approxkl_avg": 9.0}, read([], {"ppo.target_kl": None})) == {}


@pytest.mark.parametrize(
    ("drift", "name", "said"),
    [
        ({"objective/kl": 25.0}, "reward up, far from the start", "reached 25 nats"),
        ({"completions/mean_length": 31.0}, "reward up with length", "grew from 20 to 31 tokens"),
        ({"completions/mean_length": 9.0}, "reward up, length down", "shrank from 20 to 9 tokens"),
        ({"completions/distinct_2": 0.8}, "reward up, variety down", "fell from 90% to 80%"),
        ({"completions/repeat_4gram": 0.2}, "reward up with repetition", "grew from 2% to 20%"),
    ],
)
def test_a_drift_is_an_alarm_only_while_the_reward_rises(config, drift, name, said):
    found = drifts(HEALTHY, HEALTHY | RISEN | drift, config)
    assert list(found) == [name]
    assert "the reward rose from 0.4 to 0.8" in found[name]
    assert said in found[name]
    assert "--ppo.kl-coef 0.1" in found[name]
    assert drifts(HEALTHY, HEALTHY | drift, config) == {}
    little = {"objective/scores": 0.4 + 0.9 * RISE * 0.2}
    assert drifts(HEALTHY, HEALTHY | little | drift, config) == {}
    assert drifts(HEALTHY, HEALTHY | RISEN, config) == {}


def test_the_remedy_of_a_drift_is_the_setting_that_is_in_force():
    longer = HEALTHY | RISEN | {"completions/mean_length": 90.0}
    for changes, remedy in (
        ({"ppo.kl_coef": 0.2}, "--ppo.kl-coef 0.4."),
        ({"ppo.kl_coef": 0.0}, "--ppo.kl-coef 0.05."),
        ({"ppo.kl_placement": "loss", "ppo.kl_loss_coef": 0.01}, "--ppo.kl-loss-coef 0.02."),
        ({"ppo.kl_placement": "none"}, "--ppo.kl-placement reward."),
    ):
        (text,) = drifts(HEALTHY, longer, read([], changes)).values()
        assert text.endswith(remedy)


def test_the_first_iterations_are_compared_with_the_latest(config):
    alarms, hacked = Alarms(config), RISEN | {"completions/mean_length": 60.0}
    assert fed(alarms, {}, 2 * WINDOW) == []
    said = fed(alarms, hacked, WINDOW)
    assert len(said) == 1
    assert fed(alarms, hacked, WINDOW) == []
    assert alarms.counts["reward up with length"] > 1


def test_numeric_runs_have_nothing_that_drifts(config):
    alarms = Alarms(config)
    for score in range(30):
        assert alarms.take({"objective/scores": float(score), "objective/scores_std": 1.0}) == []


def test_an_interrupted_watch_goes_on_where_it_was(config):
    course = [HEALTHY] * 7 + [HEALTHY | RISEN | {"completions/mean_length": 50.0}] * 9
    course = [one | {"value/explained_var": -0.5} for one in course]
    whole, first, second = Alarms(config), Alarms(config), Alarms(config)
    wanted = [text for values in course for text in whole.take(values)]
    said = [text for values in course[:8] for text in first.take(values)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    said += [text for values in course[8:] for text in second.take(values)]
    assert said == wanted
    assert len(wanted) == 2
    assert second.state_dict() == whole.state_dict()
