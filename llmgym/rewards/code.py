"""`code.tests`: the share of its task's tests that a program passes, in a sandbox.

A program over its limits, or one that crashes, has failed: 0.0, valid. A test that cannot judge any
program is an error of its sample, never a 0.0. Tests are a column of the row:

| column                    | holds                                                              |
| ------------------------- | ------------------------------------------------------------------ |
| `test_list`, `tests`      | Python, one test each: `assert double(2) == 4`                     |
| `test` and `entry_point`  | Python that defines `check(candidate)`; the name of the function   |
| `input_output`, `tests`   | `{"inputs": [], "outputs": []}`, or a list of `{"input", "output"}` |
"""

import builtins
import json
import os
import re
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any, final

from llmgym.content import cell_of, has_column
from llmgym.errors import RewardError
from llmgym.messages import Sample, Score, Task
from llmgym.rewards.base import UnitReward
from llmgym.rewards.isolate import Isolated
from llmgym.rewards.rules import expected_answer
from llmgym.rewards.sandbox import (
    BrokenTestError,
    Limits,
    ProgramError,
    ProgramLateError,
    Sandbox,
    Tier,
    TierSetting,
    tier_of,
)
from llmgym.rewards.sandbox_main import remove
from llmgym.rewards.verdict import row_of, shown

COLUMNS = ("tests", "test_list", "test", "test_cases", "input_output")
"""Where tests are looked for, in this order, and at last in the answer."""
FENCE = re.compile(r"```[ \t]*(?P<language>\w*)[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)
PYTHON = ("", "python", "py", "python3")
SCRIPT_BUDGET = 4.0
"""Times a program's seconds: what all inputs of a script may take together."""
MAX_WORKERS = 8


def program_of(response: str) -> str:
    """Return the program of a response: its last fenced block of Python, else all of it."""
    blocks = [block["code"] for block in FENCE.finditer(response)
              if block["language"].lower() in PYTHON]  # fmt: skip
    return blocks[-1] if blocks else response


@final
@dataclass(frozen=True, slots=True)
class TaskTests:
    """The tests of a task: Python, or inputs with the outputs that are expected.

    Attributes:
        code: each a piece of Python, compiled.
        pairs: input and expected output.
    """

    code: tuple[CodeType, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.code) + len(self.pairs)


def read_tests(task: Task, column: str | None = None) -> TaskTests:
    """Return the tests of a task.

    Raises:
        RewardError: it has none, or what is no test; names the row.
    """
    value = _cell(task, column)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):  # else it is Python that begins with a list
            value = json.loads(value)
    pairs = _pairs(value)
    if pairs:
        return TaskTests(pairs=pairs)
    pieces = [value] if isinstance(value, str) else value
    is_code = isinstance(pieces, Sequence) and all(isinstance(piece, str) for piece in pieces)
    if not is_code or not any(piece.strip() for piece in pieces):
        raise RewardError(
            f"{row_of(task)} has no tests: {shown(value)}. They are a list of Python texts with "
            "assert, or of inputs and outputs"
        )
    code = [_with_call(piece, task) for piece in pieces if piece.strip()]
    try:
        return TaskTests(code=tuple(compile(piece, "<test>", "exec") for piece in code))
    except (SyntaxError, ValueError) as error:
        raise RewardError(f"a test of {row_of(task)} is no Python: {error}") from error


