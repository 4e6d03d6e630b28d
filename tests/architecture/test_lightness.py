"""Lightness: each import in a fresh interpreter, then its modules and CPU seconds are read."""

import json
import subprocess
import sys

import pytest

from tests.architecture.imports import DOORS
from tests.architecture.source import ROOT

HEAVY = {"torch", "transformers", *DOORS}
REPORT = """
import json, sys, time
start = time.process_time()
{code}
spent = time.process_time() - start
loaded = sorted({{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names)
sys.stderr.write(json.dumps([loaded, spent]))
"""
HELP = """
from trainers.cli.main import main
sys.argv = ["llmgym", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def fresh(code: str) -> tuple[set[str], float]:
    """Run `code` in a new interpreter; give the packages it loaded and its CPU seconds."""
    command = [sys.executable, "-W", "ignore", "-c", REPORT.format(code=code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded, spent = json.loads(done.stderr)
    return set(loaded), spent


def quickest(code: str) -> float:
    """Give the least CPU seconds of three runs: the others met a cold disk or a busy neighbour."""
    return min(fresh(code)[1] for _ in range(3))


def test_llmgym_loads_only_numpy_gymnasium_and_what_they_bring():
    brought, _ = fresh("import numpy, gymnasium, gymnasium.vector, gymnasium.wrappers")
    loaded, _ = fresh("import llmgym")
    assert loaded - brought == {"llmgym"}


@pytest.mark.parametrize("module", ["llmgym", "trainers", "trainers.config", "trainers.cli"])
def test_light_module_loads_no_heavy_library(module):
    loaded, _ = fresh(f"import {module}")
    assert not loaded & HEAVY


def test_help_loads_no_heavy_library():
    loaded, _ = fresh(HELP)
    assert not loaded & HEAVY


def test_import_llmgym_takes_under_half_a_second():
    assert quickest("import llmgym") < 0.5


def test_help_takes_under_a_second():
    assert quickest(HELP) < 1.0
