"""A program of a policy in a process with limits; tests call what it defines from outside.

The tests run where the program does not, and only plain data comes back: a program never sees what
is expected of it, and has no verdict that it could write. Two tiers: `process` limits time, memory,
files and processes; `namespaces` (Linux) also leaves it no network, no signals to other processes,
and a folder in memory. This stops accidents, not attackers.
"""

import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, final

from llmgym.errors import RewardError
from llmgym.rewards.sandbox_main import decoded, remove

logger = logging.getLogger("llmgym.rewards")

Tier = Literal["process", "namespaces"]
TierSetting = Literal["auto", "process", "namespaces"]
PROGRAM = Path(__file__).with_name("sandbox_main.py")
MAX_ANSWER = 2**20
"""Bytes of one answer, and of what a script prints."""
START_SECONDS = 20.0
"""What a process may take to start, besides its program's time."""
ABSENT = 120
"""Exit code of a sandbox that could not enter its namespaces."""


class ProgramError(Exception):
    """Raised where a program raises, is late, ends or says what nobody can read: its own fault."""


class ProgramLateError(ProgramError):
    """Raised where a program has used up its time."""


class BrokenTestError(Exception):
    """Raised where a test cannot judge any program: the fault of who wrote it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time, for the program and all its tests.
        memory_gb: of address space of a process, in GiB.
        processes: and threads, at a time.
        file_mb: of one file, in MiB; with namespaces of all its files.
        open_files: at a time.
    """

    seconds: float = 6.0
    memory_gb: float = 1.0
    processes: int = 32
    file_mb: int = 16
    open_files: int = 64

    def __post_init__(self) -> None:
        """Refuse limits that leave nothing."""
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise RewardError(f"the limit {name} of a program must be above 0, got {value!r}")


