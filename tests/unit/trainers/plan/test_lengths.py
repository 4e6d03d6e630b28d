"""Work goes with the tokens that there are; passes that must be made are made."""

import pytest

from trainers.config import Config, GenerationConfig
from trainers.plan.counting import Usage
from trainers.plan.lengths import Lengths, Work, at_limits

CONFIG = Config(generation=GenerationConfig(max_prompt_tokens=60, max_new_tokens=40))
USAGE = Usage(peak=7, flops=1000, written=2000, calls=100)


def real(part, *, passes=1.0, turns=1.0, response=(20.0, 40.0)):
    lengths = Lengths(prompt=30.0, response=response, turns=turns, source="")
    work = Work(name="", usage=USAGE, often=1, passes=passes, part=part)
    found = work.real(CONFIG, lengths, 0)
    return found.flops, found.written, found.calls


def test_rows_of_half_the_tokens_are_half_the_work_in_as_few_passes_as_hold_them():
    assert real("row", passes=10) == (500, 1000, 50)
    assert real("row", passes=1) == (500, 1000, 100)


def test_responses_are_written_until_the_longest_ends():
    assert real("response", response=(10.0, 40.0)) == (250, 500, 50)
    assert real("response", response=(30.0, 40.0)) == (750, 1500, 100)


def test_every_turn_reads_what_was_said_before():
    assert real("prompt") == (500, 1000, 100)
    assert real("prompt", turns=2.0) == (pytest.approx(1000 * 2 * 40 / 60, abs=1), 2667, 200)


def test_what_is_assumed_of_responses_is_a_range_below_the_limit():
    low, high = at_limits(CONFIG).response
    assert 0 < low < high < 40
    assert at_limits(CONFIG).prompt == 60
