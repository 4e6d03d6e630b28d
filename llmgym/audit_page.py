"""Audits in words: lines for a terminal, and a page of Markdown with a table."""

import sys
from collections.abc import Sequence

import gymnasium
import numpy as np

from llmgym.audit import KINDS, Audit

COLUMNS = {
    "id": "of the environment",
    "gold": "share of tasks on which the environment's own solutions earn the most it promises",
    "empty": "mean reward of no text: more than the floor is wrong",
    "prose": "mean reward of an unrelated sentence: more than the floor is wrong",
    "echo": "mean reward of the last message, repeated",
    "wrong label": "mean reward of the bare answer of another task that has another answer",
    "another's gold": "mean reward of the full solution of such a task",
    "raises": "share of all these answers on which it raises, or its reward fails",
    "overlap": "tasks of the first 500 of each split that are in both, by id and by prompt (the "
    "prompts of a game, which are alike, are not held against it)",
    "touches": "what an episode changes of the process: shared random generators, variables, the "
    "current folder, signal handlers",
    "slots": "whether an episode is the same while another one is played",
    "reset ms": "median of a reset",
    "step ms": "median of an episode of its own solutions, with the scores",
    "crash": "whether the end of one slot's process costs that slot only",
    "wrong": "how many of these do not hold; they are listed below the table",
}
"""Columns of the table, and what they mean."""


def lines_of(audit: Audit) -> list[str]:
    """Return an audit in lines for a terminal."""
    cells = dict(zip(COLUMNS, _cells(audit), strict=True))
    figures = ", ".join(f"{name} {cells[name]}" for name in list(COLUMNS)[1:-1])
    result = f"{len(audit.faults)} wrong" if audit.faults else "ok"
    return [f"{audit.id}: {result}", f"  {figures}", *(f"  - {line}" for line in audit.faults)]


def page(audits: Sequence[Audit], command: str) -> str:
    """Return audits as a page of Markdown: how to read it, a table, and what is wrong."""
    python = ".".join(map(str, sys.version_info[:3]))
    versions = f"Python {python}, gymnasium {gymnasium.__version__}, numpy {np.__version__}"
    return "\n".join(
        [
            "# Audits of environments",
            "",
            "Written by one command, which plays each environment; it takes any id of yours too.",
            "",
            f"```bash\n{command}\n```",
            "",
            f"{versions}. Milliseconds move with the load of the machine.",
            "For wrong answers (echo, wrong label, another's gold), half of the way from the floor "
            "to the top is wrong; less is credit for parts.",
            "",
            "| column | means |",
            "| --- | --- |",
            *(f"| {name} | {meaning} |" for name, meaning in COLUMNS.items()),
            "",
            "## The table",
            "",
            table(audits),
        ]
    )


def table(audits: Sequence[Audit]) -> str:
    """Return audits as a Markdown table, one row each, and the faults below."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(_cells(audit))} |" for audit in audits]
    faults = [f"- `{audit.id}`: {fault}" for audit in audits for fault in audit.faults]
    return "\n".join([*lines, "", "## What is wrong", "", *(faults or ["Nothing."]), ""])


def _cells(audit: Audit) -> list[str]:
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    return [
        f"`{audit.id}`",
        "-" if audit.gold is None else f"{audit.gold:.0%}",
        *(figure(audit.earns.get(kind)) for kind in KINDS),
        f"{audit.raises:.1%}",
        "-" if audit.overlap is None else f"{audit.overlap[0]} / {audit.overlap[1]}",
        ", ".join(audit.touches) or "nothing",
        "apart" if audit.slots else "disturb",
        f"{audit.reset_ms:.2g}",
        f"{audit.step_ms:.2g}",
        "survives" if audit.survives else "spreads",
        str(len(audit.faults)),
    ]
