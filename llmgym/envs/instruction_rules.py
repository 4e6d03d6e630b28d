"""The rules of `llmgym/Instructions-v0`: kinds of rule, their sentences, and how each is checked.

Rules that a program checks are the idea of IFEval (Zhou et al. 2023, arXiv:2311.07911); these were
written here.

A word is a run of letters and digits; an apostrophe or a hyphen between two of them belongs to it,
so that "moonlight", "moon's" and "full-moon" are not the word "moon". Only the rule `lowercase`
looks at the case of letters.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
CLOSING = "\"'\u201d\u2019)]*"
SENTENCE_END = re.compile(rf"[.!?]+[{re.escape(CLOSING)}]*(?=\s|$)")
BULLET = re.compile(r"\s*[-*\u2022]\s+\S")
COMMAS = frozenset(",\uff0c\u3001\u060c")


def words_of(text: str) -> list[str]:
    """Return the words of a text, case folded."""
    return [word.replace("\u2019", "'") for word in WORD.findall(text.casefold())]


def contains(text: str, rule: "Rule") -> bool:
    """Tell whether the text contains the word."""
    return rule.text in words_of(text)


def lacks(text: str, rule: "Rule") -> bool:
    """Tell whether the word does not stand in the text."""
    return not contains(text, rule)


def repeats(text: str, rule: "Rule") -> bool:
    """Tell whether the text contains the word `number` times or more."""
    return words_of(text).count(rule.text) >= rule.number


def has_number(text: str, rule: "Rule") -> bool:
    """Tell whether the text contains the number, in digits."""
    return str(rule.number) in words_of(text)


def starts(text: str, rule: "Rule") -> bool:
    """Tell whether the word is the first one."""
    return words_of(text)[:1] == [rule.text.casefold()]


def ends(text: str, rule: "Rule") -> bool:
    """Tell whether "the" and the word are the last words; punctuation may follow."""
    return words_of(text)[-2:] == ["the", rule.text]


def is_short(text: str, rule: "Rule") -> bool:
    """Tell whether the text has at most `number` words."""
    return len(words_of(text)) <= rule.number


def is_long(text: str, rule: "Rule") -> bool:
    """Tell whether the text has `number` words or more."""
    return len(words_of(text)) >= rule.number


def is_question(text: str, rule: "Rule") -> bool:
    """Tell whether the text ends with a question mark; quotes and brackets may close after it."""
    del rule
    return text.rstrip().rstrip(CLOSING).endswith("?")


def has_no_comma(text: str, rule: "Rule") -> bool:
    """Tell whether the text contains no comma of any script."""
    del rule
    return not COMMAS & set(text)


def is_lowercase(text: str, rule: "Rule") -> bool:
    """Tell whether no letter of the text is a capital."""
    del rule
    return not any(letter.isupper() or letter.istitle() for letter in text)


def has_sentences(text: str, rule: "Rule") -> bool:
    """Tell whether the text has `number` sentences; words after the last full stop are one."""
    rest = SENTENCE_END.split(text)
    return sum(bool(words_of(line)) for line in rest) == rule.number


def is_list(text: str, rule: "Rule") -> bool:
    """Tell whether the text is `number` lines that begin with a bullet, and nothing else."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) == rule.number and all(BULLET.match(line) for line in lines)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of rule.

    Attributes:
        says: the sentence of the prompt, with places for `text`, `number` and its `plural`.
        holds: tells whether an answer keeps a rule of this kind.
        texts: the words or phrases that rules of this kind are drawn from.
        numbers: likewise.
        demands: True where text that knows nothing of the rule fails it.
    """

    says: str
    holds: Callable[[str, "Rule"], bool]
    texts: tuple[str, ...] = ("",)
    numbers: tuple[int, ...] = (0,)
    demands: bool = True


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a prompt: its kind, and what fills the places of its sentence."""

    kind: str
    text: str = ""
    number: int = 0

    def __str__(self) -> str:
        """Return the sentence of the prompt."""
        plural = "" if self.number == 1 else "s"
        return KINDS[self.kind].says.format(text=self.text, number=self.number, plural=plural)

    def holds(self, answer: str) -> bool:
        """Tell whether an answer keeps the rule."""
        return KINDS[self.kind].holds(answer, self)


WORDS = ("light", "water", "heart", "friend", "music", "story", "family", "window", "garden",
         "winter", "morning", "river", "world", "summer", "time", "home")  # fmt: skip

KINDS: Mapping[str, Kind] = {
    "contain": Kind(says='Use the word "{text}".', holds=contains, texts=WORDS),
    "repeat": Kind(
        says='Use the word "{text}" at least {number} times.',
        holds=repeats,
        texts=WORDS,
        numbers=(2,),
    ),
    "number": Kind(says="Use the number {number}.", holds=has_number, numbers=(3, 5, 7, 10, 12)),
    "start": Kind(
        says='Start with the word "{text}".',
        holds=starts,
        texts=("Today", "Maybe", "Once", "Sometimes", "Imagine", "Yesterday", "Finally", "Here"),
    ),
    "end": Kind(says='End with the words "the {text}".', holds=ends, texts=WORDS),
    "question": Kind(says="Write a question.", holds=is_question),
    "sentences": Kind(
        says="Write {number} sentence{plural}.", holds=has_sentences, numbers=(1, 2), demands=False
    ),
    "long": Kind(says="Use at least {number} words.", holds=is_long, numbers=(15, 20)),
    "list": Kind(
        says='Write only a list of {number} lines that begin with "- ".',
        holds=is_list,
        numbers=(2, 3),
    ),
    "exclude": Kind(
        says='Do not use the word "{text}".',
        holds=lacks,
        texts=("and", "but", "very", "also"),
        demands=False,
    ),
    "short": Kind(
        says="Use at most {number} words.", holds=is_short, numbers=(20, 25, 30), demands=False
    ),
    "no_comma": Kind(says="Do not use commas.", holds=has_no_comma, demands=False),
    "lowercase": Kind(says="Use only lowercase letters.", holds=is_lowercase, demands=False),
}
"""The kinds of rule, by the name of their part of the reward."""

USUAL = tuple(kind for kind in KINDS if kind not in ("end", "list", "lowercase", "number"))
"""Kinds that a small chat model keeps now and then, so that it can learn them by trial."""
