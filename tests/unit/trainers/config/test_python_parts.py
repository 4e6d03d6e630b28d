"""What Python gives a run has a name, a place and a digest, in every form it may be given in."""

import functools
import json
import linecache
import textwrap
from pathlib import Path

import pytest

from llmgym import Reward, per_sample
from llmgym.rewards.compose import Sum
from trainers.config.files import dump, preset, read
from trainers.config.python_parts import (
    RECORD,
    call,
    describe_part,
    from_python,
    record,
    recorded,
    refuse_command_line,
    refuse_other_parts,
)
from trainers.errors import ConfigError

HERE = Path(__file__)


def score(response, weight=1.0):
    """A plain function."""
    return weight * len(response)


def other(response, weight=1.0):
    """Another plain function."""
    return -weight * len(response)


class Judge:
    """A class with a method that scores, and instances that do."""

    def grade(self, response):
        """Score one response."""
        return 1.0

    def __call__(self, response):
        """Score one response."""
        return 2.0


class Longest(Reward):
    """A reward with a name of its own."""

    name = "longest"

    def score(self, samples):
        """Score all alike."""
        return [0.0 for _ in samples]


def made(word):
    """Return a function that holds a word."""

    def inner(response):
        return float(word in response)

    return inner


def module(folder, text):
    """Run a text as a file of its own and return what it defines."""
    file = folder / "mine.py"
    file.write_text(textwrap.dedent(text))
    names = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    return names


@pytest.mark.parametrize(
    ("given", "name", "word"),
    [
        (score, "score", "score"),
        (Judge, "Judge", "Judge"),
        (Judge().grade, "Judge.grade", "..."),
        (Judge(), "Judge", "..."),
        (Longest(), "longest", "..."),
        (functools.partial(score, weight=2.0), "score", "..."),
        (functools.partial(Judge().grade), "Judge.grade", "..."),
        (per_sample(score), "score", "..."),
        (lambda response: 0.0, "lambda", "..."),
        (made("a"), "inner", "inner"),
    ],
)
def test_every_form_has_a_name_and_a_place(given, name, word):
    part = describe_part("reward", given)
    assert (part.name, part.word, part.setting) == (name, word, f"python:{name}")
    assert (part.file, part.line > 1, len(part.digest)) == (str(HERE), True, 12)


def test_what_is_written_in_c_has_a_name_and_no_digest():
    part = describe_part("reward", len)
    assert (part.setting, part.word, part.file, part.digest) == ("python:len", "...", "", "")


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (score, other),
        (functools.partial(score, weight=1.0), functools.partial(score, weight=2.0)),
        (functools.partial(score), functools.partial(other)),
        (made("a"), made("b")),
        (Sum(a=(score, 1.0)), Sum(a=(other, 1.0))),
        (Judge(), Longest()),
        (per_sample(score), per_sample(other)),
    ],
)
def test_another_source_and_another_value_have_another_digest(one, another):
    first, second = describe_part("reward", one).digest, describe_part("reward", another).digest
    assert first != second
    assert describe_part("reward", one).digest == first


