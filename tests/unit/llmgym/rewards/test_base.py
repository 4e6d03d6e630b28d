"""The adapter of plain functions, the naming of rewards, and the error policy."""

import math
import socket

import pytest

from llmgym.errors import RewardError, RewardNotFound
from llmgym.messages import Message, Sample, Score, Task
from llmgym.rewards.base import (
    REWARDS,
    bounds_of,
    per_sample,
    register_reward,
    resolve,
    score_samples,
)
from llmgym.rewards.function import from_function
from llmgym.rewards.rules import Constant, Numeric
from tests.unit.llmgym.samples import Returns, sample


def length_of(one):
    return len(one.text)


def test_per_sample_scores_each_sample_and_keeps_the_functions_name():
    reward = per_sample(length_of)
    assert reward.name == "length_of"
    assert score_samples(reward, [sample("ab"), sample("")]) == [Score(2.0), Score(0.0)]


def test_a_plain_function_gets_prompt_response_answer_and_columns_by_name():
    seen = []

    def score(response, prompt, *, difficulty, answer, extra=7):
        seen.append((prompt, response, difficulty, answer, extra))
        return 1.0

    score_samples(from_function(score), [sample("r", "a", difficulty=3, unused=1)])
    assert seen == [("What?", "r", 3, "a", 7)]


def test_a_plain_function_with_open_columns_gets_all_of_them():
    seen = []

    def score(prompt, response, **columns):
        seen.append(columns)
        return 0.5

    score_samples(from_function(score, kwargs={"k": 1}), [sample("r", "a", x=3, y="z")])
    assert seen == [{"answer": "a", "x": 3, "y": "z", "k": 1}]


def test_a_plain_function_gets_a_dialogue_as_message_dicts():
    seen = []

    def score(prompt, response):
        seen.append(prompt)
        return 1.0

    task = Task(id="t", prompt=(Message("user", "hello"),))
    one = Sample(task=task, messages=(), response="r", text="r")
    score_samples(from_function(score), [one])
    assert seen == [[{"role": "user", "content": "hello"}]]


def test_a_dict_of_parts_is_worth_their_sum():
    reward = from_function(lambda response: {"a": 0.25, "b": -1}, name="two")
    assert score_samples(reward, [sample("x")]) == [Score(-0.75, {"a": 0.25, "b": -1.0})]


def test_missing_parameters_are_named_and_so_is_what_there_is():
    def score(prompt, response, reference, level):
        return 1.0

    with pytest.raises(RewardError, match=r"score\(\) needs reference, level.*answer, color, p"):
        score_samples(from_function(score), [sample("r", color="red")])


def test_a_function_without_a_response_is_refused():
    with pytest.raises(
        RewardError, match=r"\(question, x\) is called by name and must take response"
    ):
        from_function(lambda question, x: 1.0)


def test_kwargs_that_reach_no_parameter_are_refused():
    def score(response, tolerance=0.0):
        return tolerance

    with pytest.raises(RewardError, match=r"no parameter tolerence.*response, tolerance"):
        from_function(score, kwargs={"tolerence": 1.0})
    assert from_function(lambda response, **rest: 1.0, kwargs={"any": 1}).name == "<lambda>"


def test_a_call_that_raises_is_repeated_twice_and_may_recover():
    answers = iter([ValueError("once"), ValueError("twice"), [1.0, 2.0]])

    def flaky(samples):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    reward = Returns(flaky)
    scores = score_samples(reward, [sample("a")] * 2)
    assert [(one.value, one.retries) for one in scores] == [(1.0, 2), (2.0, 2)]
    assert reward.calls == [2, 2, 2]


def test_one_poisonous_sample_does_not_take_the_others_with_it():
    def poisoned(samples):
        if any(one.text == "poison" for one in samples):
            raise ZeroDivisionError("no")
        return [1.0] * len(samples)

    reward = Returns(poisoned)
    scores = score_samples(reward, [sample("a"), sample("poison"), sample("b")])
    assert [one.status for one in scores] == ["ok", "error", "ok"]
    assert reward.calls == [3, 3, 3, 1, 1, 1]
    assert [one.retries for one in scores] == [3, 3, 3]
    assert scores[1].error.startswith("ZeroDivisionError: no at ")
    assert "test_base.py" in scores[1].error


def test_a_collective_reward_is_repeated_whole_and_called_without_samples():
    def fails(samples):
        raise OSError("down")

    reward = Returns(fails, collective=True)
    assert [one.status for one in score_samples(reward, [sample("a")] * 3)] == ["error"] * 3
    assert reward.calls == [3, 3, 3]
    empty = Returns([], collective=True)
    assert score_samples(empty, []) == []
    assert empty.calls == [0]


def test_other_rewards_are_not_called_without_samples():
    reward = Returns([])
    assert score_samples(reward, []) == []
    assert reward.calls == []


