"""Options of the verbs that tyro reads: an optional one reads and shows as what it takes."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from trainers.cli import main as cli
from trainers.cli.options import RunArgument, parse_options

VERBS = (
    "eval", "play", "data", "export", "report", "launch", "schema", "doctor", "rewards",
    "runs list", "runs diff", "envs list", "envs show", "envs check", "envs new",
)  # fmt: skip


@dataclass(frozen=True)
class Some:
    """Some options."""

    target: RunArgument = None
    """A run."""
    number: int | None = None
    """A number."""
    file: Path | None = None
    """A file."""
    most: int | None = 3
    """A number that is there."""


def test_what_is_left_out_is_none_and_what_is_given_has_its_type():
    assert parse_options(Some, [], "some") == Some()
    given = ["runs/a", "--number", "0", "--file", "b", "--most", "4"]
    assert parse_options(Some, given, "some") == Some(
        target="runs/a", number=0, file=Path("b"), most=4
    )


def test_help_shows_what_an_option_takes(capsys):
    with pytest.raises(SystemExit):
        parse_options(Some, ["--help"], "some")
    said = capsys.readouterr().out
    assert "usage: llmgym some [-h] [RUN] [--number INT] [--file PATH] [--most INT]" in said
    assert "A number. (default: none)" in said
    assert "A number that is there. (default: 3)" in said


def test_a_wrong_value_is_refused_and_named(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options(Some, ["--number", "x"], "some")
    assert stop.value.code == 2
    assert "--number: invalid literal for int() with base 10: 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_is_free_of_python(verb, capsys):
    assert cli.main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: llmgym {verb}" in said
    assert "None" not in said
