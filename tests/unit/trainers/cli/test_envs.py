"""`llmgym envs show` and `check`: what whole episodes earn, and a reward that fails."""

import json

import pytest

from trainers.cli import envs
from trainers.cli import main as cli
from trainers.errors import ConfigError

REWARD = """
def picky(response, answer):
    return {answer: 1.0}[response]
"""


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Type `llmgym envs ...`; give the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD, encoding="utf-8")
    rows = [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(20)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def command(*words):
        code = cli.main(["envs", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_an_episode_of_several_turns_is_played_to_its_end(shown):
    code, said, _ = shown("show", "llmgym/GuessNumber-v0")
    good, bad = (line for line in said.splitlines() if line.startswith(("good", "bad")))
    assert code == 0
    assert good.endswith(" turns earns 1")
    assert bad.startswith("bad          'I do not know what you mean by that.' ")
    assert bad.endswith(" turns earns 0")
    assert bad.count("I do not know") == 1, "equal answers are counted, not repeated"


def test_an_episode_of_one_turn_is_shown_as_it_is(shown):
    _, said, _ = shown("show", "llmgym/Arithmetic-v0")
    good = next(line for line in said.splitlines() if line.startswith("good"))
    assert good.endswith("' earns 1")


def test_a_reward_that_raises_on_junk_is_one_finding(shown):
    kwargs = ["path=my.jsonl", "answer_column=answer", "reward=mine.py:picky"]
    words = [word for one in kwargs for word in ("--kwargs", one)]
    code, said, warned = shown("check", "llmgym/Prompts-v0", *words)
    assert code == 1
    assert said.startswith(
        "rewards: the reward failed on 5 of 5 episodes, first on an empty action: KeyError: '' at "
    )
    assert said.splitlines()[1:] == ["llmgym/Prompts-v0: 1 failure"]
    assert warned == ""
    _, said, _ = shown("show", "llmgym/Prompts-v0", *words)
    assert "'I do not know what you mean by that.' earns nothing, since the reward failed: " in said


def test_bench_prints_a_row_for_each_number_of_slots(capsys):
    words = ["bench", "llmgym/Arithmetic-v0", "--num-envs", "1", "8", "--rounds", "2"]
    assert envs.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["1", "8"]
    assert [line.split()[-1] for line in lines[1:3]] == ["1", "1"], "one scorer call per step"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["llmgym/Arithmetic-v0", "--num-envs", "0"], "are 1 or more"),
        (["llmgym/Arithmetic-v0", "--rounds", "0"], "are 1 or more"),
        (["CartPole-v1"], "no environment of text"),
    ],
)
def test_what_cannot_be_timed_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        envs.main(["bench", *words])


def test_an_audit_is_printed_as_lines_or_json_and_written_as_a_page(shown, tmp_path):
    words = ("llmgym/ReverseTokens-v0", "--episodes", "3")
    code, text, _ = shown("audit", *words, "--page", "page.md")
    assert code == 0
    assert text.startswith("llmgym/ReverseTokens-v0: ok\n  gold 100%, ")
    assert "| `llmgym/ReverseTokens-v0` | 100% |" in (tmp_path / "page.md").read_text()
    code, text, _ = shown("audit", *words, "--json")
    assert json.loads(text)["gold"] == 1.0
    kwargs = ("--kwargs", "path=my.jsonl", "--kwargs", "answer_column=answer")
    code, text, _ = shown("audit", "llmgym/Prompts-v0", *kwargs, "--kwargs", "reward=mine.py:picky")
    assert code == 1
    assert "  - it raises, or its reward fails, on " in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "envs audit takes an id, or --from LIBRARY"),
        (("llmgym/Arithmetic-v0", "--from", "llmgym"), "takes an id, or --from LIBRARY"),
        (("--from", "llmgim"), "no id begins with llmgim/. There are those of llmgym"),
        (("llmgym/Arithmetc-v0",), "Did you mean llmgym/Arithmetic-v0"),
        (("llmgym/Arithmetic-v0", "--episodes", "0"), "--episodes is 1 or more, got 0"),
    ],
)
def test_an_audit_of_nothing_is_refused(shown, words, message):
    code, _, error = shown("audit", *words)
    assert code == 2
    assert message in error
