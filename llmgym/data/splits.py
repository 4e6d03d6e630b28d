"""Which rows of a file are trained on and which are held out, when only one path is given.

| given                                          | train             | test               |
| ---------------------------------------------- | ----------------- | ------------------ |
| a folder                                       | its `train.*`     | its `test.*`       |
| a file named `...train...` beside `...test...` | that file         | the file beside it |
| a file with the word "test" in its name        | nine tenths of it | all of it          |
| any other file, a lone `train.*` included      | nine tenths of it | the other tenth    |

The tenth is chosen by the content of the prompts, so equal prompts are never on both sides. The
split "all" is every row of a file.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar
from zlib import crc32

from llmgym.data.files import READERS
from llmgym.data.rows import Columns
from llmgym.data.tasks import TaskList, from_file
from llmgym.errors import TaskSourceError

Split = Literal["train", "test", "all"]
HELD_OUT_ONE_IN = 10
HELD_OUT_KEYS_ONE_IN = 5
"""Of tasks that are drawn, one key in this many is held out."""
MAX_DRAWS = 1000
Drawn = TypeVar("Drawn")
# The word, not its letters: "latest" is no test set.
NAMED_TEST = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)


def read_split(path: str | Path, split: Split, columns: Columns) -> TaskList:
    """Read the tasks of one split, by the table above.

    Raises:
        TaskSourceError: no such split, file or column, or too few rows to hold one out.
    """
    check_split(split)
    path = Path(path)
    if path.is_dir():
        return from_file(_in_folder(path, split), columns)
    beside = path.with_name(path.name.replace("train", "test"))
    is_pair = beside != path and beside.is_file()
    if split == "test" and is_pair:
        return from_file(beside, columns)
    tasks = from_file(path, columns)
    if split == "all" or is_pair or (split == "test" and NAMED_TEST.search(path.stem)):
        return tasks
    chosen = _part(tasks, split)
    if not len(chosen):
        raise TaskSourceError(
            f"{path} has one prompt, so none can be held out as the split test.\nGive more rows, "
            'or another file to evaluate on: --eval.kwargs \'{"path": FILE, "split": "all"}\''
        )
    return chosen


def check_split(split: str) -> None:
    """Raise `TaskSourceError` where a split has no such name."""
    if split not in ("train", "test", "all"):
        raise TaskSourceError(f'split must be "train", "test" or "all", got {split!r}')


def split_of_key(key: str) -> Split:
    """Return the split of a drawn task, by the hash of what must not be on both sides."""
    return "test" if crc32(key.encode()) % HELD_OUT_KEYS_ONE_IN == 0 else "train"


def draw_of_split(split: Split, draw: Callable[[], tuple[str, Drawn]]) -> Drawn:
    """Draw until a key belongs to a split: five times on average for the held-out one.

    Args:
        split: the split; "all" takes the first draw.
        draw: returns a key and what it is the key of.

    Raises:
        TaskSourceError: no draw of many belongs to the split.
    """
    for _ in range(MAX_DRAWS):
        key, drawn = draw()
        if split in ("all", split_of_key(key)):
            return drawn
    raise TaskSourceError(
        f"none of {MAX_DRAWS} drawn tasks belongs to the split {split}: these settings leave too "
        "few different tasks. Use a higher level"
    )


def check_level(level: int, levels: range, name: str = "level") -> None:
    """Raise `TaskSourceError` where an environment has no tasks of a level."""
    if level not in levels:
        raise TaskSourceError(f"{name} must be in [{levels[0]}, {levels[-1]}], got {level}")


def _in_folder(folder: Path, split: Split) -> Path:
    files = [folder / f"{split}{suffix}" for suffix in READERS]
    there = [path for path in files if path.is_file()]
    if not there:
        names = ", ".join(path.name for path in files)
        raise TaskSourceError(f"the folder {folder} has no file for the split {split}: {names}")
    return there[0]


@lru_cache(maxsize=64)
def _part(tasks: TaskList, split: Split) -> TaskList:
    ids = sorted({task.id for task in tasks.tasks})
    held_out = set(ids[: max(len(ids) // HELD_OUT_ONE_IN, min(1, len(ids) - 1))])
    mine = (task for task in tasks.tasks if (task.id in held_out) == (split == "test"))
    return TaskList(tuple(mine), tasks.read_as)
