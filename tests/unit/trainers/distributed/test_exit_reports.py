"""What is said of a rank that is lost."""

import json
import os
from dataclasses import asdict

import pytest
import torch.distributed as dist

from trainers.distributed import failures as peers
from trainers.distributed.collectives import World, phase
from trainers.distributed.exit_reports import (
    ExitReport,
    read_exit_reports,
    summarize_exits,
    write_exit_report,
)
from trainers.distributed.failures import watched
from trainers.errors import SAID_ELSEWHERE, LostRankError

LEFT = {0: ExitReport(phase="rollout", error="Connection closed", is_cause=False)}
FAILED = LEFT | {1: ExitReport(phase="rollout", error="OSError: full", is_cause=True)}


@pytest.mark.parametrize(("reports", "what"), [(LEFT, "Last words"), (FAILED, "Its log")])
def test_a_log_is_pointed_to_and_said_to_be_empty_where_it_is(reports, what, tmp_path):
    def said():
        return summarize_exits(reports, ["here", "there"], tmp_path, 6.0)

    missing, log = said(), tmp_path / "rank_1.log"
    assert "rank 1 (there)" in missing
    assert f" {what}: {log} (empty)\n" in missing
    log.touch()
    assert said() == missing
    log.write_text("something\n", "utf-8")
    assert f" {what}: {log}\n" in said()


def test_reports_are_read_back_by_rank_and_a_full_disk_costs_no_more_than_them(tmp_path):
    write_exit_report(tmp_path, 12, LEFT[0])
    write_exit_report(tmp_path, 1, FAILED[1])
    assert list(read_exit_reports(tmp_path).items()) == [(1, FAILED[1]), (12, LEFT[0])]
    assert len(list(tmp_path.iterdir())) == 2
    write_exit_report(tmp_path / "none", 0, LEFT[0])
    assert read_exit_reports(tmp_path / "none") == {}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The run folder of rank 1 of two, whose rank 0 has written its report."""
    monkeypatch.setattr(peers, "gather", lambda mine: ["here", "there"])
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.5)
    (tmp_path / "rank_0.exit_report").write_text(json.dumps(asdict(LEFT[0])), "utf-8")
    return tmp_path


def ended(folder, error):
    """Return what rank 1 raises after `error`."""
    with (
        pytest.raises(LostRankError) as raised,
        watched(folder, World(rank=1, size=2), 6.0, fail=str),
        phase("save"),
    ):
        raise error
    return raised.value


def test_a_rank_that_others_hear_leaves_it_to_the_first_to_speak(folder):
    said = ended(folder, OSError(28, "No space left on device"))
    assert "rank 1 (there) failed in save: OSError: [Errno 28] No space left" in str(said)
    assert SAID_ELSEWHERE in said.__cause__.__notes__


def test_a_rank_whose_disk_takes_no_report_speaks_for_itself(folder):
    (folder / f".rank_1.exit_report.{os.getpid()}").mkdir()  # no draft
    said = ended(folder, OSError(28, "No space left on device"))
    assert "rank 1 (there) failed in save: OSError: [Errno 28] No space left" in str(said)
    assert SAID_ELSEWHERE not in said.__cause__.__notes__


def test_half_a_report_is_read_again(folder, monkeypatch):
    file = folder / "rank_0.exit_report"
    whole = json.dumps(asdict(FAILED[1]))
    file.write_text(whole[:-5], "utf-8")
    monkeypatch.setattr(peers.time, "sleep", lambda _: file.write_text(whole, "utf-8"))
    lost = RuntimeError("[/src/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    assert "rank 0 (here) failed in rollout: OSError: full" in str(ended(folder, lost))


@pytest.mark.parametrize(
    ("error", "is_cause"),
    [
        (RuntimeError("[/src/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by"), False),
        (RuntimeError("[/src/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out"), False),
        (RuntimeError("[Rank 0]: Ranks 1 failed to pass monitoredBarrier in 6000 ms"), False),
        (dist.DistBackendError("NCCL communicator was aborted on rank 2."), False),
        (dist.DistNetworkError("Connection reset by peer"), False),
        (RuntimeError("the judge timed out: connection refused"), True),
        (RuntimeError("the NCCL of this image is too old"), True),
        (dist.DistStoreError("no such key"), True),
    ],
)
def test_only_what_torch_says_of_ranks_means_that_one_did_not_answer(error, is_cause):
    assert ExitReport.of(error).is_cause == is_cause
