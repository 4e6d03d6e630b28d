"""Wrappers: what each does; every one and every pair acts the same alone and in a vector."""

import itertools
import math
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from llmgym import LLMVectorEnv, LLMWrapper
from llmgym.addresses import load
from llmgym.errors import EnvContractError
from llmgym.messages import Completion, Message, Reply, Score, Task
from llmgym.rewards.base import per_sample
from llmgym.wrappers import (
    ClipReward,
    ExtractAnswer,
    FewShot,
    FormatReward,
    KeepTurns,
    LengthPenalty,
    LengthReward,
    RepetitionPenalty,
    ScaleReward,
    SoftOverlong,
    StopAt,
    StripThink,
    SystemPrompt,
    TokenBudget,
)

TOYS = Path(__file__).parent / "toys.py"
say, guess, Count, Poison = (load(f"{TOYS}:{name}") for name in ("say", "guess", "Count", "Poison"))

WRAPPERS = {
    "system": partial(SystemPrompt, text="Be brief", in_sample=True),
    "few": partial(FewShot, examples=[["Say a", "a"], ["Say b", "b"]]),
    "keep": partial(KeepTurns, n=1, in_sample=True),
    "think": StripThink,
    "extract": partial(ExtractAnswer, pattern=r"#(\w+)"),
    "stop": partial(StopAt, strings=[";", "stop"]),
    "length": partial(LengthPenalty, free=2, slope=0.1, only_correct=False),
    "length_reward": partial(LengthReward, mode="exact", target=3, alpha=0.1),
    "overlong": partial(SoftOverlong, max_len=4, cache=3),
    "format": FormatReward,
    "repeat": partial(RepetitionPenalty, n=1),
    "clip": partial(ClipReward, low=-0.5, high=0.5),
    "scale": partial(ScaleReward, scale=2.0),
    "budget": partial(TokenBudget, n=5),
}
ANSWERS = (
    Completion("<think>red; no</think>blue", token_ids=(1, 2, 3, 4)),
    Completion("#red ; #3 stop", token_ids=(1, 2)),
    Completion("5 5 5 5", token_ids=(1,), finish_reason="length"),
    "3",
    Completion("<think>x</think> 4", token_ids=(1, 2, 3, 4, 5, 6)),
    "red",
)


def respond(reward, wrapper, response, **options):
    env = wrapper(say(reward))
    env.reset(options=options or {"index": 0})
    return env.step(response)


def rollout(envs, steps=8):
    obs, _ = envs.reset(seed=2)
    trace = [list(obs)]
    for step in range(steps):
        actions = [ANSWERS[(step + 2 * slot) % len(ANSWERS)] for slot in range(envs.num_envs)]
        obs, rewards, terminated, truncated, infos = envs.step(actions)
        valid = infos["reward_valid"].tolist()
        trace.append((list(obs), rewards.tolist(), terminated.tolist(), truncated.tolist(), valid))
        if (terminated | truncated).any():
            obs, _ = envs.reset(options={"reset_mask": terminated | truncated})
            trace.append(list(obs))
    return trace


@pytest.mark.parametrize("make", [say, partial(guess, max_turns=3)], ids=["say", "guess"])
@pytest.mark.parametrize(
    "names", [*itertools.permutations(WRAPPERS, 2), *((name,) for name in WRAPPERS)], ids="-".join
)
def test_single_equals_vector_for_every_wrapper_and_every_pair(make, names):
    def build():
        env = make()
        for name in names:
            env = WRAPPERS[name](env)
        return env

    theirs = SyncVectorEnv([build] * 3, autoreset_mode=AutoresetMode.DISABLED)
    assert rollout(LLMVectorEnv([build] * 3)) == rollout(theirs)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_environment_passes_the_checker_and_rebuilds_from_its_spec(
    name, registered, capsys
):
    make = WRAPPERS[name]
    wrapped = make(gym.make(registered(f"{TOYS}:guess")).unwrapped)
    again = gym.spec(wrapped.spec.id).make()
    assert again.reset(seed=1)[1] == wrapped.reset(seed=1)[1]
    rebuilt = wrapped.spec.make()
    assert type(rebuilt).__name__ == type(wrapped).__name__
    assert rebuilt.reset(seed=1)[0] == wrapped.reset(seed=1)[0]
    assert rebuilt.step("3") == wrapped.step("3")


def test_wrappers_go_outside_of_make_and_inside_of_no_other_wrapper():
    env = StripThink(gym.make("llmgym/Arithmetic-v0"))
    env.reset(seed=0)
    assert env.step("<think>hm</think>" + env.unwrapped.solve())[1] == 1.0
    with pytest.raises(EnvContractError, match="TimeLimit"):
        StripThink(gym.make("llmgym/Arithmetic-v0", max_episode_steps=3))


