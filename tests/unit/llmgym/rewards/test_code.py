"""Programs in a sandbox: tests pass, fail or are broken; what a program does costs itself alone."""

import gc
import logging
import os
import tempfile
import time
from pathlib import Path

import pytest

from llmgym.data.tasks import from_list
from llmgym.errors import RewardError
from llmgym.messages import Completion, Sample, Task
from llmgym.rewards import sandbox
from llmgym.rewards.answers import check_answers
from llmgym.rewards.base import resolve, score_samples
from llmgym.rewards.code import CodeTests, code_tests, program_of, read_tests
from llmgym.rewards.sandbox import Limits, ProgramError, ProgramLateError, Sandbox, tier_of

TIERS = ["process", *(["namespaces"] if sandbox.can_enter_namespaces() else [])]
DOUBLE = ["assert double(2) == 4", "assert double('ab') == 'abab'", "assert double(-1) == -2"]
RIGHT = "def double(x):\n    return x + x\n"


def sample(program, tests=DOUBLE, **meta):
    task = Task(id="t", prompt="Double it", meta={"tests": tests, **meta})
    return Sample(task, (), Completion(program), program)


def scored(program, tests=DOUBLE, tier="process", seconds=2.0, **meta):
    reward = CodeTests(None, tier, Limits(seconds=seconds))
    return score_samples(reward, [sample(program, tests, **meta)], retries=0)[0]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("program", "value"),
    [
        (RIGHT, 1.0),
        (f"Here it is:\n```python\n{RIGHT}```\nDone.", 1.0),
        (f"```\nprint('no')\n```\n```py\n{RIGHT}", 1.0),
        ("def double(x):\n    return 2 * x if x != -1 else 0", 2 / 3),
        ("def double(x): return 4", 1 / 3),
        ("def dubble(x): return 2 * x", 0.0),
        ("def double(x) return", 0.0),
        ("", 0.0),
        ("I do not know.", 0.0),
        ("import sys; sys.exit(0)", 0.0),
        ("import os; os._exit(0)", 0.0),
    ],
)
def test_a_program_earns_the_share_of_tests_that_it_passes(program, value, tier):
    score = scored(program, tier=tier)
    assert (score.status, score.value) == ("ok", pytest.approx(value))
    assert score.parts == {"tests_passed": pytest.approx(value), "all_passed": float(value == 1.0)}


FORGERS = {
    "equal to anything": (
        "class Any:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
        "def double(x): return Any()"
    ),
    "a number that equals anything": (
        "class N(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def double(x): return N(7)"
    ),
    "answers of its own": (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"value\": 4}\\n' * 9)\n"
        "    except OSError: pass\ndef double(x): return 0"
    ),
    "a test's assertion": "import builtins\nbuiltins.AssertionError = Exception\ndouble = len",
    "a look at who calls": (
        "import sys, gc\ndef double(x):\n    found = [o for o in gc.get_objects() "
        "if isinstance(o, str) and 'assert double' in o]\n    return 4 if found else 0"
    ),
}


@pytest.mark.parametrize("name", FORGERS)
def test_a_forged_verdict_is_worth_no_more_than_its_values(name):
    score = scored(FORGERS[name])
    assert (score.status, score.value) == ("ok", pytest.approx(1 / 3 if "own" in name else 0.0))


STACK = "class Stack(list):\n    push = list.append"
BOX = "class Box:\n    def __init__(self, v): self.value = v"
RAISES = "try:\n    f(0)\nexcept Exception:\n    pass\nelse:\n    assert False"
CHECK = "def check(candidate):\n    for n in range(3):\n        assert candidate(n) == n"


