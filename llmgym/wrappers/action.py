"""Wrappers of what the environment reads of a response; they override the `advance` half.

The environment reads the shorter text, which becomes `Sample.text`. `Sample.response` and the
dialogue keep what the policy wrote.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from llmgym.env import LLMWrapper, Observation
from llmgym.errors import EnvContractError
from llmgym.messages import Sample
from llmgym.step import Reading


class ReadAction(LLMWrapper, ABC):
    """A wrapper that shortens what the environment reads."""

    @abstractmethod
    def read(self, text: str) -> str:
        """Return what the environment shall read of a response."""

    @final
    def advance(self, action: str) -> tuple[Observation, bool, bool, Sample]:
        """Play the reading of a response."""
        return self.inner.advance(Reading.of(action, self.read(action)))


@final
class StripThink(ReadAction, RecordConstructorArgs):
    """Read a response without its thinking.

    A block that was not closed hides the rest. A closing mark alone hides what stands before it:
    then the prompt's template opened the block.

    Args:
        env: what is wrapped.
        start: the mark that opens a block.
        end: the mark that closes it.
    """

    def __init__(self, env: gymnasium.Env, start: str = "<think>", end: str = "</think>") -> None:
        if not start or not end:
            raise EnvContractError("StripThink needs two marks that are not empty")
        RecordConstructorArgs.__init__(self, start=start, end=end)
        super().__init__(env)
        self.start, self.end = start, end

    def read(self, text: str) -> str:
        """Return the text outside of the blocks, without space around it."""
        kept, position = [], 0
        while (start := text.find(self.start, position)) >= 0:
            kept.append(text[position:start])
            end = text.find(self.end, start)
            position = len(text) if end < 0 else end + len(self.end)
        kept.append(text[position:])
        return "".join(kept).rpartition(self.end)[2].strip()


@final
class ExtractAnswer(ReadAction, RecordConstructorArgs):
    """Read the last match of a pattern; nothing where there is none.

    Args:
        env: what is wrapped.
        pattern: a regular expression; its first group is the answer, or all of it without a group.
    """

    def __init__(self, env: gymnasium.Env, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            message = f"ExtractAnswer needs a regular expression; {pattern!r} is none: {error}"
            raise EnvContractError(message) from error
        RecordConstructorArgs.__init__(self, pattern=pattern)
        super().__init__(env)

    def read(self, text: str) -> str:
        """Return the answer of the last match, or the empty string."""
        answer = ""
        for match in self.pattern.finditer(text):
            answer = match[1 if self.pattern.groups else 0] or ""
        return answer


@final
class StopAt(ReadAction, RecordConstructorArgs):
    """Read a response up to the first of some strings.

    Args:
        env: what is wrapped.
        strings: where reading stops; the string itself is not read.
    """

    def __init__(self, env: gymnasium.Env, strings: Sequence[str]) -> None:
        if isinstance(strings, str) or not all(strings):
            raise EnvContractError(f"StopAt takes a list of strings, none empty; got {strings!r}")
        RecordConstructorArgs.__init__(self, strings=strings)
        super().__init__(env)
        self.strings = tuple(strings)

    def read(self, text: str) -> str:
        """Return the text before the first of the strings."""
        positions = [position for string in self.strings if (position := text.find(string)) >= 0]
        return text[: min(positions, default=len(text))]
