"""Rewards by rule on hand-worked cases, adversarial text included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.errors import RewardError
from llmgym.rewards.boxed import boxed, same_answer
from llmgym.rewards.json_schema import JsonSchema
from llmgym.rewards.rules import (
    Choice,
    Contains,
    Exact,
    Language,
    Numeric,
    Regex,
    ThinkFormat,
    last_number,
    number,
)
from tests.unit.llmgym.samples import sample

# Text that would do something if any of it were evaluated, unpickled or formatted.
EVIL = (
    "__import__('os').system('touch evil')",
    "(lambda: exec('x'))()",
    "%s%s%n {0.__class__}",
    "9**9**9**9",
    "\\boxed{" * 500,
    "1" * 50_000,
    "<<" * 10_000,
    "[" * 50_000,
    "\x00\ud7ff\U0001f600",
    "",
)


def worth(reward, response, answer=None, **columns):
    return reward.score([sample(response, answer, **columns)])[0]


@pytest.mark.parametrize(
    ("response", "expected"),
    [(" blue\n", 1.0), ("Blue", 0.0), ("blue sky", 0.0), ("", 0.0)],
)
def test_exact_ignores_space_around_and_nothing_else(response, expected):
    assert worth(Exact(), response, "blue") == expected
    assert worth(Exact(ignore_case=True), "BLUE", "blue") == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it is 1,234.50 dollars", 1234.5),
        ("9-4", 4),
        ("so x = -4.", -4),
        ("-3 and then 5", 5),
        ("3.0", 3),
        (".5", 0.5),
        ("1,2345", 2345),
        ("no digits", None),
        ("\u0663", None),
    ],
)
def test_the_last_number_of_a_text(text, expected):
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7/8", 0.875), ("$12", 12), ("50%", 50), ("1/0", None), ("1/x", None), ("12 apples", None)],
)
def test_a_text_that_is_a_number(text, expected):
    assert number(text) == expected


def test_numeric_compares_exactly_or_within_a_tolerance():
    assert worth(Numeric(), "0.30", "0.3") == 1.0
    assert worth(Numeric(), "The answer is 95.", 95) == 1.0
    assert worth(Numeric(), "95, no: 96", 95) == 0.0
    assert worth(Numeric(), "0.3000001", "0.3") == 0.0
    assert worth(Numeric(tol=0.001), "0.3000001", "0.3") == 1.0
    assert worth(Numeric(whole=True), "95 or so", 95) == 0.0
    assert worth(Numeric(whole=True), " 95\n", 95) == 1.0


def test_a_reference_that_is_missing_or_no_number_is_a_broken_reward():
    with pytest.raises(RewardError, match="has no answer to compare"):
        worth(Numeric(), "1")
    with pytest.raises(RewardError, match='has no column "gold"'):
        worth(Exact(column="gold"), "1", "1")
    with pytest.raises(RewardError, match="is not a number"):
        worth(Numeric(), "1", "one")
    assert worth(Exact(column="gold"), "1", gold="1") == 1.0
    for answer in ("Paris", 1, "F", "", "AB"):
        with pytest.raises(RewardError, match="none of the options ABCDE"):
            worth(Choice(), "B", answer)


def test_a_reference_of_any_float_is_read_as_it_is_written():
    for answer, response in ((1e-05, "0.00001"), (1e16, "1" + "0" * 16), (-2.5, "-2.5")):
        assert worth(Numeric(), f"It is {response}.", answer) == 1.0, answer
        assert worth(Numeric(), "It is 7.", answer) == 0.0
    for answer in (float("nan"), float("inf")):
        with pytest.raises(RewardError, match="is not a number"):
            worth(Numeric(), "1", answer)


@pytest.mark.parametrize(
    ("given_", "wanted", "equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\dfrac12", "1/2", True),
        (r"-\frac{3}{4}", "-0.75", True),
        (r"1\frac{1}{2}", "1.5", True),
        (r"1{,}000\text{ m}", "1000", True),
        ("1,000", "1000", True),
        (r"50\%", "50", True),
        (r"90^\circ", "90", True),
        ("x=3", "3", True),
        (r"\text{Tuesday}", "Tuesday", True),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        ("12", "21", False),
        ("2x", "x+x", False),
        ("1/0", "1", False),
        ("", "", False),
        ("0.333", r"\frac{1}{3}", False),
        ("(1,2)", "(2,1)", False),
        ("((3))", "3", True),
        ("(1/2)", "0.5", True),
        ("(3", "3", False),
        ("3)", "3", False),
        ("(1)/(2", "1/2", False),
        (")3(", "3", False),
    ],
)
def test_answers_are_compared_after_normalising_notation(given_, wanted, equal):
    assert same_answer(given_, wanted) is equal


def test_the_last_complete_box_counts_with_its_braces_balanced():
    assert boxed(r"\boxed{1} then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1") is None
    assert boxed("1") is None


def test_choice_reads_the_last_option_that_stands_alone():
    cases = {"B": 1.0, "b": 1.0, "The answer is (b).": 1.0, "A, no: B!": 1.0, "A": 0.0}
    cases |= {"ABBA": 0.0, "I think a bee": 0.0, "": 0.0, "B or A": 0.0, "B's": 0.0}
    for response, expected in cases.items():
        assert worth(Choice(), response, "B") == expected, response


def test_think_format_is_one_block_and_then_an_answer():
    good = ("<think>a</think>b", " <think>\na < b\n</think>\n\n<b>", "<think>a b</think> c")
    assert [worth(ThinkFormat(), one) for one in good] == [1.0] * 3
    bad = ("<think> </think>b", "a<think>b</think>c", "<think>a</think>b</think>c", "<think>a")
    bad += ("<think>a</think> ", "<think>a</think>b<think>", "<think>" * 3000 + "a")
    assert [worth(ThinkFormat(), one) for one in bad] == [0.0] * 7


def test_a_fraction_is_one_number():
    for response in ("1/2", "It is 1/2.", "It is 1 / 2", "0.5", "2, no: 1/2"):
        assert worth(Numeric(), response, 0.5) == 1.0, response
        assert worth(Numeric(), response, 2) == 0.0, response
    assert worth(Numeric(), "-3/4", -0.75) == 1.0
    assert worth(Numeric(), "It was 12/05/2024", 2024) == 1.0
    assert worth(Numeric(), "1/0", 0) == 0.0


def test_regex_contains_and_think_format():
    assert worth(Regex(pattern="^ab+$"), "abbb") == 1.0
    assert worth(Regex(pattern="b", whole=True), "ab") == 0.0
    for wrong in ("(", 5):
        with pytest.raises(RewardError, match=r"is no regular expression"):
            Regex(pattern=wrong)
    assert worth(Contains(), "In Paris, of course", "paris") == 1.0
    assert worth(Contains(), "comparison", "paris") == 0.0
    assert worth(Contains(), "it is C++.", "C++") == 1.0
    with pytest.raises(RewardError, match=r"\(task t1\) has an empty text to look for"):
        worth(Contains(), "anything, at all", " ")
    assert worth(ThinkFormat(), "<think>hm</think>\n4") == 1.0
    for bad in ("4", "<think></think>4", "<think>a</think>", "<think>a<think>b</think>c</think>d"):
        assert worth(ThinkFormat(), bad) == 0.0, bad


def test_language_is_the_share_of_letters_of_a_script():
    assert worth(Language(script="latin"), "caf\u00e9 123!") == 1.0
    assert worth(Language(script="cyrillic"), "ab\u0434\u0430") == 0.5
    assert worth(Language(script="japanese"), "\u3072\u30ab\u6f22") == 1.0
    assert worth(Language(script="latin"), "123") == 0.0
    with pytest.raises(RewardError, match="script must be one of latin"):
        Language(script="french")


SCHEMA = {
    "type": "object",
    "required": ["name", "ages"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2},
        "kind": {"enum": ["a", 1, None]},
    },
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "x", "ages": [1, 2]}', 1.0),
        ('{"name": "x", "ages": [], "kind": null}', 1.0),
        ('{"name": "x", "ages": [1.0]}', 1.0),
        ('{"name": "x", "ages": [true]}', 0.5),
        ('{"name": "x", "ages": [1, 2, 3]}', 0.5),
        ('{"name": "x", "ages": [-1]}', 0.5),
        ('{"name": "", "ages": []}', 0.5),
        ('{"ages": []}', 0.5),
        ('{"name": "x", "ages": [], "more": 1}', 0.5),
        ('{"name": "x", "ages": [], "kind": true}', 0.5),
        ("[]", 0.5),
        ("NaN", 0.0),
        ('{"name": "x", "ages": []} trailing', 0.0),
        ("", 0.0),
    ],
)
def test_json_is_half_and_fitting_the_schema_is_all(text, expected):
    assert worth(JsonSchema(schema=SCHEMA), text) == expected


def test_json_of_any_depth_is_judged():
    reward = JsonSchema(schema={"const": 1})
    worths = [worth(reward, "[" * depth + "]" * depth) for depth in range(700, 1000)]
    assert set(worths) == {0.0, 0.5}
    assert worths == sorted(worths, reverse=True)


def test_a_schema_beyond_the_subset_is_refused_by_name():
    with pytest.raises(RewardError, match=r"schema.properties.a uses oneOf"):
        JsonSchema(schema={"properties": {"a": {"oneOf": []}}})
    with pytest.raises(RewardError, match=r"schema.type is 'text'"):
        JsonSchema(schema={"type": "text"})


RULES = (
    Exact(),
    Numeric(),
    Numeric(whole=True),
    Choice(),
    Contains(),
    ThinkFormat(),
    Regex(pattern="zzz"),
    Language(script="thai"),
    JsonSchema(schema={"type": "object"}),
)


@pytest.mark.parametrize("text", EVIL, ids=lambda text: text[:12])
def test_adversarial_text_earns_nothing_and_does_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reward in RULES:
        answer = "77" if isinstance(reward, Numeric) else "B"
        assert worth(reward, text, answer) in (0.0, 0.5 if reward.name == "json_schema" else 0.0)
    assert not same_answer(text, "77")
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=200))
def test_no_text_makes_a_rule_fail_or_leave_its_bounds(text):
    for reward in RULES:
        answer = "B" if isinstance(reward, Choice) else "1"
        assert 0.0 <= worth(reward, text, answer) <= 1.0
    assert same_answer(text, text) in (True, False)
