"""Runs one program under limits: what `sandbox.py` starts. Python's own library alone.

The process that starts is the keeper, which runs nothing of the program: it enters namespaces,
where they are asked for, and forks the process that does. When that one ends, or the pipe of the
keeper's standard input closes, it ends everything below. The program's process answers requests on
two pipes: to run a program, to call what it defined, to read an attribute. Plain data crosses.
"""

import ctypes
import io
import json
import os
import resource
import select
import signal
import sys
import traceback
from collections import deque
from contextlib import suppress
from typing import Any, NoReturn

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
NAMESPACES = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
PDEATHSIG, KEEPCAPS, SUBREAPER, NO_NEW_PRIVS = 1, 8, 36, 38
CAPABILITIES_VERSION = 0x20080522
DAC_READ_SEARCH = 1 << 2
"""Reads files of others: root's interpreter may be in a folder that nobody else opens."""
MS_PRIVATE, MS_REC, MNT_DETACH = 1 << 18, 1 << 14, 2
FIRST_UID, NUM_UIDS = 1_000_000, 1_000_000
MAX_ITEMS = 100_000
"""Values that an iterator may yield to a test."""
MAX_ERROR = 300
"""Characters of a program's error that are answered."""


def main() -> NoReturn:
    """Start the program's process, wait for its end, and end all that it started."""
    settings = json.loads(sys.stdin.buffer.readline())
    libc = ctypes.CDLL(None, use_errno=True)
    if settings["namespaces"]:
        _enter_namespaces(libc, settings)
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    program = os.fork()
    if program == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _become_program(libc, settings)
    os.close(settings["requests"])
    os.close(settings["answers"])
    status = _kept(program, woken)
    libc.umount2(settings["folder"].encode(), MNT_DETACH)
    remove(settings["folder"])
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def remove(folder: str) -> None:
    """Remove a folder with all that is in it, as far as that is allowed."""
    for root, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            path = os.path.join(root, name)
            with suppress(OSError):
                if os.path.isdir(path) and not os.path.islink(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)
    with suppress(OSError):
        os.rmdir(folder)


def _kept(program: int, woken: int) -> int:
    """Wait until the program's process ends, or nobody waits for it; then end what is left.

    Returns its status.
    """
    poll = select.poll()
    poll.register(0, 0)  # asks for nothing, hence wakes only when the other end closes
    poll.register(woken, select.POLLIN)
    status = 0
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if woken in ready:
            os.read(woken, 4096)
        ended, state = os.waitpid(program, os.WNOHANG)
        if ended:
            status = state
            break
        if 0 in ready:
            break
    while below := _below(os.getpid()):
        for pid in below:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return status