@pytest.fixture
def listening():
    """The address of a port that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_registered_name_resolves(name, listening):
    kwargs = {
        "regex": {"pattern": "x"},
        "language": {"script": "latin"},
        "json_schema": {"schema": {}},
        "http": {"url": listening},
        "judge": {"url": listening, "model": "any"},
    }.get(name, {})
    assert resolve({"name": name, "kwargs": kwargs}).name


def test_a_text_and_a_mapping_are_one_object_a_process():
    assert resolve("numeric") is resolve({"name": "numeric", "function": None, "weight": 1.0})
    assert resolve({"name": "numeric", "kwargs": {"tol": 0.5}}) == Numeric(tol=0.5)


def test_a_list_is_the_weighted_sum():
    reward = resolve(
        [
            {"name": "constant", "kwargs": {"value": 3.0}, "weight": 0.5},
            {"name": "constant", "kwargs": {"value": 2.0}, "weight": 10.0},
        ]
    )
    (score,) = score_samples(reward, [sample("a")])
    assert score.value == 21.5
    assert score.parts == {
        "constant": 3.0,
        "constant.weighted": 1.5,
        "constant_1": 2.0,
        "constant_1.weighted": 20.0,
    }


def test_objects_and_plain_functions_resolve_to_themselves():
    constant = Constant(value=2.0)
    assert resolve(constant) is constant
    assert resolve(Constant) == Constant()
    assert resolve(lambda response: 4.0).score([sample("a")]) == [4.0]


def test_a_function_in_a_file_resolves(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(prompt, response, bonus=0):\n    return len(response) + bonus\n")
    spec = {"function": f"{file}:score", "isolated": False, "kwargs": {"bonus": 10}}
    assert score_samples(resolve(spec), [sample("ab")]) == [Score(12.0)]


class Called:
    """A function that remembers a figure."""

    def __init__(self, worth):
        self.worth = worth

    def __call__(self, response):
        return self.worth


@pytest.mark.parametrize(
    ("name", "kwargs"), [("Returns", {"what": [3.0]}), ("Called", {"worth": 3.0})]
)
def test_a_class_stands_for_the_reward_or_function_that_it_makes(name, kwargs):
    spec = {"function": f"{__name__}:{name}", "isolated": False, "kwargs": kwargs}
    assert score_samples(resolve(spec), [sample("a")]) == [Score(3.0)]


def test_a_class_that_makes_neither_is_refused():
    class Neither:
        pass

    with pytest.raises(RewardError, match=r"a reward is a name, .* got Neither <"):
        resolve(Neither)


def test_an_address_that_does_not_load_ends_in_the_command_that_tries_it_again(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(response):\n    return 1.0\n\nclass Other:\n    pass\n")
    for spec in ({"function": str(file), "isolated": False}, str(file)):
        with pytest.raises(RewardNotFound, match=f"it has {file}:score, {file}:Other\n") as bare:
            resolve(spec)
        assert str(bare.value).endswith(f"llmgym rewards check {file}:FN")
    with pytest.raises(RewardNotFound, match=r"no file .*/mime\.py; did you mean mine\.py\?"):
        resolve({"function": f"{tmp_path}/mime.py:score", "isolated": False})
    for text, says in {
        "\nx = (": "2: SyntaxError",
        "\n\nx = no": "3: NameError: name 'no'",
    }.items():
        file = tmp_path / f"{len(text)}.py"
        file.write_text(text)
        with pytest.raises(RewardNotFound, match=f"{file}:{says}") as broken:
            resolve({"function": f"{file}:score", "isolated": False})
        assert "numeric" not in str(broken.value)


def test_names_that_do_not_exist_are_answered_with_those_that_do(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(response):\n    return 1.0\n")
    with pytest.raises(RewardNotFound, match=r'no reward is named "math.boxd".*mean math.boxed'):
        resolve("math.boxd")
    with pytest.raises(RewardNotFound, match="'scor'; did you mean score"):
        resolve({"function": f"{file}:scor", "isolated": False})
    with pytest.raises(RewardNotFound, match="no file"):
        resolve({"function": f"{tmp_path}/other.py:score", "isolated": False})
    with pytest.raises(RewardNotFound, match="no_such_module"):
        resolve({"function": "no_such_module:score", "isolated": False})


def test_settings_that_do_not_exist_are_refused_by_name():
    with pytest.raises(RewardError, match=r'no setting "weightt". Did you mean weight'):
        resolve({"name": "exact", "weightt": 1.0})
    with pytest.raises(RewardError, match="a reward has one of function, name, model; got"):
        resolve({"weight": 1.0})
    with pytest.raises(RewardError, match="unexpected keyword argument 'tolerance'"):
        resolve({"name": "numeric", "kwargs": {"tolerance": 1}})


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (5, "a reward is a name, a function, a Reward, a mapping .*; got int 5"),
        (None, "got None"),
        ([], r"got list \[\]"),
        (["exact"], "an entry of the list is str 'exact'"),
        ({"name": 5}, "the setting name of a reward is text; got int 5"),
        (
            {"name": "exact", "weight": "2"},
            "the setting weight of a reward is a number; got str",
        ),
        ({"name": "exact", "weight": True}, "a number; got bool True"),
        ({"name": "exact", "isolated": 1}, "is true or false; got int 1"),
        ({"name": "exact", "kwargs": ["column"]}, "a mapping of arguments by name; got list"),
        ({"name": "exact", "kwargs": {"column": {1}}}, "kwargs of a reward are plain JSON.*set is"),
        ({"function": "math:pi", "isolated": False}, "got float 3.14"),
    ],
)
def test_what_is_no_reward_is_refused_in_words(spec, says):
    with pytest.raises(RewardError, match=says):
        resolve(spec)


def test_rewards_by_rule_state_their_bounds_and_functions_do_not():
    assert bounds_of(resolve("exact")) == bounds_of(resolve("math.verify")) == (0.0, 1.0)
    assert bounds_of(Constant(value=3.0)) == (3.0, 3.0)
    weighed = [{"name": "exact", "weight": 2.0}, {"name": "numeric", "weight": -0.5}]
    assert bounds_of(resolve(weighed)) == (-0.5, 2.0)
    unknown = (-math.inf, math.inf)
    assert bounds_of(resolve(lambda response: 1.0)) == bounds_of(None) == unknown


def test_a_reward_name_has_one_meaning():
    register_reward("numeric", REWARDS["numeric"])
    with pytest.raises(RewardNotFound, match='"numeric" already means'):
        register_reward("numeric", "other:thing")
