"""Calculator annotations, as in "48/2 = <<48/2=24>>24": found, computed exactly, compared.

The arithmetic is parsed by the grammar below and computed in fractions; nothing is evaluated.

    sum     := product (("+" | "-") product)*
    product := factor (("*" | "/") factor)*
    factor  := ("+" | "-") factor | "(" sum ")" | number
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import final

MAX_CHARACTERS = 200
"""Longer expressions are wrong: it bounds the size of the fractions."""

MAX_DEPTH = 20

ANNOTATION = re.compile(r"<<([^<>]*)>>")
TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+|[-+*/()])\s*")
OPERATION = re.compile(r"[0-9.)]\s*[-+*/]")
NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+")
DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


@final
@dataclass(frozen=True, slots=True)
class Annotation:
    """One calculation in a text.

    Attributes:
        expression: what stands before the last "=", without spaces.
        result: what stands after it.
        right: True where the result is the expression's value, as a fraction in lowest terms or as
            a decimal number, rounded as it is written. Another expression is no result.
    """

    expression: str
    result: str
    right: bool


def annotations(text: str) -> list[Annotation]:
    """Return the annotations of a text, in order.

    One without an operation (`<<5=5>>`) calculates nothing and is left out; one that cannot be
    read (`<<2+=5>>`) is there, and wrong.
    """
    listed = []
    for inside in ANNOTATION.findall(text):
        expression, _, result = inside.rpartition("=")
        expression, result = "".join(expression.split()), result.strip()
        if OPERATION.search(expression) or "=" not in inside:
            right = len(inside) <= MAX_CHARACTERS and _is_right(expression, result)
            listed.append(Annotation(expression, result, right))
    return listed


def share_right(text: str) -> float:
    """Return the share of a text's annotations that are right; 0.0 where it has none."""
    listed = annotations(text)
    return sum(annotation.right for annotation in listed) / len(listed) if listed else 0.0


def consistency(text: str, solution: str) -> float:
    """Return right / max(written, in the solution), 0.0 where nothing is annotated.

    Annotations are counted once each, so neither leaving out the hard ones nor repeating an easy
    one pays. Easy ones do: watch `grounded` and the answer beside it.
    """
    written, expected = _distinct(text), _distinct(solution)
    right = sum(annotation.right for annotation in written)
    return right / max(len(written), len(expected), 1)


def grounded(text: str, problem: str, solution: str) -> float:
    """Return the share of annotations that calculate with what is there, counted as consistency is.

    What is there: numbers of the problem, results of annotations before, and what the solution
    itself calculates with (7 days, 100 percent). So `<<1+1=2>>` earns nothing where no 1 is, and a
    solution earns 1.0 beside its own problem. Whether the result is right is not asked.
    """
    written, expected = _distinct(text), _distinct(solution)
    known = _numbers(problem).union(*(_numbers(annotation.expression) for annotation in expected))
    count = 0
    for annotation in written:
        operands = _numbers(annotation.expression[:MAX_CHARACTERS])
        count += bool(operands) and operands <= known
        known |= _numbers(annotation.result[:MAX_CHARACTERS])
    return count / max(len(written), len(expected), 1)


def _distinct(text: str) -> list[Annotation]:
    """Return the annotations in order, each expression once per verdict: 1+1=2.0 is 1+1=2."""
    return list(
        {
            (annotation.expression, annotation.right): annotation
            for annotation in annotations(text)
        }.values()
    )


def _numbers(text: str) -> set[Fraction]:
    """Return the numbers in a text: "$1,200 and 7.5" has two."""
    return {Fraction(number.replace(",", "").rstrip(".")) for number in NUMBER.findall(text)}


def compute(expression: str) -> Fraction:
    """Return the value of an arithmetic expression, exactly.

    Raises:
        ValueError: it is no such expression, is nested too deeply, or divides by zero.
    """
    tokens = _tokens(expression)
    value, end = _sum(tokens, 0, 0)
    if end != len(tokens):
        raise ValueError(f"cannot read {expression!r} from token {end} on")
    return value


def _is_right(expression: str, result: str) -> bool:
    try:
        value = compute(expression)
    except ValueError:
        return False
    if result == str(value):  # 3/4=3/4
        return True
    if not DECIMAL.fullmatch(result):
        return False
    written = Fraction(result.rstrip("."))
    if value == written:
        return True
    # 10/3=3.33 is right and 10/3=3.3 as well: half a unit of the last written decimal.
    decimals = len(result.partition(".")[2])
    return decimals > 0 and abs(value - written) <= Fraction(1, 2 * 10**decimals)


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"cannot read {text!r} from character {position} on")
        tokens.append(match[1])
        position = match.end()
    return tokens


def _sum(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "+-":
        operation = add if tokens[at] == "+" else sub
        right, at = _product(tokens, at + 1, depth)
        value = operation(value, right)
    return value, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _factor(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "*/":
        operation = mul if tokens[at] == "*" else truediv
        right, at = _factor(tokens, at + 1, depth)
        if operation is truediv and right == 0:
            raise ValueError("division by zero")
        value = operation(value, right)
    return value, at


def _factor(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    if at >= len(tokens) or depth > MAX_DEPTH:
        raise ValueError("the expression ends too early, or is nested too deeply")
    token = tokens[at]
    if token in "+-":
        value, at = _factor(tokens, at + 1, depth + 1)
        return (-value if token == "-" else value), at
    if token == "(":
        value, at = _sum(tokens, at + 1, depth + 1)
        if at >= len(tokens) or tokens[at] != ")":
            raise ValueError("a bracket is not closed")
        return value, at + 1
    if token in ")*/":
        raise ValueError(f"a number was expected, got {token}")
    return Fraction(token.rstrip(".")), at + 1
