"""The far end of `Isolated`: one process that scores one sample after another on its main thread.

Run by `isolate.py` as a new session; not a command for people. The process splits in two: the
child grades, the parent only waits for the trainer or the child to go away, and then kills the
whole group: a grader that never returns does not outlive its trainer, and nobody holds the pipe of
a dead one open, which the trainer would fill and wait on. Verdicts go over a pipe of their
own, as JSON: nothing that a grader prints can be taken for one.
"""

import json
import logging
import os
import select
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from llmgym.errors import LLMGymError
from llmgym.messages import Sample
from llmgym.rewards.base import Reward, bounds_of, resolve, score_samples


def main() -> None:
    """Score what arrives on the pipe argv[1], answer on the pipe argv[2]."""
    requests, verdicts = int(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.WARNING)  # the trainer reports failures, once a batch
    signal.signal(signal.SIGCHLD, _end)
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _grade(Connection(requests, writable=False), Connection(verdicts, readable=False))
        os._exit(0)
    os.close(verdicts)  # so that the trainer sees the end of the grader, not of this process
    hang_up = select.poll()
    hang_up.register(requests, 0)  # asks for nothing, hence wakes only when the other end closes
    hang_up.poll()
    _end()


def _end(*_: object) -> None:
    os.killpg(0, signal.SIGKILL)


def _grade(requests: Connection, verdicts: Connection) -> None:
    reward = _loaded(requests, verdicts)
    while reward is not None:
        try:
            sample: Sample = requests.recv()
        except EOFError:
            return
        verdicts.send_bytes(json.dumps(_verdict(reward, sample)).encode())


def _loaded(requests: Connection, verdicts: Connection) -> Reward | None:
    try:
        reward = resolve(requests.recv())
    except LLMGymError as error:
        answer = {"kind": type(error).__name__, "message": str(error)}
        verdicts.send_bytes(json.dumps(answer).encode())
        return None
    traits = {"per_turn": reward.per_turn, "collective": reward.collective}
    verdicts.send_bytes(json.dumps({**traits, "bounds": bounds_of(reward)}).encode())
    return reward


def _verdict(reward: Reward, sample: Sample) -> dict[str, Any]:
    try:
        score = score_samples(reward, [sample], retries=0)[0]
    except LLMGymError as error:
        return {"kind": type(error).__name__, "message": str(error)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm left pending would end the next sample
    return {
        "value": score.value,
        "parts": dict(score.parts),
        "status": score.status,
        "spans": score.spans,
        "error": score.error,
        "retries": score.retries,
    }
