"""Environments that misbehave, for the tests of processes; named by address."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, Text

from llmgym.data.tasks import from_list
from llmgym.env import LLMEnv
from llmgym.messages import Reply, Task

TASKS = tuple(Task(id=f"t{i}", prompt=f"Task {i}", answer="go", source="toy") for i in range(8))


def _raise():
    raise ZeroDivisionError("the world broke\nbadly")


def _spin():
    while True:
        pass


def _ignore_signals():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def _eat():
    held = bytearray(512 * 1024 * 1024)
    held[::4096] = b"x" * len(held[::4096])


def _print():
    sys.stdout.write("hello \x1b[31m from the world\n")
    sys.stderr.write("and its errors\n")


def _close():
    os.close(1)
    os.close(2)
    time.sleep(0.3)


FAULTS = {
    "raise": _raise,
    "exit": lambda: os._exit(7),
    "crash": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), 9),
    "hang": lambda: time.sleep(60),
    "nap": lambda: time.sleep(0.3),
    "spin": _spin,
    "deaf": _ignore_signals,
    "eat": _eat,
    "print": _print,
    "flood": lambda: sys.stdout.write(20_000 * ("x" * 100 + "\n")),
    "close": _close,
}


def misbehave(action: str) -> None:
    """Do what the action names, if anything."""
    FAULTS.get(action, lambda: None)()


class Wild(LLMEnv):
    """Does what it is told to; its process's id is in each sample's state."""

    def __init__(self, **kwargs):
        super().__init__(from_list(list(TASKS)), **kwargs)

    def prompt(self, task):
        misbehave(self.system or "")
        return f"{task.prompt}: {self.np_random.integers(1000)}"

    def reply(self, response):
        misbehave(str(response))
        if response == "score":
            self.reward.score([])
        return Reply("on", done=response == "end", reward=0.25)

    def state(self):
        return {"pid": os.getpid(), "draw": random.random(), "torch": "torch" in sys.modules}

    def solve(self):
        return "end"


class Waits(Wild):
    """Takes 5 ms for a step: asleep, or at work."""

    works = False

    def reply(self, response):
        if self.works:
            until = time.process_time() + 0.005
            while time.process_time() < until:
                pass
        else:
            time.sleep(0.005)
        return Reply("on", reward=0.25)


class Works(Waits):
    works = True


@dataclass
class Opaque:
    """No plain data."""

    number: int = 3


class Handle:
    """No data at all."""

    def __repr__(self):
        return "<a handle>"


class Foreign(gymnasium.Env[Any, Any]):
    """A library's environment: it draws from shared generators and keeps what it likes in infos."""

    observation_space = Text(64)
    action_space = Discrete(4)
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(self, render_mode="ansi", fail=""):
        self.render_mode = render_mode
        misbehave(fail)
        self.turn = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turn = 0
        return self._look(), {"opaque": Opaque(), "handle": Handle(), "who": os.getpid()}

    def step(self, action):
        misbehave(action if isinstance(action, str) else "")
        self.turn += 1
        info = {"array": np.arange(3), "deep": [{"n": np.float32(1.5)}]}
        reward = "won" if action == "sentence" else np.float32(0.5)
        look = Handle() if action == "handle" else self._look()
        return look, reward, self.turn > 5, False, info

    def render(self):
        return f"turn {self.turn}"

    def gold(self, factor=1):
        return self.turn * factor

    def leave(self):
        """Start processes that would outlive this one: one of its group, one in a session."""
        command = [sys.executable, "-c", "import time; time.sleep(120)"]
        own = subprocess.Popen(command)
        other = subprocess.Popen(command, start_new_session=True)
        orphan = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', "
                "'import time; time.sleep(120)'], start_new_session=True, stdout=2); print(p.pid)",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        return [own.pid, other.pid, int(orphan.communicate()[0])]

    def _look(self):
        shared = np.random.randint(10**6)  # noqa: NPY002 - as such libraries do
        draws = random.randrange(10**6), shared, self.np_random.integers(10**6)
        return " ".join(map(str, draws))


class Unusual(Foreign):
    """Has a space that no other library knows."""

    class Odd(gymnasium.Space):
        def sample(self, mask=None, probability=None):
            return object()

    observation_space = Odd()
