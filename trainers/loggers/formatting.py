"""Figures and text made to fit a line of 80 columns. Pure, no torch."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.batch import Evaluation

LINE_WIDTH = 80
ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
# What a row of samples says besides the parts of its reward, each under its own name.
ROW_KEYS = frozenset({
    "step", "attempt", "env", "prompt", "completion", "reward", "kl", "length", "finish_reason",
    "stop_reason", "score_ms", "advantage", "policy_version",
})  # fmt: skip


def visible(text: str) -> str:
    """Return text on one line, control characters and escape sequences taken out."""
    one_line = re.sub(r"[\r\n\t]+", " ", ESCAPE.sub("", text))
    return "".join(character for character in one_line if unicodedata.category(character)[0] != "C")


def escaped(text: str) -> str:
    """Return text with its control characters spelled out; lines and tabs stay."""
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cf", "Cs")
        else character
        for character in text
    )


def printable(text: str) -> str:
    """Return text with a mark for each character that no page can show."""
    return "".join(
        character
        if character in "\n\t"
        or (character.isprintable() and not 0xD800 <= ord(character) < 0xE000)
        else "\ufffd"
        for character in text
    )


def cut(text: str, width: int) -> str:
    """Return one line of at most `width` characters, its middle left out where it is longer."""
    line = visible(text)
    if len(line) <= width:
        return line
    head = (width - 3) // 2
    return f"{line[:head]}...{line[len(line) - (width - 3 - head) :]}"


def answer(text: str) -> str:
    """Return an answer as it is; one that would not be seen, of blanks or nothing, in quotes."""
    return text if visible(text).strip() else repr(text)


def short_number(value: float) -> str:
    """Return a figure with three digits that matter: 0.412, 3.1, 1.9k."""
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}"


def rounded_number(value: float) -> str:
    """Return a figure with three digits that matter, thousands in full."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def short_duration(seconds: float) -> str:
    """Return a time as 42s, 1m10s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def sparkline(values: Sequence[float], width: int = 8) -> str:
    """Return the course of a figure as blocks, the latest `width` values from low to high."""
    kept = list(values)[-width:]
    if len(kept) < 2:
        return ""
    low, high = min(kept), max(kept)
    span = high - low or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in kept)


def mean_and_interval(evaluation: "Evaluation") -> str:
    """Return a mean with its interval, 0.31 [0.27, 0.35]; without where nothing spreads."""
    if math.isnan(evaluation.ci_low):
        return f"{evaluation.mean:.3g} (all equal)"
    return f"{evaluation.mean:.3g} [{evaluation.ci_low:.3g}, {evaluation.ci_high:.3g}]"


def parts_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the named parts of a row's reward."""
    figures = {key: value for key, value in row.items() if key not in ROW_KEYS}
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def sample_lines(row: Mapping[str, Any], width: int = LINE_WIDTH) -> list[str]:
    """Return a sampled response as two or three lines: prompt, completion, reward with parts."""
    reward, parts = row.get("reward"), parts_of(row)
    reward_text = (
        f"reward {short_number(reward)}" if isinstance(reward, int | float) else "reward failed"
    )
    if len(parts) > 1:
        named = (f"{name} {short_number(value)}" for name, value in parts.items())
        reward_text += f" ({', '.join(named)})"
    return [
        f"  prompt   {cut(str(row.get('prompt', '')), width - 11)}",
        f"  answer   {cut(answer(str(row.get('completion', ''))), width - 11)}",
        f"           {cut(reward_text, width - 11)}",
    ]