def test_make_takes_wrappers_by_name(registered):
    wrap = [{"name": "StripThink"}, {"name": "ScaleReward", "scale": 3.0}]
    env = gym.make("llmgym/Arithmetic-v0", wrap=wrap)
    env.reset(seed=0)
    assert env.step("<think>hm</think>" + env.unwrapped.solve())[1] == 3.0
    envs = gym.make_vec("llmgym/Arithmetic-v0", num_envs=2, wrap=wrap)
    envs.reset(seed=0)
    assert envs.step([one.unwrapped.solve() for one in envs.envs])[1].tolist() == [3.0, 3.0]
    check_env(env.spec.make().unwrapped)


def test_the_system_prompt_replaces_the_environments_own():
    env = SystemPrompt(say(system="old"), "new")
    obs, _ = env.reset(options={"index": 0})
    assert [message["content"] for message in obs] == ["new", "Say red"]
    assert env.advance("x")[3].messages[0] == Message("system", "old")
    shown = SystemPrompt(say(system="old"), "new", in_sample=True)
    shown.reset(options={"index": 0})
    assert shown.advance("x")[3].messages == (Message("system", "new"), Message("user", "Say red"))


def test_examples_stand_between_system_message_and_task():
    obs, _ = FewShot(say(system="s"), [("q", "a")]).reset(options={"index": 0})
    assert [(m["role"], m["content"]) for m in obs] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Say red"),
    ]


