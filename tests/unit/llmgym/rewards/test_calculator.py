"""Calculator annotations: found, computed exactly, compared as they are written."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.rewards.calculator import (
    Annotation,
    annotations,
    compute,
    consistency,
    grounded,
    share_right,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48/2", 24),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("10-2-3", 5),
        ("100/5/2", 10),
        ("-3+ 5", 2),
        ("2*-3", -6),
        (".5*4", 2),
        ("3.", 3),
        ("1/3", Fraction(1, 3)),
        ("((((1))))", 1),
    ],
)
def test_expressions_have_the_values_of_school(text, expected):
    assert compute(text) == expected


NO_EXPRESSION = ("", "1+", "*2", "(1", "1)", "1 2", "2**3", "9//2", "x", "1/0", "1/(2-2)", "1e9")
TOO_DEEP = ("(" * 5000 + "1" + ")" * 5000, "-" * 5000 + "1")


@pytest.mark.parametrize("text", [*NO_EXPRESSION, *TOO_DEEP], ids=lambda text: text[:9])
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match=r"cannot read|division by zero|ends|closed|expected"):
        compute(text)


@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            lambda one: f"({''.join(one)})"
        ),
        max_leaves=8,
    )
)
def test_random_expressions_agree_with_pythons_own_arithmetic(text):
    # The oracle may evaluate: this text was made here, of digits, brackets and four operations.
    exact = "".join(f"F({one})" if one.isdigit() else one for one in _split(text))
    try:
        expected = eval(exact, {"F": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="division by zero"):
            compute(text)
    else:
        assert compute(text) == expected


def _split(text):
    return "".join(one if one.isdigit() else f" {one} " for one in text).split()


def test_annotations_are_found_in_order_and_judged():
    found = annotations("a 48/2=<<48/2=24>>24, b <<2 + 2=5>>5, c <<5=5>>5, d <<2+=4>>")
    assert found == [
        Annotation("48/2", "24", True),
        Annotation("2+2", "5", False),
        Annotation("2+", "4", False),
    ]


@pytest.mark.parametrize(
    ("inside", "right"),
    [
        ("10/3=3.33", True),
        ("10/3=3.3", True),
        ("10/3=3.34", False),
        ("10/3=3", False),
        ("2/3=0.67", True),
        ("2/3=0.66", False),
        ("0.1+0.2=0.3", True),
        ("3/4=3/4", True),
        ("6/8=3/4", True),
        ("6/8=6/8", False),  # says what was asked, and calculates nothing
        ("6*12=6*12", False),
        ("6*12=72+0", False),
        ("6*12=(72)", False),
        ("3-8=-5", True),
        ("1.5*2=3.", True),
        ("1+1=2=2", False),
        ("1/0=0", False),
        ("1+1=", False),
        ("1+" * 200 + "1=201", False),
    ],
)
def test_a_result_may_be_rounded_as_it_is_written(inside, right):
    assert [one.right for one in annotations(f"<<{inside}>>")] == [right]


def test_the_share_counts_nothing_as_zero():
    assert share_right("no calculation") == 0.0
    assert share_right("<<1+1=2>> <<1+1=3>>") == 0.5


PROBLEM = "Six boxes of 12 hold 1,500 nails each; Tom takes 50."
SOLUTION = "<<6*12=72>> <<72-50=22>>"


@pytest.mark.parametrize(
    ("text", "right", "there"),
    [
        (SOLUTION, 1.0, 1.0),
        ("<<6*12=72>>", 0.5, 0.5),  # leaving one out
        ("<<6*12=72>> <<6*12=72>>", 0.5, 0.5),  # saying one twice
        ("<<6*12=72>> <<6 * 12=72>>", 0.5, 0.5),  # also with other spaces
        ("<<6*12=72>> <<6*12=72.0>>", 0.5, 0.5),  # or other digits
        ("<<72=72>> <<22=22>>", 0.0, 0.0),  # calculating nothing
        ("<<6*12=72>> <<72-50=23>>", 0.5, 1.0),
        (SOLUTION + "<<12+50=62>>", 1.0, 1.0),  # more than the solution gain nothing
        (SOLUTION + "<<12+50=63>>", 2 / 3, 1.0),
        ("", 0.0, 0.0),
        ("<<>>", 0.0, 0.0),
        ("<<1+1=2>> <<2+1=3>>", 1.0, 0.0),  # numbers from nowhere
        ("<<72-50=22>> <<6*12=72>>", 1.0, 1.0),  # 72 is what the solution calculates with
        ("<<1500/12=125>> <<125-50=75>>", 1.0, 1.0),  # a detour; 1,500 is one number
        ("<<1500/12=124>> <<124-50=74>>", 0.5, 1.0),  # wrong, and going on with it
        ("<<99-50=49>> <<49-6=43>>", 1.0, 0.5),  # one number from nowhere
    ],
)
def test_annotations_are_not_earned_by_few_empty_or_foreign_ones(text, right, there):
    assert consistency(text, SOLUTION) == pytest.approx(right)
    assert grounded(text, PROBLEM, SOLUTION) == pytest.approx(there)


def test_a_solution_without_annotations_still_judges_what_is_written():
    problem, solution = "What is 1 and 1?", "#### 2"
    for text, expected in (("<<1+1=2>>", (1, 1)), ("<<2+2=4>>", (1, 0)), ("", (0, 0))):
        assert (consistency(text, solution), grounded(text, problem, solution)) == expected
