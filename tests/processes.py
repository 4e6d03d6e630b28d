"""Processes of their own for tests, forked from one that has imported what takes seconds to."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.charts import blank_charts

ROOT = Path(__file__).parents[1]
IMPORTED = (
    "pytest",
    "tests.tiny",
    "tests.resume.trainee",
    "tests.faults.savers",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # every engine of ZeRO asks for it
)


def process(target: Callable[..., Any], *arguments: Any, **named: Any) -> BaseProcess:
    """Return a process that is not started yet and calls `target`, in today's environment.

    What it calls is found by its module and name, so it stands at the top of a file.
    """
    context = multiprocessing.get_context("forkserver")
    # A forked process cannot use CUDA once the one before it has looked for it.
    known = [] if torch.cuda.is_available() else [one for one in IMPORTED if _is_there(one)]
    context.set_forkserver_preload(known)
    with contextlib.chdir(ROOT):  # the server finds `tests` and `trainers` where it is started
        forkserver.ensure_running()
    return context.Process(
        target=_call, args=(dict(os.environ), target, arguments, named), daemon=True
    )


def _is_there(module: str) -> bool:
    return find_spec(module.partition(".")[0]) is not None


def _call(
    environment: dict[str, str],
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with blank_charts():
        target(*arguments, **named)