@pytest.mark.parametrize(("n", "kept"), [(0, []), (1, ["b", "w"]), (2, ["a", "w", "b", "w"])])
def test_keep_turns_keeps_the_task_and_the_last_turns(n, kept):
    env = KeepTurns(guess(), n)
    env.reset(seed=0)
    env.unwrapped.reply = lambda response: Reply("w")
    env.step("a")
    obs = env.step("b")[0]
    assert [m["content"] for m in obs] == ["Guess a number in [0, 8)", *kept]


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ("<think>a</think>b", "b"),
        ("x <think>a</think> y <think>b</think> z", "x  y  z"),
        ("a</think>b", "b"),
        ("b<think>a", "b"),
        ("<think>a<think>b</think>c", "c"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_thinking_is_not_read(response, read):
    env = StripThink(say())
    env.reset(seed=0)
    obs, _, _, sample = env.advance(Completion(response, token_ids=(1, 2), finish_reason="length"))
    assert sample.text == read
    assert (str(sample.response), sample.response.token_ids) == (response, (1, 2))
    assert obs[-1]["content"] == response
    assert sample.truncated


def test_stripping_is_linear_in_the_text():
    env = StripThink(say())
    assert env.read("<think>" * 15_000) == ""
    assert len(env.read("</think>x" * 10_000)) == 1


@pytest.mark.parametrize(
    ("pattern", "response", "read"),
    [
        (r"\\boxed\{(.*?)\}", r"\boxed{1} so \boxed{2}", "2"),
        (r"\d+", "1 and 23", "23"),
        (r"#(\w+)", "nothing", ""),
        (r"a(b)?", "a", ""),
    ],
)
def test_the_last_match_is_read(pattern, response, read):
    env = ExtractAnswer(say(), pattern)
    env.reset(seed=0)
    assert env.advance(response)[3].text == read


def test_reading_stops_at_the_first_string_and_readings_nest():
    env = StripThink(StopAt(say(), ["\n", "END"]))
    env.reset(options={"index": 0})
    _, _, _, sample = env.advance("<think>\n</think>redEND\nblue")
    assert sample.text == "red"
    assert sample.response == "<think>\n</think>redEND\nblue"
    assert env.score_batch([sample])[0].parts["match"] == 1.0


@pytest.mark.parametrize(
    ("length", "term"), [(0, 0.0), (6, 0.0), (7, -0.25), (9, -0.75), (10, -1.0), (50, -1.0)]
)
def test_soft_overlong_falls_from_0_to_minus_1(length, term):
    wrapper = partial(SoftOverlong, max_len=10, cache=4)
    *_, reward, _, _, info = respond(None, wrapper, Completion("red", token_ids=(1,) * length))
    assert reward == pytest.approx(1.0 + term)
    assert info["reward/overlong"] == pytest.approx(term)


def test_a_length_penalty_spares_wrong_answers_if_asked():
    long = Completion("red", token_ids=(1,) * 10)
    wrong = Completion("no", token_ids=(1,) * 10)
    spare = partial(LengthPenalty, free=4, slope=0.05)
    assert respond(None, spare, long)[1] == pytest.approx(0.7)
    assert respond(None, spare, wrong)[1] == 0.0
    assert respond(None, partial(spare, only_correct=False), wrong)[1] == pytest.approx(-0.3)
    assert respond(None, partial(spare, unit="characters"), "red")[1] == 1.0
    assert respond(None, spare, "red")[1] == 1.0


def test_the_form_is_paid_for():
    assert respond(None, FormatReward, "<think>a</think>b")[1] == pytest.approx(0.1)
    assert respond(None, FormatReward, "<think>a</think> ")[1] == 0.0
    for response in ("<think></think>b", "<think>a</think><think>b</think>c", "<think>a</think>"):
        assert respond(None, FormatReward, response)[1] == 0.0, response
    assert respond(None, partial(FormatReward, pattern="r.d", weight=0.5), "red")[1] == 1.5


def test_repetition_costs_the_share_of_repeated_grams():
    penalty = partial(RepetitionPenalty, n=2)
    *_, info = respond(None, penalty, "a b a b a b")  # ab ba ab ba ab: 2 distinct of 5
    assert info["reward/repetition"] == pytest.approx(-0.6)
    assert respond(None, penalty, "red")[1] == 1.0
    assert respond(None, penalty, "")[1] == 0.0


def test_clipping_and_scaling_act_on_the_whole_reward():
    big = per_sample(lambda sample: Score(7.0, spans=((0, 1, 2.0),)))
    assert respond(big, ClipReward, "x")[1] == 1.0
    env = ScaleReward(say(big), -0.5)
    env.reset(seed=0)
    score = env.score_batch([env.advance("x")[3]])[0]
    assert (score.value, score.spans) == (-3.5, ((0, 1, -1.0),))
    paid = ScaleReward(guess(), 10.0)
    paid.reset(options={"task": Task(id="g", prompt="", answer=3)})
    assert paid.step("3")[1] == 10.0


@pytest.mark.parametrize("name", ["length", "overlong", "format", "repeat", "clip", "scale"])
def test_a_failed_score_stays_a_zero_that_is_not_valid(name):
    boom = Completion("boom", token_ids=(1,) * 9)
    _, reward, *_, info = respond(Poison(), WRAPPERS[name], boom)
    assert (reward, info["reward_valid"]) == (0.0, False)


def test_terms_are_added_to_scored_responses_only():
    env = SoftOverlong(guess(reward=Count()), max_len=4, cache=3)
    env.reset(seed=0)
    *_, info = env.step(Completion("no", token_ids=(1,) * 9))
    assert "reward/overlong" not in info


def test_bounds_move_with_the_wrapper():
    assert SoftOverlong(say(), 4, 3).reward_bounds == (-1.0, 1.0)
    assert LengthPenalty(say(), 1, 0.1).reward_bounds == (-math.inf, 1.0)
    assert FormatReward(say(), weight=0.5).reward_bounds == (0.0, 1.5)
    assert RepetitionPenalty(say(), 2, weight=0.5).reward_bounds == (-0.5, 1.0)
    assert ScaleReward(say(), -2.0).reward_bounds == (-2.0, 0.0)
    assert ClipReward(ScaleReward(say(), 9.0)).reward_bounds == (0.0, 1.0)
    assert StripThink(say()).reward_bounds == (0.0, 1.0)


def test_a_plain_string_never_truncates_the_first_step():
    for wrapper in WRAPPERS.values():
        env = wrapper(guess())
        env.reset(seed=0)
        assert env.step("nothing")[3] is False


def test_a_half_that_is_overridden_acts_in_step_and_in_a_vector():
    class Halve(LLMWrapper):
        def score_batch(self, samples):
            scores = super().score_batch(samples)
            return [Score(score.value / 2) for score in scores]

    env = Halve(say())
    env.reset(options={"index": 0})
    assert env.step("red")[1] == 0.5
    envs = LLMVectorEnv([lambda: Halve(say())] * 2)
    envs.reset(options={"indices": [0, 0]})
    assert np.array_equal(envs.step(["red", "red"])[1], [0.5, 0.5])


def test_no_wrapper_makes_a_failure_valid_or_a_reward_infinite():
    class Careless(LLMWrapper):
        def score_batch(self, samples):
            return [Score(math.inf if sample.text == "x" else 1.0) for sample in samples]

    actions = ["red", "x", Completion("red", finish_reason="abort")]
    envs = LLMVectorEnv([lambda: Careless(say())] * 3)
    envs.reset(seed=0)
    _, rewards, *_, infos = envs.step(actions)
    assert rewards.tolist() == [1.0, 0.0, 0.0]
    assert infos["reward_valid"].tolist() == [True, False, False]
    for action, reward in zip(actions, rewards, strict=True):
        env = Careless(say())
        env.reset(seed=0)
        assert env.step(action)[1] == reward


@pytest.mark.parametrize(
    "make",
    [
        partial(KeepTurns, n=-1),
        partial(StripThink, start=""),
        partial(ExtractAnswer, pattern="("),
        partial(FormatReward, pattern="("),
        partial(StopAt, strings="END"),
        partial(StopAt, strings=[""]),
        partial(LengthPenalty, free=1, slope=-1.0),
        partial(LengthPenalty, free=1, slope=1.0, unit="words"),
        partial(SoftOverlong, max_len=3, cache=4),
        partial(RepetitionPenalty, n=0),
        partial(ClipReward, low=1.0, high=1.0),
        partial(TokenBudget, n=0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(EnvContractError):
        make(say())
