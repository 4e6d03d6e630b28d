"""`ToolEnv`: calls are run and answered, and whatever goes wrong is an answer too."""

import gymnasium as gym
import numpy as np
import pytest

import llmgym
from llmgym import Task
from llmgym.check import check
from llmgym.errors import EnvContractError, ToolServerError
from llmgym.messages import Completion, Message, StopReason, ToolCall
from llmgym.rewards.base import UnitReward
from llmgym.tools import FORMATS, Tool, ToolEnv, ToolUse
from tests.unit.llmgym.tools import functions

TASK = Task(
    id="1",
    prompt="1 + 2?",
    answer="3",
    solution="3",
    meta={"calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]},
)
TOOLS = [functions.add, functions.fail, functions.sleep, functions.submit]


def hermes(name, **arguments):
    return FORMATS["hermes"].write(ToolCall(name, arguments))


def begun(tools=TOOLS, task=TASK, **kwargs):
    env = ToolEnv([task], "exact", tools, **kwargs)
    obs, _ = env.reset(seed=0)
    return env, obs


@pytest.mark.parametrize("parser", FORMATS)
def test_the_solution_of_every_format_earns_the_most(parser):
    env, obs = begun(parser=parser)
    rewards, over = [], False
    while not over:
        obs, reward, terminated, truncated, info = env.step(env.solve())
        rewards.append(reward)
        over = terminated or truncated
    assert rewards == [0.0, 1.0]
    assert info["stop_reason"] == StopReason.ANSWERED
    assert [message["role"] for message in obs] == ["user", "assistant", "tool", "assistant"]
    assert (obs[2]["content"], obs[2]["name"]) == ("3", "add")
    assert len(obs[2]["tool_call_id"]) == 9


def test_the_first_message_has_the_schemas_and_each_observation_has_its_own():
    env, obs = begun()
    names = [schema["function"]["name"] for schema in obs[0]["tools"]]
    assert names == ["add", "fail", "sleep", "submit"]
    after, *_ = env.step(hermes("add", a=1))
    assert after[0]["tools"] == obs[0]["tools"]
    assert after[0]["tools"][0] is not obs[0]["tools"][0]
    after[0]["tools"][0]["function"]["name"] = "changed"
    assert env.step(hermes("add", a=1))[0][0]["tools"] == obs[0]["tools"]


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (hermes("add", a=1, b=2), "3"),
        (hermes("fail", message="no row"), "error: KeyError: 'no row'"),
        (hermes("sleep", seconds=9), "error: sleep gave no result within 0.2 s"),
        (hermes("ad", a=1), "error: there is no tool 'ad'; there is add, fail, sleep, submit"),
        (hermes("add", a="x"), "error: the argument 'a' must be integer, got \"x\""),
        ("<tool_call>{}</tool_call>", "error: a call is {"),
        ("<tool_call>", "error: a call begins with <tool_call>"),
    ],
)
def test_a_call_is_answered_whatever_becomes_of_it(response, answer):
    env, _ = begun(tool_timeout=0.2)
    obs, reward, terminated, truncated, info = env.step(response)
    assert obs[-1]["role"] == "tool"
    assert obs[-1]["content"].startswith(answer)
    assert (reward, terminated, truncated, info["reward_valid"]) == (0.0, False, False, True)
    assert env.step("3")[1] == 1.0


def test_a_malformed_call_may_end_the_episode():
    env, _ = begun(on_parse_error="end")
    _, reward, terminated, truncated, info = env.step("<tool_call>3")
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["stop_reason"] == StopReason.PARSE_ERROR


def test_what_is_called_is_seen_by_the_reward():
    seen = []

    class Seen(UnitReward):
        name, per_turn, collective = "seen", True, False

        def score(self, samples):
            seen.extend(sample.state for sample in samples)
            return [1.0 for _ in samples]

    env = ToolEnv([TASK], Seen(), TOOLS)
    env.reset(seed=0)
    for response in (hermes("add", a=1), "<tool_call>", hermes("no"), "3"):
        env.step(response)
    assert [len(use.calls) for use in seen] == [1, 1, 2, 2]
    last = seen[-1]
    assert isinstance(last, ToolUse)
    assert (last.failed, last.malformed, last.answered) == (1, 1, True)
    assert last.results[0] == "1"
    assert [use.answered for use in seen] == [False, False, False, True]


