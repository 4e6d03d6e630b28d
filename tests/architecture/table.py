"""Prints what the tree is made of: rooms, floors, arrows, loose files, lines, functions, words.

    .venv/bin/python -m tests.architecture.table [COMMIT ...]

The tree itself is the last column; each commit before it is read by git.
"""

import io
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.architecture import imports
from tests.architecture.source import ALL, PACKAGES, ROOT, found, functions, module, name, nodes
from tests.architecture.words import FORMER_WORDS, words_of

LOOSE = ("__init__", "errors", "batch", "learner", "ppo")
"""Files of trainers/ beside its rooms that belong there."""


def measure(root: Path, own_rules: bool) -> dict[str, str]:
    """Return the figures of a tree by name; `own_rules` is False for one with other floors."""
    files = found(root, *PACKAGES)
    rooms = {path.parent for path in found(root, "trainers")} - {root / "trainers"}
    loose = [path.stem for path in (root / "trainers").glob("*.py") if path.stem not in LOOSE]
    lengths = sorted(
        (one.end_lineno or 0) - one.lineno + 1 for path in files for one in functions(path)
    )
    lines = {path: path.read_text("utf-8").count("\n") for path in found(root, *ALL)}
    verbs = ("trainers/cli/", "trainers/plan/", "trainers/report/")
    return {
        "rooms of trainers": str(len(rooms)),
        "floors": str(len(imports.FLOORS)) if own_rules else "-",
        "imports upward": str(len(imports.imports_point_down(root))) if own_rules else "-",
        "import cycles": str(len(imports.no_import_cycle(root))),
        "loose files in trainers": str(len(loose)),
        "lines of llmgym and trainers": str(sum(lines[path] for path in files)),
        "lines of cli, plan and report": str(
            sum(lines[path] for path in files if name(root, path).startswith(verbs))
        ),
        "longest file": str(max(lines.values())),
        "functions p50 / p90 / max": " / ".join(
            str(int(value))
            for value in (
                statistics.median(lengths),
                statistics.quantiles(lengths, n=10)[-1],
                lengths[-1],
            )
        ),
        "former words in names": str(
            sum(len(words_of(nodes(path)) & FORMER_WORDS) for path in found(root, "trainers"))
        ),
        "modules": str(len({module(root, path) for path in files})),
    }


def tree_of(commit: str, folder: Path) -> Path:
    """Return a folder with the files of a commit."""
    archive = subprocess.run(
        ["git", "archive", commit, *ALL], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as stream:
        stream.extractall(folder, filter="data")
    return folder


def main(commits: list[str]) -> None:
    """Print the table."""
    columns: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as place:
        for commit in commits:
            root = tree_of(commit, Path(place) / re.sub(r"\W", "_", commit))
            columns[commit] = measure(root, own_rules=False)
    columns["now"] = measure(ROOT, own_rules=True)
    print(f"| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for row in columns["now"]:
        print(f"| {row} | {' | '.join(column[row] for column in columns.values())} |")


if __name__ == "__main__":
    main(sys.argv[1:])
