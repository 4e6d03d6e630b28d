"""What a grader does beside grading: it forks, prints, answers where only verdicts go."""

import os

import pytest

from llmgym.rewards.isolate import Isolated
from tests.unit.llmgym.samples import is_gone, scored

GRADER = """
import os, sys, threading

def raises():
    raise ValueError("no")

def loop():
    while True:
        pass

def forks(child, wait=True):
    pid = os.fork()
    if pid == 0:
        return child()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if wait else 0
    return 1.0 - code

def forks_twice():
    # The pipes are closed once: the number may be another file's by then.
    file = os.open(os.devnull, os.O_RDONLY)
    os.dup2(file, int(sys.argv[2]))
    if os.fork() == 0:
        os.fstat(int(sys.argv[2]))
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))

def forge(pipe=None):
    verdict = b'{"pid": 1, "job": 1, "value": 0.5, "parts": {}, "status": "ok"}\\n'
    os.write(int(sys.argv[2]) if pipe is None else pipe, verdict)
    os._exit(0)

LATER = []

def forks_one_that_answers_later():
    pipe, (told, tell) = os.dup(int(sys.argv[2])), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(told, 1)
        forge(pipe)
    LATER.append((pid, tell))
    return 1.0

def later():
    pid, tell = LATER.pop()
    os.write(tell, b"x")
    os.waitpid(pid, 0)
    return 1.0

def daemon():
    # A process that leaves its group and its parent; its id is returned.
    number, told = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            threading.Event().wait()
        os.write(told, str(pid).encode())
        os._exit(0)
    os.wait()
    return float(os.read(number, 20))

DEEDS = {
    "fork raises": lambda: forks(raises), "fork exits": lambda: forks(sys.exit),
    "fork hangs": lambda: forks(loop, wait=False), "fork forges": lambda: forks(forge),
    "forge": lambda: (os.write(int(sys.argv[2]), b'{"value": 1.0}\\n'), 1.0)[1],
    "fork answers later": forks_one_that_answers_later, "later": later, "daemon": daemon,
    "escape": lambda: (print("\\x1b[2Jred \\u202e", flush=True), 0.0)[1],
    "flood": lambda: ([print("x" * 5000) for _ in range(200)], 0.0)[1],
    "fork twice": lambda: forks(forks_twice),
    "half": lambda: 0.5, "parts": lambda: {"a": 1.0, "b": 0.5},
}

def score(response):
    return DEEDS[response]()
"""


@pytest.fixture
def grader(tmp_path):
    """Isolate the grader in one process, which is ended at the end."""
    file = tmp_path / "grader.py"
    file.write_text(GRADER)
    reward = Isolated(f"{file}:score", workers=1, timeout=20.0)
    yield reward
    reward.close()


def test_what_a_grader_prints_is_escaped_and_bounded(grader, capfd):
    assert [one.value for one in scored(grader, "escape", "flood")] == [0.0, 0.0]
    grader.close()
    shown = capfd.readouterr().err
    assert r"\x1b[2Jred \u202e" in shown
    assert "\x1b" not in shown
    assert f"{'x' * 1000}...\n" in shown
    assert shown.count("the reward's further output is left out") == 1
    assert len(shown) < 30_000


@pytest.mark.parametrize(
    "deed", ["fork raises", "fork exits", "fork hangs", "fork forges", "fork twice"]
)
def test_a_process_that_a_grader_forked_has_no_say(grader, deed):
    for _ in range(2):
        scores = scored(grader, "half", deed, "half", deed, "parts")
        assert [(one.value, one.status) for one in scores] == [
            (0.5, "ok"), (1.0, "ok"), (0.5, "ok"), (1.0, "ok"), (1.5, "ok"),
        ]  # fmt: skip


@pytest.mark.parametrize("deeds", [("forge",), ("fork answers later", "later")])
def test_whatever_else_comes_over_the_pipe_is_an_error_of_its_sample(grader, deeds):
    *fine, wrong, after = scored(grader, *deeds, "half")
    assert [one.value for one in fine] == [1.0] * len(fine)
    assert (wrong.value, wrong.status) == (0.0, "error")
    assert "something else came over the pipe of its verdicts" in wrong.error
    assert (after.value, after.status) == (0.5, "ok")
    assert [one.value for one in scored(grader, "parts", "half")] == [1.5, 0.5]


def test_a_process_that_left_its_group_and_its_parent_is_ended_as_well(grader):
    pid = int(scored(grader, "daemon")[0].value)
    os.kill(pid, 0)
    grader.close()
    assert is_gone(pid)