def test_no_call_is_left_after_the_last_one():
    env, _ = begun(max_calls=2)
    answers = []
    for _ in range(4):
        obs, _, _, truncated, info = env.step(hermes("add", a=1))
        answers.append(obs[-1]["content"])
    assert answers[:2] == ["1", "1"]
    assert answers[2] == "error: no call is left of 2: answer now"
    assert truncated
    assert info["stop_reason"] == StopReason.MAX_TURNS


def test_a_cut_response_calls_nothing():
    called = []

    def note(a: int) -> int:
        """Note it."""
        called.append(a)
        return a

    env, _ = begun([note])
    _, _, terminated, truncated, info = env.step(
        Completion(hermes("note", a=1), finish_reason="length")
    )
    assert (terminated, truncated, info["stop_reason"]) == (False, True, StopReason.LENGTH)
    assert called == []


def test_several_calls_of_a_response_are_answered_in_order():
    env, _ = begun()
    obs, *_ = env.step(hermes("add", a=1) + hermes("add", a=2))
    assert [message["content"] for message in obs[-2:]] == ["1", "2"]
    assert obs[-2]["tool_call_id"] != obs[-1]["tool_call_id"]


def test_a_tool_that_replies_pays_and_ends():
    env, _ = begun()
    obs, reward, terminated, _, info = env.step(hermes("submit", answer="right"))
    assert (terminated, info["stop_reason"]) == (True, StopReason.ENV_DONE)
    assert reward == 0.5  # and the reward of the episode scores the call, which is no "3"
    assert obs[-1]["content"] == "noted"


class Counter:
    """A tool with a state."""

    def __init__(self, start):
        self.count = start

    def bump(self, by: int) -> int:
        """Count."""
        self.count += by
        return self.count


def counters(task, rng):
    """Give an episode a counter of its own."""
    return [Counter(int(rng.integers(10, 99))).bump]


def test_tools_of_an_episode_have_a_state_of_their_own():
    env = ToolEnv([TASK], "exact", [functions.add], per_episode=counters)
    firsts = []
    for _ in range(2):
        obs, _ = env.reset(seed=5)
        assert [schema["function"]["name"] for schema in obs[0]["tools"]] == ["add", "bump"]
        first = int(env.step(hermes("bump", by=0))[0][-1]["content"])
        assert int(env.step(hermes("bump", by=3))[0][-1]["content"]) == first + 3
        firsts.append(first)
    assert firsts[0] == firsts[1]


def test_a_broken_tool_server_fails_its_slot_and_no_other():
    def broken(a: int) -> int:
        """Fail."""
        raise ToolServerError("the server ended")

    envs = llmgym.LLMVectorEnv([lambda: ToolEnv([TASK], "exact", [broken, functions.add])] * 2)
    envs.reset(seed=0)
    _, rewards, _, truncated, infos = envs.step([hermes("broken", a=1), "3"])
    assert infos["stop_reason"].tolist() == ["env_error", "answered"]
    assert infos["reward_valid"].tolist() == [False, True]
    assert "the server ended" in infos["reward_error"][0]
    assert np.array_equal(rewards, [0.0, 1.0])
    assert truncated.tolist() == [True, False]


def test_the_system_message_tells_of_the_tools_where_no_template_does():
    _, obs = begun([functions.add], describe="system", system="Be brief.", parser="xml")
    assert [message["role"] for message in obs] == ["system", "user"]
    text = obs[0]["content"]
    assert text.startswith("Be brief.\n\nYou may call these functions:\n{")
    assert '"name": "add"' in text
    assert text.endswith(FORMATS["xml"].instructions)
    assert "tools" not in obs[1]
    dialogue = (Message("system", "Rules."), Message("user", "1 + 2?"))
    _, obs = begun(task=Task(id="2", prompt=dialogue), describe="system")
    assert [message["role"] for message in obs] == ["system", "user"]
    assert obs[0]["content"].endswith("Rules.")
    _, obs = begun(describe="none", system="Be brief.")
    assert [message["role"] for message in obs] == ["system", "user"]
    assert all("tools" not in message for message in obs)


