"""Lines that a process prints, made safe for a terminal and a log."""

from typing import final

MAX_LINE = 1_000
"""Characters of one line that are passed on."""


def escaped(line: str) -> str:
    """Return a line without control characters, its end left out where it is long."""
    cut = line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..."
    return "".join(
        character
        if character.isprintable() or character == "\t"
        else character.encode("unicode_escape").decode()
        for character in cut.removesuffix("\r")
    )


@final
class Lines:
    """Makes escaped lines of chunks of output, up to a number of characters.

    Args:
        limit: characters that are passed on; the rest is left out, and one line says so.
        whose: what printed it, for that line.
    """

    def __init__(self, limit: int, whose: str) -> None:
        self._limit, self._left, self._whose = limit, limit, whose
        self._line = ""

    def refill(self) -> None:
        """Allow the full number of characters again."""
        self._left = self._limit

    def of(self, text: str) -> list[str]:
        """Return the lines that are complete with more text."""
        *lines, self._line = (self._line + text).split("\n")
        if len(self._line) > MAX_LINE:
            lines, self._line = [*lines, self._line], ""
        passed = []
        for line in lines:
            shown = escaped(line)
            if self._left > 0:
                self._left -= len(shown) + 1
                more = "" if self._left > 0 else f" ({self._whose}'s further output is left out)"
                passed.append(f"{shown}{more}")
        return passed

    def rest(self) -> list[str]:
        """Return what is left of a line that has no end."""
        return self.of("\n") if self._line else []
