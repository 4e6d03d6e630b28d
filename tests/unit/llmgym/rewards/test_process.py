"""Which lines on a grader's pipe are its verdict, and what ends with it."""

import json
import os
import subprocess
import sys

import pytest

from llmgym.rewards.process import MAX_VERDICT, NotAVerdictError, Worker, descendants

VERDICT = {"pid": 5, "job": 3, "value": 1.0}


@pytest.fixture
def worker():
    """A worker that waits for the verdict of job 3 of process 5, and the end to write it on."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    yield Worker(None, None, reading, 0.0, grader=5, job=3), writing
    os.close(reading)
    os.close(writing)


def line(**changes):
    return json.dumps(VERDICT | changes).encode() + b"\n"


def test_the_verdict_of_the_job_and_the_grader_is_read_in_any_pieces(worker):
    one, pipe = worker
    os.write(pipe, line()[:7])
    assert one.read() is None
    os.write(pipe, line()[7:])
    assert one.read() == {"value": 1.0}
    assert not one.busy


@pytest.mark.parametrize(
    "written",
    [
        line(job=2),
        line(job=4),
        line(job=None),
        line(pid=6),
        b"printed\n" + line(),
        b"printed" + line(),
        line() + b"printed",
        line() + line(),
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"value": 1.0}\n',
    ],
)
def test_anything_else_is_none(worker, written):
    one, pipe = worker
    os.write(pipe, written)
    with pytest.raises(NotAVerdictError, match="something else came over the pipe"):
        one.read()


def test_a_line_without_end_is_none(worker):
    one, pipe = worker
    one.received = b"x" * MAX_VERDICT
    os.write(pipe, b"x")
    with pytest.raises(NotAVerdictError, match="something else"):
        one.read()


def test_the_first_message_names_the_process_that_grades(worker):
    one, pipe = worker
    one.grader = one.job = None
    os.write(pipe, line(job=None))
    one.read()
    assert one.grader == 5


def test_descendants_are_children_and_theirs():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as parent:
        below = []
        while not below:
            below = descendants(parent.pid)
        assert {parent.pid, *below} <= {*descendants(os.getpid())}
        parent.communicate(b"\n")