def test_a_long_result_is_cut():
    def long(n: int) -> str:
        """Return a long text."""
        return "x" * n

    env, _ = begun([long], max_result=10)
    obs, *_ = env.step(hermes("long", n=50))
    assert obs[-1]["content"] == "x" * 10 + "... (50 characters, the rest is cut)"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tools": []}, "has one tool at least"),
        ({"tools": [functions.untyped]}, "parameter 'a' of the tool untyped has no type"),
        ({"tools": [functions.add, functions.add]}, "two tools are named 'add'"),
        ({"tools": functions.add}, "tools is a list"),
        ({"tools": "a.b:c"}, "tools is a list"),
        ({"parser": "yaml"}, "parser is one of"),
        ({"describe": "user"}, "describe is template, system or none"),
        ({"on_parse_error": "raise"}, "on_parse_error is reply or end"),
        ({"max_calls": 0}, "max_calls must be above 0"),
        ({"tool_timeout": 0.0}, "tool_timeout must be above 0"),
        ({"parser": lambda text, tools: [], "describe": "system"}, "a parser of your own"),
    ],
)
def test_a_wrong_setting_is_refused(kwargs, message):
    with pytest.raises(EnvContractError, match=message):
        ToolEnv([TASK], "exact", **{"tools": [functions.add], **kwargs})


@pytest.mark.parametrize("parser", FORMATS)
def test_the_calculator_keeps_the_contract(parser):
    kwargs = {"parser": parser, "held_out": {"split": "test"}, "episodes": 10}
    assert check("llmgym/Calculator-v0", **kwargs) == []
    assert check("llmgym/Calculator-v0", describe="system", **kwargs) == []


def test_the_calculator_pays_less_for_needless_calls_and_nothing_for_a_call():
    env = gym.make("llmgym/Calculator-v0", digits=2, max_calls=3).unwrapped
    env.reset(seed=0)
    call, answer = env.solve(), env.task.solution
    assert env.step(answer)[1] == 1.0  # in the head
    for calls, reward in ((1, 1.0), (2, 0.9), (3, 0.8)):
        env.reset(seed=0)
        for _ in range(calls):
            assert env.step(call)[1] == 0.0
        assert env.step(answer)[1] == pytest.approx(reward)
    env.reset(seed=0)
    for _ in range(5):
        _, earned, _, truncated, _ = env.step(call)
    assert (earned, truncated) == (0.0, True)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 * (3 + 4)", "84"),
        ("1/4", "0.25"),
        ("10/3", "3.333333"),
        ("1/0", "error: ValueError: division by zero"),
        ("__import__('os')", "error: ValueError: cannot read"),
        ("9" * 300, "error: ValueError: an expression has at most 200 characters"),
    ],
)
def test_the_calculator_computes_and_evaluates_nothing_else(expression, result):
    env = gym.make("llmgym/Calculator-v0").unwrapped
    env.reset(seed=0)
    obs, *_ = env.step(hermes("calculator", expression=expression))
    assert obs[-1]["content"].startswith(result)


def test_levels_make_longer_operands():
    env = gym.make("llmgym/Calculator-v0").unwrapped
    for level in (1, 3, 7):
        env.reset(seed=0, options={"level": level})
        least = 10 ** (level - 1) if level > 1 else 0
        assert all(least <= env.task.meta[name] < 10**level for name in "ab")


def test_a_tool_of_an_address_is_set_by_plain_json():
    env, _ = begun(["tests.unit.llmgym.tools.functions:add"])
    assert env.step(hermes("add", a=1, b=2))[0][-1]["content"] == "3"
    assert isinstance(env.tools["add"], Tool)