@final
class Sandbox:
    """One program in one process, started with the context, ended with it.

    Args:
        tier: what keeps it apart.
        limits: what it may use.
        is_script: True for a program that reads an input and prints, False for one whose functions
            are called.
        folder: in which it gets a folder of its own; None for that of temporary files.

    Attributes:
        num_answers: requests that the program has answered without an error.
    """

    def __init__(
        self, tier: Tier, limits: Limits, *, is_script: bool = False, folder: str | None = None
    ) -> None:
        self._parent = folder
        self._tier, self._limits, self._is_script = tier, limits, is_script
        self._received = b""
        self.num_answers = 0

    def __enter__(self) -> Self:
        """Start the process."""
        self._folder = tempfile.mkdtemp(prefix="llmgym-program-", dir=self._parent)
        os.chmod(self._folder, 0o777)
        request_end, self._requests = os.pipe()
        self._answers, answer_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(request_end, answer_end),
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": self._folder,
                 "TMPDIR": self._folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            cwd="/",
            start_new_session=True,
        )  # fmt: skip
        os.close(request_end)
        os.close(answer_end)
        settings = {
            "namespaces": self._tier == "namespaces",
            "script": self._is_script,
            "folder": self._folder,
            "requests": request_end,
            "answers": answer_end,
            "cpu_seconds": -(-self._limits.seconds // 1) + 1,
            "memory_bytes": self._limits.memory_gb * 2**30,
            "processes": self._limits.processes,
            "file_bytes": self._limits.file_mb * 2**20,
            "open_files": self._limits.open_files,
        }
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(settings).encode() + b"\n")
            self._process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process and all that it started, and remove its folder."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()  # which the keeper sees, and ends everything
        os.close(self._requests)
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
        remove(self._folder)

    @property
    def exit_code(self) -> int | None:
        """Of the process, 128 and more for a signal; None while it runs."""
        return self._process.poll()

    def run(self, program: str) -> None:
        """Run a program, whose functions can be called then.

        Raises:
            ProgramError: it raised, ended or was late.
        """
        self._deadline = time.monotonic() + START_SECONDS
        self._ask({"what": "run", "program": ""})  # so that the program's time begins with it
        self._deadline = time.monotonic() + self._limits.seconds
        self._ask({"what": "run", "program": program})

    def print_of(self, program: str, text: str) -> str:
        """Run a script on an input and return what it prints.

        Raises:
            ProgramError: it raised, ended with another code than 0, printed too much or was late.
        """
        self._deadline = time.monotonic() + self._limits.seconds + 1.0
        self._write({"program": program, "input": text})
        while chunk := self._chunk():
            self._received += chunk
            if len(self._received) > MAX_ANSWER:
                raise ProgramError(f"it printed more than {MAX_ANSWER} bytes")
        code = self._process.wait(START_SECONDS)
        if code != 0:
            raise ProgramError(f"it ended with {_cause(code)}")
        return self._received.decode("utf-8", "replace")

    def value(self, name: str) -> "Remote":
        """Return what the program calls by a name, to be called."""
        return Remote(self, name)

    def call(self, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Call a function or object of the program; return what it returned, as plain data."""
        arguments = [_encoded(item) for item in args]
        named = {name: _encoded(item) for name, item in kwargs.items()}
        return self._ask({"what": "call", "target": target, "args": arguments, "kwargs": named})

    def attribute(self, target: str | int, name: str) -> Any:  # noqa: ANN401 - a program's value
        """Return an attribute of an object of the program."""
        return self._ask({"what": "attribute", "target": target, "name": name})

    def items(self, target: str | int) -> list[Any]:
        """Return what an iterable of the program yields, at most 100,000 values."""
        return self._ask({"what": "items", "target": target})

    def _ask(self, request: dict[str, Any]) -> Any:  # noqa: ANN401 - a program's value
        self._write(request)
        while b"\n" not in self._received:
            chunk = self._chunk()
            if not chunk:
                code = self._process.wait(START_SECONDS)
                raise ProgramError(f"it ended with {_cause(code)}")
            self._received += chunk
            if len(self._received) > MAX_ANSWER:
                raise ProgramError(f"it returned more than {MAX_ANSWER} bytes")
        line, _, self._received = self._received.partition(b"\n")
        try:
            answer = json.loads(line)
            error = answer.get("error")
            value = None if error is not None else self._decoded(answer["value"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as why:
            raise ProgramError("it returned what cannot be read") from why
        if error is not None:
            raise ProgramError(str(error))
        self.num_answers += 1
        return value

    def _write(self, request: dict[str, Any]) -> None:
        data = json.dumps(request).encode() + b"\n"
        os.set_blocking(self._requests, False)
        while data:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([], [self._requests], [], left)[1]:
                raise ProgramLateError(self._late())
            try:
                data = data[os.write(self._requests, data[:65536]) :]
            except BrokenPipeError:
                return  # it has ended, which reading tells

    def _chunk(self) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0 or not select.select([self._answers], [], [], left)[0]:
            raise ProgramLateError(self._late())
        return os.read(self._answers, 65536)

    def _late(self) -> str:
        return f"it did not end within {self._limits.seconds:g} s"

    def _decoded(self, value: Any) -> Any:  # noqa: ANN401 - a program's value
        if isinstance(value, list) and value[0] == "handle":
            return Remote(self, int(value[1]))
        return decoded(value, self._decoded)


@final
class Remote:
    """A function or object of a program, as tests see it: equal to nothing but itself."""

    def __init__(self, sandbox: Sandbox, target: str | int) -> None:
        self._sandbox, self._target = sandbox, target

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - a program's value
        """Call it."""
        return self._sandbox.call(self._target, args, kwargs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a program's value
        """Return an attribute of it."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._sandbox.attribute(self._target, name)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over it."""
        return iter(self._sandbox.items(self._target))


def tier_of(setting: str) -> Tier:
    """Return the tier that a setting means here, and log which it is.

    Raises:
        RewardError: there is no such tier, or this machine does not have it.
    """
    if setting not in ("auto", "process", "namespaces"):
        raise RewardError(f'tier is "auto", "process" or "namespaces"; got {setting!r}')
    has_namespaces = setting != "process" and can_enter_namespaces()
    if setting == "namespaces" and not has_namespaces:
        raise RewardError(
            "the tier namespaces is not available here: it needs Linux, and root or unprivileged "
            "user namespaces (sysctl kernel.unprivileged_userns_clone or user.max_user_namespaces;"
            " in a container, its options). Set tier process, which leaves the network open"
        )
    tier: Tier = "namespaces" if has_namespaces else "process"
    network = "no network" if has_namespaces else "the network is open"
    logger.info("programs are run in the tier %s: %s", tier, network)
    return tier


@lru_cache(maxsize=1)
def can_enter_namespaces() -> bool:
    """Return whether a program can be run in namespaces here: one is."""
    if sys.platform != "linux":
        return False
    try:
        with Sandbox("namespaces", Limits()) as sandbox:
            sandbox.run("import os; pid = os.getpid")
            return sandbox.value("pid")() == 1  # the first process of its own
    except ProgramError:
        return False


def _encoded(value: Any) -> Any:  # noqa: ANN401 - a test's value
    """Return an argument as JSON.

    Raises:
        BrokenTestError: it is no plain data.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Remote):
        return ["handle", value._target]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, dict):
        return ["dict", *([_encoded(key), _encoded(item)] for key, item in value.items())]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(_encoded, value)]
    if isinstance(value, range):
        return ["list", *value]
    kind = type(value).__name__
    raise BrokenTestError(f"a test calls the program with a {kind}, which is no plain data")


def _cause(code: int) -> str:
    return f"signal {code - 128}" if code > 128 else f"code {code}"