def _below(root: int) -> list[int]:
    """Return the ids of all processes below one."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with (
                suppress(OSError, IndexError, ValueError),
                open(f"/proc/{name}/stat", "rb") as file,
            ):
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    pids, waiting = [], deque(children.get(root, []))
    while waiting:
        pids.append(waiting.popleft())
        waiting.extend(children.get(pids[-1], []))
    return pids


def _enter_namespaces(libc: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401 - a C library
    """Leave network, processes and mounts of the machine; the folder becomes one in memory."""
    uid, gid = os.getuid(), os.getgid()
    flags = NAMESPACES if uid == 0 else NAMESPACES | NEWUSER
    if libc.unshare(flags) != 0:
        os._exit(120)
    if uid != 0:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"),
                           ("gid_map", f"{gid} {gid} 1")):  # fmt: skip
            with open(f"/proc/self/{file}", "w", encoding="ascii") as map_file:
                map_file.write(text)
    folder, size = settings["folder"].encode(), settings["file_bytes"]
    libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    libc.mount(b"tmpfs", folder, b"tmpfs", 0, f"size={size},mode=1777".encode())


def _become_program(libc: Any, settings: dict[str, Any]) -> NoReturn:  # noqa: ANN401 - a C library
    """Take the limits, then answer requests until the pipe closes."""
    code = 121
    try:
        os.setsid()
        libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        requests, answers = settings["requests"], settings["answers"]
        os.chdir(settings["folder"])
        _limit(settings)
        if os.getuid() == 0:
            _leave_root(libc)
        libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
        if settings["script"]:
            _print_to(answers)
        else:
            _print_to(os.open(os.devnull, os.O_WRONLY))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = 1
        Server(requests, answers, is_script=settings["script"]).serve()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - a program's own error, told by the exit code
        with suppress(Exception):
            traceback.print_exc()
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code & 127)


def _limit(settings: dict[str, Any]) -> None:
    """Set the limits of the process and of those that it forks."""
    memory, seconds = int(settings["memory_bytes"]), int(settings["cpu_seconds"])
    count = int(settings["processes"])
    if os.getuid() != 0 and not settings["namespaces"]:
        count += _tasks_of_user()  # without a user namespace, all of the user's are counted
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, int(settings["file_bytes"])),
        (resource.RLIMIT_NOFILE, int(settings["open_files"])),
        (resource.RLIMIT_NPROC, count),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _tasks_of_user() -> int:
    own, count = os.getuid(), 0
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == own:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _leave_root(libc: Any) -> None:  # noqa: ANN401 - a C library
    """Become a user that nobody else is, who may read files and nothing more.

    Root's processes are not counted, so a limit of processes needs another user.
    """
    libc.prctl(KEEPCAPS, 1, 0, 0, 0)
    uid = FIRST_UID + int.from_bytes(os.urandom(4), "big") % NUM_UIDS
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    data = (ctypes.c_uint32 * 6)(DAC_READ_SEARCH, DAC_READ_SEARCH, 0, 0, 0, 0)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _print_to(descriptor: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(quiet, 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)


class Server:
    """Runs a program and answers requests about what it defined.

    Args:
        requests: descriptor of requests, lines of JSON.
        answers: descriptor of answers, lines of JSON; of a script, what it prints.
        is_script: whether one program is run with an input, and nothing is answered.
    """

    def __init__(self, requests: int, answers: int, *, is_script: bool) -> None:
        self._requests = os.fdopen(requests, "rb")
        self._answers = answers
        self._is_script = is_script
        self._names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        self._handles: list[Any] = []

    def serve(self) -> None:
        """Answer requests until there are no more."""
        own = os.getpid()
        for line in self._requests:
            request = json.loads(line)
            if self._is_script:
                sys.stdin = io.StringIO(request["input"])
                exec(compile(request["program"], "<program>", "exec"), self._names)
                return
            try:
                answer = {"value": self._encoded(self._answer(request))}
            except BaseException as error:  # noqa: BLE001 - a program's own error is an answer
                answer = {"error": f"{type(error).__name__}: {error}"[:MAX_ERROR]}
            if os.getpid() != own:
                os._exit(0)
            self._write(json.dumps(answer).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._answers, data) :]

    def _answer(self, request: dict[str, Any]) -> Any:  # noqa: ANN401 - a program's value
        if request["what"] == "run":
            exec(compile(request["program"], "<program>", "exec"), self._names)
            return None
        target = request["target"]
        if isinstance(target, str) and target not in self._names:
            raise NameError(f"the program defines no {target}")
        value = self._names[target] if isinstance(target, str) else self._handles[target]
        if request["what"] == "attribute":
            return getattr(value, request["name"])
        if request["what"] == "items":
            return [item for item, _ in zip(value, range(MAX_ITEMS), strict=False)]
        arguments = [self._decoded(item) for item in request["args"]]
        named = {name: self._decoded(item) for name, item in request["kwargs"].items()}
        return value(*arguments, **named)

    def _encoded(self, value: Any) -> Any:  # noqa: ANN401 - as above
        """Return a value as JSON; an object that is no plain data stays here, by its number."""
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int | float):
            return int.__int__(value) if isinstance(value, int) else float.__float__(value)
        if isinstance(value, bytes):
            return ["bytes", bytes(value).hex()]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        is_own = isinstance(value, dict | list | set) and type(value).__module__ == "__main__"
        if isinstance(value, dict) and not is_own:
            pairs = [[self._encoded(key), self._encoded(item)] for key, item in value.items()]
            return ["dict", *pairs]
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind) and not is_own:
                return [kind.__name__, *map(self._encoded, value)]
        self._handles.append(value)
        return ["handle", len(self._handles) - 1]

    def _decoded(self, value: Any) -> Any:  # noqa: ANN401 - as above
        if isinstance(value, list) and value[0] == "handle":
            return self._handles[value[1]]
        return decoded(value, self._decoded)


def decoded(value: Any, inner: Any) -> Any:  # noqa: ANN401 - JSON, and a function of it
    """Return what JSON of `Server` means; `inner` decodes what a container holds."""
    if not isinstance(value, list):
        return value
    tag, *items = value
    if tag == "bytes":
        return bytes.fromhex(items[0])
    if tag == "complex":
        return complex(*items)
    if tag == "dict":
        return {inner(key): inner(item) for key, item in items}
    kinds: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[tag](inner(item) for item in items)


if __name__ == "__main__":
    main()
