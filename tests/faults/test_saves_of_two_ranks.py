"""Two ranks save together: a full disk on one is a failed save on both, and both go on."""

import socket

from tests.faults.savers import save_as_rank
from tests.processes import process
from trainers.checkpoint.loading import load


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_full_disk_on_one_rank_fails_the_save_on_both_and_leaves_the_old_one(tmp_path):
    folder, port = tmp_path / "checkpoints", free_port()
    ranks = [process(save_as_rank, rank, port, folder, tmp_path) for rank in range(2)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(timeout=90)
        assert one.exitcode == 0
    for rank in range(2):
        said = (tmp_path / f"rank_{rank}").read_text()
        # It found the first one, its own state in it, and rank 0's decision on a missing one.
        assert said.startswith(f"1 {rank} cannot resume from ")
        assert "no such folder" in said
        assert load(folder / "ppo_000003", rank).own == {"rank": rank}
    assert [path.name for path in folder.iterdir()] == ["ppo_000003"]
