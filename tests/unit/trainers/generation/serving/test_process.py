"""Worker processes: they end with who started them, and a rollout outlives one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.unit.trainers.generation.serving.fakes import (
    ROOT,
    SAMPLING,
    answer,
    description,
    request,
    weights_file,
)
from trainers.errors import LostServerError
from trainers.generation.serving.client import ServerClient
from trainers.generation.serving.pool import Endpoint, Pool
from trainers.generation.serving.process import LocalWorker

FAKE = [sys.executable, "-m", "tests.unit.trainers.generation.serving.fake_worker"]
PARENT = """
import sys, time
from trainers.generation.serving.process import LocalWorker
worker = LocalWorker(sys.argv[1:])
worker.start()
print(worker.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    workers = []

    def make(**variables):
        named = {"PYTHONPATH": str(ROOT), **variables}
        workers.append(LocalWorker(FAKE, log_folder=tmp_path, variables=named))
        return workers[-1]

    yield make
    for worker in workers:
        worker.stop()


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(pid, seconds=10.0):
    limit = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_worker_serves_with_a_secret_and_ends_when_stopped(start):
    worker = start()
    url, pid = worker.start(), worker.pid
    assert ServerClient(url, timeout=5.0, token=worker.token).status()["session"] is None
    with pytest.raises(Exception, match="LLMGYM_WORKER_TOKEN"):
        ServerClient(url, timeout=5.0).status()
    worker.stop()
    assert ended(pid)


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path):
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *FAKE], stdout=subprocess.PIPE, cwd=tmp_path, env=variables
    )
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert ended(pid)


def test_a_worker_that_cannot_start_shows_what_it_printed(tmp_path):
    code = "import sys; sys.exit('no module named vllm')"
    worker = LocalWorker([sys.executable, "-c", code], log_folder=tmp_path)
    with pytest.raises(LostServerError, match=r"ended at its start.\nno module named vllm") as info:
        worker.start()
    assert str(worker.log) in str(info.value)


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_rollout_is_repeated_on_a_worker_that_is_started_again(start, tmp_path, fault):
    variables = {"FAKE_FAULT": fault, "FAKE_STEP": "3", "FAKE_ONCE": str(tmp_path / "once")}
    worker = start(**variables)
    pool = Pool(
        [Endpoint(timeout=1.0, worker=worker)], session="one", described=description(), owns=True
    )
    pool.open()
    first = worker.pid
    pool.push(weights_file(tmp_path / "w", 6, value=0.5), 6)
    requests = [request(10, 2), request(20, 5)]  # the first ends before the fault
    answers = pool.write(requests, SAMPLING, 6)
    assert [tuple(map(list, one)) for one in answers] == [answer(10, 2, 0.5), answer(20, 5, 0.5)]
    assert worker.pid != first
    assert not is_alive(first)


def test_a_worker_that_dies_at_every_step_ends_the_run_with_its_log(start, tmp_path):
    once = str(tmp_path / "no" / "such" / "folder")  # never exists, so it dies each time
    worker = start(FAKE_FAULT="die", FAKE_STEP="1", FAKE_ONCE=once)
    pool = Pool(
        [Endpoint(timeout=5.0, worker=worker)], session="one", described=description(), owns=True
    )
    pool.open()
    pool.push(weights_file(tmp_path / "w", 0), 0)
    with pytest.raises(LostServerError, match="no generation server is left") as info:
        pool.write([request()], SAMPLING, 0)
    assert str(worker.log) in str(info.value)