@final
class CodeTests(UnitReward):
    """The share of tests that a program passes, run in this process; see `code_tests`.

    Args:
        column: of the tests; None looks at the usual ones.
        tier: what keeps a program apart.
        limits: what a program may use.
        all_or_nothing: 1.0 only where every test passes.
        folder: in which programs get folders; None for that of temporary files.
    """

    name = "code.tests"

    def __init__(
        self,
        column: str | None,
        tier: Tier,
        limits: Limits,
        *,
        all_or_nothing: bool = False,
        folder: str | None = None,
    ) -> None:
        self.folder = folder
        self.column = column
        self.tier: Tier = tier
        self.limits = limits
        self.all_or_nothing = all_or_nothing

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Raise `RewardError` for the first task without tests, or with what is no test."""
        for task in tasks:
            read_tests(task, self.column)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Run the program of each sample and its tests."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> Score:
        tests, program = read_tests(sample.task, self.column), program_of(sample.text)
        passed = self._called(tests, program) if tests.code else self._printed(tests, program)
        share = passed / tests.count
        value = float(share == 1.0) if self.all_or_nothing else share
        return Score(value, {"tests_passed": share, "all_passed": float(share == 1.0)})

    def _called(self, tests: TaskTests, program: str) -> int:
        """Return how many tests of functions pass."""
        with Sandbox(self.tier, self.limits, folder=self.folder) as sandbox:
            try:
                sandbox.run(program)
                return sum(_passes(code, sandbox) for code in tests.code)
            except ProgramError:  # it did not load, or used up its time, on whichever test
                return 0

    def _printed(self, tests: TaskTests, program: str) -> int:
        """Return how many inputs of a script give their output."""
        ends, passed = time.monotonic() + SCRIPT_BUDGET * self.limits.seconds, 0
        for text, expected in tests.pairs:
            left = ends - time.monotonic()
            if left <= 0:
                break
            limits = replace(self.limits, seconds=min(left, self.limits.seconds))
            try:
                with Sandbox(self.tier, limits, is_script=True, folder=self.folder) as sandbox:
                    passed += _lines(sandbox.print_of(program, text)) == _lines(expected)
            except ProgramError:
                continue
        return passed


def code_tests(
    column: str | None = None,
    *,
    tier: TierSetting = "auto",
    seconds: float = 6.0,
    memory_gb: float = 1.0,
    all_or_nothing: bool = False,
    workers: int | None = None,
) -> Isolated:
    """Return the reward "code.tests": programs and their tests in processes that can be killed.

    Args:
        column: of the tests; None looks at `tests`, `test_list`, `test`, `test_cases`,
            `input_output` and the answer.
        tier: "process", "namespaces", or "auto" for the second where it is available.
        seconds: a program and its tests may take; a script, for each input.
        memory_gb: of address space, in GiB.
        all_or_nothing: 1.0 only where every test passes; else the share that does.
        workers: programs at a time; None for one per core, up to 8.

    Raises:
        RewardError: a limit is out of range, or the tier is not available.
    """
    limits = Limits(seconds=seconds, memory_gb=memory_gb)
    chosen = tier_of(tier)
    folder = tempfile.mkdtemp(prefix="llmgym-programs-")
    os.chmod(folder, 0o711)  # the programs of root are another user's
    reward = CodeTests(column, chosen, limits, all_or_nothing=all_or_nothing, folder=folder)
    count = workers or min(MAX_WORKERS, os.cpu_count() or 1)
    # A test that hangs by itself is late here, long after any program would be.
    isolated = Isolated(reward, count, timeout=(SCRIPT_BUDGET + 1.0) * seconds + 30.0)
    weakref.finalize(isolated, remove, folder)
    return isolated


def _cell(task: Task, column: str | None) -> Any:  # noqa: ANN401 - any column's value
    for name in COLUMNS if column is None else (column,):
        if has_column(task.meta, name):
            value = cell_of(task.meta, name)
            if value is not None:
                return value
    value = expected_answer(task) if column is None else None
    if value is None:
        where = f'column "{column}"' if column else f"column of tests ({', '.join(COLUMNS)})"
        raise RewardError(f"{row_of(task)} has no {where}")
    return value


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401 - any column's value
    """Return inputs with outputs, where a value is these."""
    if isinstance(value, Mapping) and {"inputs", "outputs"} <= value.keys():
        inputs, outputs = value["inputs"], value["outputs"]
        if len(inputs) == len(outputs):
            return tuple(zip(map(_as_text, inputs), map(_as_text, outputs), strict=True))
    rows = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if all(isinstance(row, Mapping) and {"input", "output"} <= row.keys() for row in rows):
        return tuple((_as_text(row["input"]), _as_text(row["output"])) for row in rows)
    return ()


def _as_text(value: Any) -> str:  # noqa: ANN401 - text, or lines of it
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value))
    return str(value)


def _with_call(piece: str, task: Task) -> str:
    """Return a test; one that only defines `check(candidate)` is called."""
    entry = task.meta.get("entry_point")
    if isinstance(entry, str) and entry.isidentifier() and "def check(" in piece:
        return f"{piece}\ncheck({entry})\n"
    return piece


def _passes(code: CodeType, sandbox: Sandbox) -> bool:
    """Return whether a test passes; its own names, and else the program's, are what it calls.

    Raises:
        ProgramLateError: the program used up its time.
        BrokenTestError: the test fails before the program has answered it.
    """
    names: dict[str, Any] = {name: sandbox.value(name) for name in _names(code)}
    before = sandbox.num_answers
    try:
        exec(code, {"__name__": "test", **names})  # of the row's author, as any reward is
    except ProgramLateError:
        raise
    except (AssertionError, ProgramError):
        return False
    except BrokenTestError:
        raise
    except Exception as error:
        if sandbox.num_answers > before:  # it was given what it did not expect
            return False
        raise BrokenTestError(f"a test raised {type(error).__name__}: {error}") from error
    return True


def _names(code: CodeType) -> set[str]:
    """Return the names that a test uses, itself and in what it defines, without Python's own."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return {name for name in names if name not in vars(builtins)}


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
