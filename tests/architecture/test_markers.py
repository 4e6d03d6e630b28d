"""Shows the skipping rules of conftest.py small suites, and reads how each run ends."""

import os
import subprocess
import sys

import pytest

from tests.architecture.source import ROOT

SLOW_ONE = "import pytest\n\n@pytest.mark.slow\ndef test_slow(): ...\n\ndef test_quick(): ...\n"
PEERLESS = "import pytest\n\n@pytest.mark.peers\ndef test_a(): ...\n\ndef test_b(): ...\n"
DATA_SKIPPED = "import pytest\n\n@pytest.mark.data\ndef test_data(): pytest.skip('I said so')\n"
DATA_RUN = "import pytest\n\n@pytest.mark.data\ndef test_data(data_dir): assert data_dir.is_dir()\n"


@pytest.fixture
def suite(tmp_path):
    """Run the given test file under our conftest and settings, in a folder of its own."""

    def run(text, *arguments, data="data"):
        (tmp_path / "tests").mkdir()
        (tmp_path / "data").mkdir()
        for shared in ("pyproject.toml", "tests/conftest.py", "tests/browsers.py"):
            (tmp_path / shared).write_text((ROOT / shared).read_text("utf-8"), "utf-8")
        (tmp_path / "tests" / "test_it.py").write_text(text, "utf-8")
        kept = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        environment = kept | {"LLMGYM_DATA": data}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_slow_tests_are_left_out_by_default(suite):
    code, said = suite(SLOW_ONE)
    assert (code, "1 passed, 1 deselected" in said) == (0, True), said


def test_slow_tests_run_when_asked_for(suite):
    code, said = suite(SLOW_ONE, "-m", "slow")
    assert (code, "1 passed, 1 deselected" in said) == (0, True), said


def test_denying_a_marker_does_not_ask_for_it(suite):
    code, said = suite(SLOW_ONE, "-m", "not slow")
    assert (code, "1 passed, 1 deselected" in said) == (0, True), said


def test_what_the_machine_lacks_is_skipped_with_its_reason(suite):
    code, said = suite(PEERLESS, "-rs")
    assert (code, "peers: trl is not installed" in said) == (0, True), said


def test_asking_for_a_marker_and_skipping_it_fails(suite):
    code, said = suite(PEERLESS, "-m", "peers")
    assert (code, "-m asked for peers, and 1 were skipped" in said) == (1, True), said


def test_asking_for_a_marker_and_running_none_of_it_fails(suite):
    code, said = suite(SLOW_ONE, "-m", "data")
    assert (code, "-m asked for data, and none ran" in said) == (1, True), said


def test_the_ledger_counts_across_workers(suite):
    code, said = suite(DATA_SKIPPED, "-n", "2")
    assert (code, "1 tests of the data were skipped" in said) == (1, True), said


def test_data_tests_run_where_the_data_is(suite):
    code, said = suite(DATA_RUN)
    assert (code, "1 passed" in said) == (0, True), said


def test_data_tests_are_skipped_where_it_is_not(suite):
    code, said = suite(DATA_RUN, "-rs", data="nowhere")
    assert (code, "set LLMGYM_DATA" in said) == (0, True), said


def test_an_unknown_marker_is_refused(suite):
    code, said = suite("import pytest\n\n@pytest.mark.gpus\ndef test_a(): ...\n")
    assert (code, "'gpus' not found in `markers`" in said) == (2, True), said
