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
PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")
STRAIGHT = {0x201C: '"', 0x201D: '"'}
"""Typographic double quotes, as straight ones."""
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


def exclaims(text: str, rule: "Rule") -> bool:
    """Tell whether the text has `number` exclamation marks or more."""
    return text.count("!") >= rule.number


def has_paragraphs(text: str, rule: "Rule") -> bool:
    """Tell whether the text has `number` paragraphs with an empty line between two of them."""
    return sum(bool(words_of(part)) for part in PARAGRAPH_END.split(text)) == rule.number


def is_quoted(text: str, rule: "Rule") -> bool:
    """Tell whether the text is in double quotes, with no other one inside."""
    del rule
    inside = text.strip().translate(STRAIGHT)
    return len(inside) > 1 and inside[0] == inside[-1] == '"' and inside.count('"') == 2


def has_postscript(text: str, rule: "Rule") -> bool:
    """Tell whether the last line begins with "P.S." and says something."""
    del rule
    last = (text.strip().splitlines() or [""])[-1]
    return last.startswith("P.S.") and bool(words_of(last.removeprefix("P.S.")))


def has_capitals(text: str, rule: "Rule") -> bool:
    """Tell whether `number` words or more, of two letters or more, are in capitals."""
    words = (word for word in WORD.findall(text) if len(word) > 1)
    return sum(word.isupper() for word in words) >= rule.number


def has_title(text: str, rule: "Rule") -> bool:
    """Tell whether the first line is a title in double angle brackets, and text follows."""
    del rule
    first, _, rest = text.strip().partition("\n")
    title = first.strip()
    is_title = title.startswith("<<") and title.endswith(">>") and bool(words_of(title[2:-2]))
    return is_title and bool(words_of(rest))


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
    "exclaim": Kind(
        says="Use at least {number} exclamation marks.", holds=exclaims, numbers=(2, 3)
    ),
    "paragraphs": Kind(
        says="Write {number} paragraphs with an empty line between them.",
        holds=has_paragraphs,
        numbers=(2, 3),
    ),
    "quote": Kind(says="Put all of it in double quotes.", holds=is_quoted),
    "postscript": Kind(says='End with a line that begins with "P.S."', holds=has_postscript),
    "capitals": Kind(
        says="Write at least {number} words in capitals.", holds=has_capitals, numbers=(2, 3)
    ),
    "title": Kind(
        says="Begin with a title in double angle brackets, as <<title>>.", holds=has_title
    ),
}
"""The kinds of rule, by the name of their part of the reward."""

RARE = (
    "end",
    "list",
    "lowercase",
    "number",
    "exclaim",
    "paragraphs",
    "quote",
    "postscript",
    "capitals",
    "title",
)
USUAL = tuple(kind for kind in KINDS if kind not in RARE)
"""Kinds that a small chat model keeps now and then, so that it can learn them by trial."""
