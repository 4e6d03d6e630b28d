"""Chat templates of strangers: which tokens control them, which day they print, whether they end.

What a message says is text. A tokenizer reads text that spells one of its added tokens as that
token, so whoever renders messages of users and policies keeps those apart with `control_tokens`.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from types import FrameType
from typing import Any, Protocol

from llmgym.errors import LLMGymError

ROLES = ("system", "developer", "user", "assistant", "tool")
PAIRED = re.compile(r"<(/?)([\w-]+)>")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Tokens of bytes, by which a tokenizer spells what it has no piece for: text, not control."""

LIMIT_SECONDS = 10.0
"""Time that a template may take for a dialogue of two messages; it needs about a millisecond."""

DIRECTIVES = (
    *("%-d", "%-m", "%-j", "%e"),
    *(f"%{letter}" for letter in "aAbBcdDFGHIjmMpSuUVwWxXyYZ"),
)


class EndlessTemplateError(LLMGymError):
    """A chat template did not end in time."""


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    chat_template: Any
    all_special_tokens: Any
    added_tokens_decoder: Any


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """The tokens that control a tokenizer's template, as text.

    Attributes:
        every: those that no message may write, the longest first.
        written: those of them that an assistant writes by itself, such as `<think>`.
    """

    every: tuple[str, ...]
    written: frozenset[str]
    _anywhere: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _answer: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the patterns that find them."""
        object.__setattr__(self, "_anywhere", _any_of(self.every))
        kept = tuple(token for token in self.every if token not in self.written)
        object.__setattr__(self, "_answer", _any_of(kept))

    def spelled(self, role: object) -> re.Pattern[str]:
        """Return what finds the tokens that a message of `role` must not write."""
        return self._answer if role == "assistant" else self._anywhere


@lru_cache(maxsize=16)
def _read(source: str, special: frozenset[str], added: frozenset[str]) -> ControlTokens:
    used = {token for token in added if token.strip() and _is_used(token, source)}
    every = sorted(special | used, key=lambda token: (-len(token), token))
    written = frozenset(token for token in used - special if _partner(token) in added)
    return ControlTokens(tuple(every), written)


def control_tokens(tokenizer: Tokenizer) -> ControlTokens:
    """Return the special tokens, named or not, and the other added ones that the template uses.

    A template uses what stands in its source, as a whole or as a role between two pieces
    (`'<|' + role + '|>'`). Added tokens of white space are text.
    """
    held: Mapping[int, Any] = tokenizer.added_tokens_decoder
    special = {token.content for token in held.values() if token.special}
    special = {token for token in special if not BYTE.fullmatch(token)}
    return _read(
        template_source(tokenizer),
        frozenset(filter(None, special | set(tokenizer.all_special_tokens))),
        frozenset(token.content for token in held.values()),
    )


def template_source(tokenizer: Tokenizer) -> str:
    """Return the source of a tokenizer's templates; empty without one."""
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, Mapping) else template or ""


def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _is_used(token: str, source: str) -> bool:
    if token in source:
        return True
    spellings = (role for name in ROLES for role in (name, name.title(), name.upper()))
    parts = [token.partition(role) for role in spellings if role in token]
    return any(before in source and after in source for before, _, after in parts)


def _partner(token: str) -> str:
    """Return `</x>` of `<x>` and the other way round; empty where a token is neither."""
    match = PAIRED.fullmatch(token)
    return f"<{'' if match[1] else '/'}{match[2]}>" if match else ""


def prints_day(tokenizer: Tokenizer) -> bool:
    """Tell whether a tokenizer's template prints the day on which it is rendered."""
    return "strftime_now" in template_source(tokenizer)


def dated(tokenizer: Tokenizer, day: date | None) -> str | None:
    """Return the source of the template that prints `day`, at midnight, instead of today.

    None stands for the tokenizer's own: it prints no day, or `day` is None.
    """
    template = tokenizer.chat_template
    if day is None or not isinstance(template, str) or not prints_day(tokenizer):
        return None
    steps = "".join(
        f".replace({directive!r}, {day.strftime(directive)!r})" for directive in DIRECTIVES
    )
    macro = "{% macro strftime_now(form) %}{{ form" + steps + " }}{% endmacro %}"
    # The empty expression keeps Jinja from taking a line break at the start of the template.
    return f"{macro}{{{{ '' }}}}{template}"


@contextmanager
def bounded(seconds: float | None = None) -> Iterator[None]:
    """Stop a template that is rendered inside after `seconds`; None: `LIMIT_SECONDS`.

    It is looked at whenever one of its lines runs, in this thread.

    Raises:
        EndlessTemplateError: the time is over.
    """
    limit = LIMIT_SECONDS if seconds is None else seconds
    end = time.monotonic() + limit

    def watched(frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401 - itself
        if frame.f_code.co_filename != "<template>":
            return None
        if time.monotonic() > end:
            raise EndlessTemplateError(
                f"the chat template took more than {limit:g} seconds for a dialogue of two messages"
            )
        return watched

    before = sys.gettrace()
    sys.settrace(watched)
    try:
        yield
    finally:
        sys.settrace(before)


def with_known_roles(
    messages: Sequence[Mapping[str, Any]], template: object
) -> list[dict[str, Any]]:
    """Return messages for a template: `developer` is `system` where it does not name that role.

    Many templates leave out a message whose role they do not name, without an error.
    """
    renamed = {} if "developer" in str(template) else {"developer": "system"}
    return [
        {**message, "role": renamed.get(message["role"], message["role"])} for message in messages
    ]
