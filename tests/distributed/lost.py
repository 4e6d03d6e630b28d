"""A rank of a run in which rank 1 is killed, hangs or fails."""

import os
import signal
import sys
import threading
from unittest import mock

from tests import tiny
from trainers.cli.main import main
from trainers.collect.rollout import TextCollector
from trainers.distributed.collectives import phase
from trainers.errors import NonFiniteError

STUCK = threading.Event()


def lost(how):
    """What rank 1 does instead of collecting its second rollout."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "stuck":
        STUCK.wait()
    elif how == "fails":
        raise RuntimeError("the disk of this host is gone")
    raise NonFiniteError("every rank says so")


def run(place, how, model, folder, said):
    """Train by the command line, as a launcher's rank does; the file `said` gets its stderr.

    `place` is the rank's, as a launcher sets it.
    """
    os.environ |= place
    for number, file in ((1, os.devnull), (2, said)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
    collect = TextCollector.collect

    def collected(self, actor, iteration):
        if iteration == 1 and (os.environ["RANK"] == "1" or how == "all"):
            with phase("rollout"):
                lost(how)
        return collect(self, actor, iteration)

    words = {**tiny.RUN, "model.path": model, "run.dir": folder, "checkpoint.every": 1}
    words["backend.timeout_seconds"] = 12.0 if how == "stuck" else 60.0  # they meet within it too
    typed = [str(word) for key, value in words.items() for word in (f"--{key}", value)]
    with mock.patch.object(TextCollector, "collect", collected):
        sys.exit(main(["train", *typed]))
