"""A rank that dies, hangs or fails ends all of them in time, with one message that names it."""

import socket

import pytest

from tests import tiny
from tests.distributed import lost
from tests.distributed.ranks import free_port
from tests.processes import process
from trainers.checkpoint.loading import find
from trainers.run_dir.record import read_status

HERE = socket.gethostname()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_model(tmp_path_factory.mktemp("model")))


def ended(how, model, folder):
    """Run two ranks until those that are left have ended; (codes, what each printed)."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    files = [folder / f"stderr_{rank}" for rank in range(2)]
    ranks = []
    for rank, file in enumerate(files):
        place = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(process(lost.run, place, how, model, str(folder), str(file)))
        ranks[-1].start()
    try:
        left = [rank for rank in range(2) if how != "stuck" or rank != 1]
        for rank in left:
            ranks[rank].join(timeout=200)
        return [ranks[rank].exitcode for rank in left], [files[rank].read_text() for rank in left]
    finally:
        for one in ranks:
            one.kill()
            one.join()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "rank 1 ({host}) died in rollout: its connection was closed; the other 1"),
        ("stuck", "rank 1 ({host}) did not finish rollout within 12 s; the other 1 stopped."),
        ("fails", "rank 1 ({host}) failed in rollout: RuntimeError: the disk of this host is"),
    ],
)
def test_one_message_names_rank_phase_and_log(how, message, model, tmp_path):
    codes, said = ended(how, model, tmp_path)
    assert 1 in codes
    errors = [line for text in said for line in text.splitlines() if "Error" in line]
    assert len(errors) == 1, said
    assert errors[0].startswith(f"LostRankError: {message.format(host=HERE)}")
    log = tmp_path / "a" / "logs" / "attempt_1" / "rank_1.log"
    assert str(log) in errors[0]
    assert ("(empty)" in errors[0]) == (log.stat().st_size == 0)
    assert "Continue with the same command and --resume." in "".join(said)
    assert read_status(tmp_path / "a")["status"] == "failed"
    assert find(tmp_path / "a" / "checkpoints", "ppo").path.name == "ppo_000001"


def test_what_every_rank_finds_is_said_once_in_its_own_words(model, tmp_path):
    codes, said = ended("all", model, tmp_path)
    assert codes == [1, 1]
    assert [text.count("NonFiniteError: every rank says so") for text in said] == [1, 0]