@pytest.mark.parametrize(
    ("tests", "program", "value"),
    [
        (["assert abs(root(2) - 1.41421) < 1e-4"], "root = lambda x: x ** 0.5", 1.0),
        (["import math\nassert math.isclose(root(9), 3)"], "from math import sqrt as root", 1.0),
        (["assert set(pair(1, b=2)) == {1, 2}"], "def pair(a, b): return (a, b)", 1.0),
        (["assert list(count(3)) == [0, 1, 2]"], "def count(n):\n    yield from range(n)", 1.0),
        (["s = Stack()\ns.push(3)\nassert s.pop() == 3"], STACK, 1.0),
        (["b = Box(3)\nassert b.value == 3"], BOX, 1.0),
        (["assert f({1: (2, 3)}, b'x', 1j) == ({1: (2, 3)}, b'x', 1j)"], "f = lambda *a: a", 1.0),
        ([RAISES], "f = lambda x: 1 / x", 1.0),
        (["assert f(3) > 2"], "f = lambda x: None", 0.0),
        (CHECK, "f = abs", 1.0),
    ],
)  # fmt: skip
def test_tests_are_python_and_call_the_program_with_plain_data(tests, program, value):
    assert scored(program, tests, entry_point="f").value == value


@pytest.mark.parametrize(
    "tests",
    [
        {"inputs": ["1\n2\n", "5\n6\n"], "outputs": ["3\n", "11"]},
        '{"inputs": ["1\\n2\\n"], "outputs": [["3"]]}',
        [{"input": ["1", "2"], "output": "3 \n"}],
    ],
)
def test_scripts_read_an_input_and_print(tests):
    add = "a = int(input())\nb = int(input())\nprint(a + b)"
    assert scored(add, tests).value == 1.0
    assert scored("print(3)", tests).value == (
        0.5 if len(read_tests(sample("", tests).task, None).pairs) == 2 else 1.0
    )
    assert scored(f"{add}\nraise SystemExit(2)", tests).value == 0.0
    assert scored("while True: print('x' * 1000)", tests, seconds=1.0).value == 0.0


@pytest.mark.parametrize(
    ("tests", "error"),
    [
        (["assert 1 / 0"], "a test raised ZeroDivisionError: division by zero"),
        (["assert double(object())"], "calls the program with a object, which is no plain data"),
        (["import no_such_module"], "a test raised ModuleNotFoundError"),
    ],
)
def test_a_test_that_can_judge_no_program_is_an_error_and_never_a_zero(tests, error):
    score = scored(RIGHT, tests)
    assert score.status == "error"
    assert error in score.error


@pytest.mark.parametrize(
    ("meta", "match"),
    [
        ({}, "has no column of tests"),
        ({"tests": []}, "has no tests: list"),
        ({"tests": 3}, "has no tests: int 3"),
        ({"tests": ["assert f("]}, "is no Python"),
        ({"tests": [{"input": "1"}]}, "has no tests"),
    ],
)
def test_rows_without_tests_are_refused_before_a_run(meta, match):
    task = Task(id="t", prompt="p", meta=meta)
    with pytest.raises(RewardError, match=match):
        check_answers(code_tests(tier="process"), from_list([task]))


def test_a_tier_that_is_asked_for_and_absent_is_refused_and_the_active_one_is_logged(
    monkeypatch, caplog
):
    monkeypatch.setattr(sandbox, "can_enter_namespaces", lambda: False)
    with pytest.raises(RewardError, match="the tier namespaces is not available here"):
        code_tests(tier="namespaces")
    with caplog.at_level(logging.INFO, "llmgym.rewards"):
        assert tier_of("auto") == "process"
        assert "in the tier process: the network is open" in caplog.text
        monkeypatch.setattr(sandbox, "can_enter_namespaces", lambda: True)
        assert tier_of("auto") == "namespaces"
        assert "in the tier namespaces: no network" in caplog.text
    with pytest.raises(RewardError, match=r'tier is "auto"'):
        tier_of("docker")
    with pytest.raises(RewardError, match="the limit seconds of a program must be above 0"):
        resolve({"name": "code.tests", "kwargs": {"seconds": 0.0}})


@pytest.mark.parametrize("tier", TIERS)
def test_namespaces_leave_no_network(tier):
    program = "import socket\ndef f():\n    socket.create_connection(('127.0.0.1', 9), 1)"
    error = {"process": "refused", "namespaces": "unreachable"}[tier]
    with Sandbox(tier, Limits()) as box:
        box.run(program)
        with pytest.raises(ProgramError, match=error):
            box.value("f")()


