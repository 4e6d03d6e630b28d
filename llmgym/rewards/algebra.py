r"""`math.verify`: mathematical answers compared by the computer algebra system of math-verify.

An answer is what the last `\boxed{...}` of a text holds. Words are compared as text, mathematics
by the library, which sees it as LaTeX: outside of a formula it would read the number of
`2\sqrt{3}` only. Both sides are read in the same way, so a gold answer needs no `$` around it.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, final

from llmgym.errors import MissingExtraError, RewardError
from llmgym.messages import Sample, Task
from llmgym.rewards.boxed import BOX, MAX_ANSWER, WRAPPERS, boxed
from llmgym.rewards.rules import MAX_CHARACTERS, Comparison, number, reference
from llmgym.rewards.verdict import row_of, shown

MAX_SIZE = 100_000.0
"""Decimal digits of the largest number that is computed, as in a tower of powers."""
MAX_TERMS = 300
"""Terms of the largest sum that a power is expanded to."""
MAX_COUNT = 10_000.0
"""The largest argument of a factorial, and the most factors of a product."""
MAX_UNBOXED = 2_000
"""Without a box, the answer is looked for in so many last characters."""
MAX_WORDS = 5
"""An answer with numbers in it and more words than this is a whole solution."""

# What people and models write beside LaTeX, in LaTeX.
NOTATION = (
    (re.compile(r"^([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)$"), r"\1\\times 10^{\2}"),
    (re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|exp|sqrt)(?=\s*[\d(\\^]| [a-z]\b)"), r"\\\1 "),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![\\A-Za-z])infinity(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\varnothing"), r"\\emptyset"),
)
SYMBOLS = {
    "\u2212": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u00f7": r"\div ",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u00b0": r"^\circ ",
    "\u221a": r"\sqrt ",
}
GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:(?:\\[,;: ]|~|\s)\d{3})+(?![\d,])")
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*\{?(\d+)\}?")
FORMULA = re.compile(r"\$\$?([^$]+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
LETTERS = re.compile(r"[^\W\d_]+")
OPERATORS = re.compile(r"[\d\\^_=<>+*/|{}\[\]$&%]")
BASE = re.compile(r"(?<=\d)_\{?(\d+)\}?")
CAPITAL = re.compile(r"\\(Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega)\b")
STATED = re.compile(r"\banswer(?: is|:)\s*(.+?)(?=\.\s|\.?\s*$)", re.IGNORECASE | re.MULTILINE)
NOT_UNITS = "percent|dozen|hundred|thousand|million|billion|trillion|half|halves|and|or|to|by"
UNITS = re.compile(rf"([-+]?[\d.,/]*\d) (?!.*\b(?:{NOT_UNITS})\b)[A-Za-z][A-Za-z ]{{2,}}")


@final
@dataclass(frozen=True, kw_only=True)
class MathVerify(Comparison):
    r"""1.0 where the answer of the response equals the gold answer, as text or as mathematics.

    It computes with a computer algebra system, so it must run where it can be killed: the name
    "math.verify" stands for `isolate.math_verify`, which sees to that.

    Attributes:
        column: the reference's column; None for the task's answer. It may itself be boxed.
    """

    name: str = "math.verify"
    column: str | None = None

    def __reduce__(self) -> tuple[Any, tuple[str, str | None]]:
        """Load the library where a copy is made, so that the first sample does not wait for it."""
        return _loaded, (self.name, self.column)

    def expected(self, task: Task) -> str:
        """Return the gold answer in the one notation that is compared."""
        value = reference(task, self.column)
        try:
            return _sound(value if isinstance(value, str) else _number(value))
        except ValueError as error:
            raise RewardError(
                f"math.verify cannot compare the answer {shown(value)} of {row_of(task)}: {error}."
                "\nGive a number, LaTeX or a word; a whole solution has its answer in \\boxed{}."
            ) from error

    def agrees(self, sample: Sample) -> bool:
        """Read the answer of the response and compare."""
        expected = self.expected(sample.task)
        return _equal(_answer_of(str(sample.text)), expected)


def _loaded(name: str, column: str | None) -> MathVerify:
    _library()
    return MathVerify(name=name, column=column)


@cache
def _library() -> Any:  # noqa: ANN401 - a module of another package
    try:
        import math_verify
    except ImportError as error:
        message = 'math.verify needs math-verify: pip install "llmgym-rl[math]"'
        raise MissingExtraError(message) from error
    return math_verify


def _number(value: object) -> str:
    if isinstance(value, int):  # True is the word
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(str(value)):f}"
    raise ValueError(f"it is a {type(value).__name__} and neither text nor a number")


@lru_cache(maxsize=4096)
def _sound(gold: str) -> str:
    """Return the answer of a gold text; `ValueError` where it is neither words nor mathematics."""
    answer = _plain(boxed(gold) or gold)
    if not answer:
        raise ValueError(f"it is empty, or longer than {MAX_ANSWER} characters")
    if _words(answer) is not None:
        return answer
    if _is_solution(answer):
        raise ValueError("it is a whole text with numbers in it")
    expressions = _read(answer)
    if not expressions:
        raise ValueError("it is neither a word nor LaTeX that can be read and computed")
    if not _same_mathematics(answer, answer):
        raise ValueError("as mathematics it does not equal itself")
    return answer


def _is_solution(text: str) -> bool:
    return len(_long_words(text)) > MAX_WORDS


def _long_words(text: str) -> list[str]:
    return [word for word in LETTERS.findall(re.sub(r"\\[A-Za-z]+", "", text)) if len(word) > 2]


def _answer_of(response: str) -> str:
    """Return the answer of a response: in its last box; without one, what it states or is."""
    if BOX.search(response, max(0, len(response) - MAX_CHARACTERS)):
        return _plain(boxed(response) or "")
    text = response[-MAX_UNBOXED:]
    stated = STATED.findall(text)
    text = stated[-1] if stated else text
    formulas = FORMULA.findall(text)
    if formulas:
        text = next(filter(None, formulas[-1]))
    elif _long_words(text):
        numbers = [token for token in text.split() if any(map(str.isdigit, token))]
        text = numbers[-1].strip(".,;:!?()*") if numbers else text
    return _plain(text)


def _plain(text: str) -> str:
    r"""Return an answer in one notation: no `$` around it, `\text` of words only, LaTeX numbers."""
    text = " ".join(text.split()).removesuffix(".").strip()
    if len(text) > MAX_ANSWER:
        return ""
    whole = FORMULA.fullmatch(text)
    if whole:
        text = next(filter(None, whole.groups())).strip()
    for symbol, latex in SYMBOLS.items():
        text = text.replace(symbol, latex)
    for pattern, form in NOTATION:
        text = pattern.sub(form, text)
    text = GROUPED.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    text = REPEATING.sub(_fraction, text)
    wrapped = WRAPPERS.fullmatch(text)
    text = wrapped[1].strip() if wrapped else text.strip()
    counted = UNITS.fullmatch(text)
    return counted[1] if counted else text


def _fraction(match: re.Match[str]) -> str:
    r"""Rewrite `0.1\overline{6}` as a fraction."""
    whole, fixed, period = match.groups()
    top = int(f"{whole or 0}{fixed}{period}") - int(f"{whole or 0}{fixed}")
    return rf"\frac{{{top}}}{{{10 ** len(fixed) * (10 ** len(period) - 1)}}}"


def _words(text: str) -> str | None:
    """Return a text that is words, folded; None for what is mathematics, as one or two letters."""
    text = WRAPPERS.sub(r" \1 ", text)
    runs = LETTERS.findall(text)
    if OPERATORS.search(text) or not any(len(run) > 2 or not run.isascii() for run in runs):
        return "no" if runs == ["no"] or runs == ["No"] else None
    return " ".join(text.casefold().split()).strip(" .,;:!?()'\"*")


def is_plain(value: object) -> bool:
    """Return whether a gold answer is a number or words, which are always comparable."""
    return isinstance(value, int) or (
        isinstance(value, str) and (number(value) is not None or _words(value) is not None)
    )


def _equal(answer: str, gold: str) -> bool:
    if answer == gold:
        return True
    words = _words(answer), _words(gold)
    if words != (None, None):
        return words[0] == words[1]
    return _same_mathematics(answer, gold)


def _same_mathematics(answer: str, gold: str) -> bool:
    bases = BASE.findall(answer), BASE.findall(gold)
    if all(bases) and bases[0] != bases[1]:  # the library drops them: 12_3 is not 12_5
        return False
    if {*CAPITAL.findall(answer)} != {*CAPITAL.findall(gold)}:  # to the library a delta is a Delta
        return False
    verify = _library().verify
    return any(
        _comparable(expected, other) and verify(expected, other, timeout_seconds=None)
        for expected in _read(gold)
        for other in _read(answer)
    )


@lru_cache(maxsize=4096)
def _read(answer: str) -> tuple[Any, ...]:
    """Return the expressions that the library reads in an answer, without those too large."""
    if _has_large_binomial(answer):
        return ()
    # Deadlines of the library use signals; here the process has one. None switches them off.
    expressions = _library().parse(rf"\boxed{{{answer}}}", parsing_timeout=None)
    return tuple(
        expression
        for expression in expressions
        if not isinstance(expression, str) and _size(expression) <= MAX_SIZE
    )


def _comparable(expression: Any, other: Any) -> bool:  # noqa: ANN401 - expressions of sympy
    """Return False for a pair or interval against a set: (1, 2) is not {2, 1}."""
    kinds = {type(expression).__name__, type(other).__name__}
    return not ("FiniteSet" in kinds and kinds & {"Interval", "Tuple"})


def _has_large_binomial(text: str) -> bool:
    # The library computes them while it reads.
    return "binom" in text and any(len(digits) > 5 for digits in re.findall(r"\d+", text))


def _size(expression: Any) -> float:  # noqa: ANN401 - an expression of sympy
    """Return a bound of the decimal digits that computing an expression takes; infinity if many."""
    kind = type(expression).__name__
    args = tuple(expression) if "DenseMatrix" in kind else tuple(expression.args)
    if not args:
        return _digits(expression)
    if kind in ("Pow", "exp"):
        return _power(*args) if kind == "Pow" else _value(args[0])
    if kind in ("factorial", "factorial2", "subfactorial"):
        count = _value(args[0])
        return math.inf if count > MAX_COUNT else count * math.log10(count + 1.0)
    if kind == "Product" and any(_value(leaf) > MAX_COUNT for leaf in expression.atoms()):
        return math.inf
    sizes = [_size(arg) for arg in args]
    return max(sizes) + math.log10(len(sizes)) if kind == "Add" else sum(sizes)


def _digits(leaf: Any) -> float:  # noqa: ANN401 - of an expression of sympy
    if leaf.is_Rational:
        return math.log10(max(abs(int(leaf.p)), int(leaf.q), 1))
    return 0.5 if leaf.is_number else 0.0


def _value(expression: Any) -> float:  # noqa: ANN401 - an expression of sympy
    """Return a bound of the absolute value of a number."""
    size = _size(expression)
    if expression.is_Rational and not expression.args and size < 300:
        return abs(int(expression.p) / int(expression.q))
    return 10.0**size if size < 300 else math.inf


def _power(base: Any, exponent: Any) -> float:  # noqa: ANN401 - expressions of sympy
    if exponent.free_symbols:
        return _size(base) + _size(exponent)
    times = _value(exponent)
    terms = len(base.args) if base.is_Add and base.free_symbols else 1
    expands = terms > 1 and times > 1
    if expands and (times > MAX_TERMS or math.comb(int(times) + terms - 1, terms - 1) > MAX_TERMS):
        return math.inf
    size = _size(base)
    return size * times if size else 0.0
