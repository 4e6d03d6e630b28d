"""What is offloaded to NVMe: trained, saved, taken up by host memory and back, and cleared away.

Files are written for tensors from 1 MiB on. A tiny model has none, so ranks of these tests lower
that to 1 KiB, and cut the masters into sub-groups of a few thousand numbers.
"""

import pytest

from tests.distributed import zero
from tests.distributed.ranks import run_ranks
from tests.distributed.test_zero import assert_goes_on, assert_parity
from trainers.backends.zero.builds import check_locks

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.nvme,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

PLACES = [(3, "optimizer on NVMe"), (3, "params on NVMe")]


def cases(learns, places=PLACES):
    return [(*place, learns, "float32") for place in places]


@pytest.fixture(autouse=True)
def nvme(tmp_path, monkeypatch):
    check_locks()  # ranks of these tests would wait for a killed build without end
    monkeypatch.setenv("LLMGYM_TEST_NVME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("learns", ["separate", "shared", "lora"])
def test_ranks_learn_from_nvme_what_one_process_learns_and_leave_no_file(learns, nvme):
    for found in run_ranks(zero.trained, cases(learns), 4, 0, timeout=600):
        for case in cases(learns):
            assert_parity(found[case], learns, 4)
    assert not list(nvme.iterdir())


@pytest.mark.parametrize("learns", ["separate", "lora"])
def test_a_state_on_nvme_goes_on_exactly_and_in_host_memory(learns):
    same = [(case, case) for case in cases(learns)]
    optimizer, weights = cases(learns)
    memory, whole = cases(learns, [(3, "params"), (1, "none")])
    other = [(weights, memory), (memory, weights), (optimizer, whole), (whole, optimizer)]
    for found in run_ranks(zero.resumed, same + other, timeout=600):
        for pair in same + other:
            assert_goes_on(found[pair], exact=pair in same)


def test_no_step_is_taken_from_nvme_with_what_is_not_finite():
    chosen = [(case, where) for case in cases("separate") for where in ("loss", "gradient")]
    for found in run_ranks(zero.poisoned, chosen, timeout=600):
        for case in chosen:
            said, is_kept = found[case]
            assert is_kept
            assert "not finite" in said