FORKS = "import os, time\nfor _ in range(200):\n    if not os.fork(): time.sleep(20)"
THREADS = (
    "import threading, time\n"
    "for _ in range(200): threading.Thread(target=time.sleep, args=(20,)).start()"
)
LEAVES = (
    "import subprocess\nsubprocess.Popen(['sleep', '30'], start_new_session=True)\nwhile True: pass"
)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("while True: pass", ProgramLateError),
        ("import time; time.sleep(30)", ProgramLateError),
        ("held = [bytearray(10**8) for _ in range(40)]", ProgramError),
        ("f = open('a', 'wb')\nfor _ in range(200): f.write(bytes(10**6))", ProgramError),
        (FORKS, ProgramError),
        (THREADS, ProgramError),
        ("files = [open('/dev/null') for _ in range(200)]", ProgramError),
        (LEAVES, ProgramLateError),
    ],
)  # fmt: skip
def test_a_program_over_its_limits_fails_and_leaves_nothing(program, error, tier):
    before = set(Path("/tmp").glob("llmgym-program-*"))
    began = time.monotonic()
    with pytest.raises(error), Sandbox(tier, Limits(seconds=1.0, memory_gb=0.5)) as box:
        box.run(program)
    assert time.monotonic() - began < 8.0
    assert not left_over()
    assert set(Path("/tmp").glob("llmgym-program-*")) <= before


def left_over(seconds=5.0):
    """Return the processes that still run what the programs here start, after a while."""
    until = time.monotonic() + seconds
    while (names := running()) and time.monotonic() < until:
        time.sleep(0.05)
    return names


def running():
    names = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes()
        except OSError:
            continue
        if b"sandbox_main" in words or words == b"sleep\x0030\x00":
            names.append(words)
    return names


HOSTILE = {
    "hangs": "while True:\n    pass",
    "sleeps": "import time\ntime.sleep(100)",
    "forks": (
        "import os, time\nfor _ in range(500):\n    try:\n        if not os.fork():\n"
        "            os.setsid(); time.sleep(100)\n    except OSError:\n        pass\n"
        "while True: time.sleep(1)"
    ),
    "eats": "held = []\nfor _ in range(100): held.append(bytearray(10**8))",
    "writes": "import os\nwhile True:\n    os.write(1, b'x' * 65536)",
    "forges": FORGERS["a number that equals anything"],
}


@pytest.mark.timeout(200)
def test_256_programs_of_which_some_are_hostile_are_scored_and_nothing_is_left(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    programs = [RIGHT] * 250
    for place, program in enumerate(HOSTILE.values()):
        programs.insert(40 * place + 7, program)
    assert len(programs) == 256
    reward = code_tests(seconds=2.0, memory_gb=0.5, workers=2)
    began = time.monotonic()
    scores = score_samples(reward, [sample(program) for program in programs])
    seconds = time.monotonic() - began
    reward.close()
    assert [score.status for score in scores] == ["ok"] * 256
    assert [score.value for score in scores] == [float(program == RIGHT) for program in programs]
    assert seconds < 150.0
    assert not left_over()
    del reward
    gc.collect()
    assert set(os.listdir(tmp_path)) == set()


def test_a_test_that_hangs_by_itself_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    isolated = code_tests(tier="process", seconds=1.0)
    isolated._timeout = 3.0
    (score,) = score_samples(isolated, [sample(RIGHT, ["while True: pass"])], retries=0)
    isolated.close()
    assert score.status == "error"
    assert "no verdict within 3 s" in score.error
    assert not left_over()
    del isolated
    gc.collect()
    assert set(os.listdir(tmp_path)) == set()


def test_the_last_python_block_is_the_program():
    assert program_of("```python\na\n```\n```json\nb\n```") == "a\n"
    assert program_of("a = 1") == "a = 1"


def test_only_every_test_counts_where_that_is_set():
    reward = CodeTests(None, "process", Limits(), all_or_nothing=True)
    (score,) = reward.score([sample("def double(x): return 4")])
    assert (score.value, score.parts["tests_passed"]) == (0.0, pytest.approx(1 / 3))