def test_the_digest_of_a_lambda_is_of_the_lambda_and_not_of_the_call_around_it(tmp_path):
    texts = (
        "kept = dict(reward=lambda response: 1.0, resume=False)",
        "\n\nkept = dict( resume=True, reward=lambda   response: 1.0 )",
        "kept = dict(reward=lambda response: 2.0, resume=False)",
    )
    digests = [
        describe_part("reward", module(tmp_path, one)["kept"]["reward"]).digest for one in texts
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_rest_of_its_file_does_not_change_the_digest_of_a_function(tmp_path):
    body = "def f(response):\n    return {}\n"
    texts = ("{}a = 1\n", "{}a = 2\n")
    digests = []
    for text, value in zip((*texts, texts[0]), (1.0, 1.0, 2.0), strict=True):
        names = module(tmp_path, text.format(body.format(value)))
        digests.append(describe_part("reward", names["f"]).digest)
        linecache.clearcache()
    assert digests[0] == digests[1] != digests[2]


def test_what_was_typed_at_a_prompt_is_known_by_its_instructions():
    names = []
    for value in (1.0, 1.0, 2.0):
        scope = {}
        exec(f"def f(response):\n    return {value}", scope)
        names.append(describe_part("reward", scope["f"]))
    assert [one.file for one in names] == ["", "", ""]
    assert names[0].digest == names[1].digest != names[2].digest


def test_settings_name_what_was_given():
    config, env, reward, parts = from_python(read(), env=Judge, reward=score)
    assert (env, reward) == (Judge, score)
    assert config.env.id == "python:Judge"
    assert [one.source for one in config.rewards] == [{"name": "python:score"}]
    assert [one.role for one in parts] == ["env", "reward"]


@pytest.mark.parametrize(
    ("given", "source", "weight"),
    [
        ("exact", {"name": "exact"}, 1.0),
        ("pkg.mod:fn", {"function": "pkg.mod:fn"}, 1.0),
        ({"name": "exact", "weight": 2.0}, {"name": "exact"}, 2.0),
        ([{"model": "folder"}], {"model": "folder"}, 1.0),
    ],
)
def test_a_reward_that_settings_can_name_becomes_a_setting(given, source, weight):
    config, _, reward, parts = from_python(read(), env="llmgym/ReverseTokens-v0", reward=given)
    assert (reward, parts) == (None, [])
    assert [(one.source, one.weight) for one in config.rewards] == [(source, weight)]
    assert config.env.id == "llmgym/ReverseTokens-v0"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"env": Longest()}, "what makes one, got Longest"),
        ({"reward": {"unheard": "exact"}}, "what the setting rewards holds"),
        ({"reward": [score]}, "what the setting rewards holds"),
    ],
)
def test_what_is_neither_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        from_python(read(), **{"env": None, "reward": None, **given})


def test_settings_of_such_a_run_need_its_objects_again():
    config, *_ = from_python(read(), env=Judge, reward=score)
    with pytest.raises(ConfigError, match=r"trainers\.run\(config, env=Judge, reward=score\)"):
        from_python(config, env=None, reward=None)
    with pytest.raises(ConfigError, match=r"gave reward=score, and this call gives none"):
        from_python(config, env=Judge, reward=None)
    assert from_python(config, env=Judge, reward=score)[0] == config


def test_the_command_line_is_told_the_call_that_continues_a_run(tmp_path):
    config, _, _, parts = from_python(read(), env=None, reward=score)
    (tmp_path / RECORD).write_text(record(parts))
    assert recorded(tmp_path) == parts
    with pytest.raises(ConfigError) as raised:
        refuse_command_line(config, tmp_path)
    line = parts[0].line
    assert "gave it reward python:score" in str(raised.value)
    assert f"resume=True)  # reward is score of {HERE}:{line}" in str(raised.value)
    refuse_command_line(read(), tmp_path)


@pytest.mark.parametrize("name", ["a run", 'it"s', "d'une", "a\nb"])
def test_the_call_is_python_whatever_the_folder_is_called(name, tmp_path):
    run = tmp_path / name
    run.mkdir()
    config, _, _, parts = from_python(read(), env=None, reward=score)
    (run / RECORD).write_text(record(parts))
    (run / "config.yaml").write_text(dump(config))
    seen = {}
    scope = {"read": read, "Path": Path, "score": score}
    scope["trainers"] = type("T", (), {"run": lambda config, **more: seen.update(more, c=config)})
    exec(call(config, run, {"eval.patience": None}), scope)
    assert seen == {"c": config, "reward": score, "resume": True}


def test_a_run_of_python_is_continued_with_the_same_name_alone(tmp_path):
    config, _, _, parts = from_python(read([preset("quickstart")]), env=None, reward=score)
    refuse_other_parts(tmp_path, config)
    (tmp_path / RECORD).write_text(record(parts))
    refuse_other_parts(tmp_path, config)
    swapped, *_ = from_python(config, env=None, reward=other)
    for now in (swapped, read([preset("quickstart")])):
        with pytest.raises(ConfigError, match=r"was started from Python with reward python:score"):
            refuse_other_parts(tmp_path, now)


@pytest.mark.parametrize("text", ["", "[1]", "{}", json.dumps([{"role": "reward"}])])
def test_a_damaged_record_tells_nothing(text, tmp_path):
    (tmp_path / RECORD).write_text(text)
    assert recorded(tmp_path) == []
    config, *_ = from_python(read(), env=None, reward=score)
    with pytest.raises(ConfigError, match=r"reward=\.\.\., resume=True"):
        refuse_command_line(config, tmp_path)
