"""What fails on rank 0 alone is raised on every rank: none waits for one that has left."""

import json
from unittest import mock

import pytest

from tests import tiny
from tests.distributed.ranks import run_ranks
from trainers.config.files import read
from trainers.distributed.collectives import World, from_main, limit_waits
from trainers.errors import BackendError, CheckpointError
from trainers.run_dir import lock as run_lock
from trainers.run_dir.folder import open_run
from trainers.runner.run import run

LEARNS = {
    **tiny.RUN,
    "model.context": 64,
    "data.num_examples": 8,
    "sft.num_epochs": 1,
    "sft.batch_size": 4,
    "ppo.num_iterations": 0,
}


def refuse(*_):
    """Write nothing: the disk is full."""
    raise CheckpointError("cannot write: no space")


def asked_of_main(error):
    """What this rank hears of an error that only rank 0 meets."""

    def work():
        raise error

    try:
        from_main(work)
    except type(error) as heard:
        return repr(heard)
    return "nothing"


def learned(folder, place):
    """What this rank hears when the model cannot be written at `place`."""
    config = read([], {**LEARNS, "run.dir": folder})
    with mock.patch(f"trainers.runner.stages.{place}", refuse):
        try:
            run(config, loggers=[])
        except CheckpointError as error:
            return str(error)
    return "nothing"


@pytest.mark.parametrize(
    "error",
    [OSError(28, "no space"), CheckpointError("a"), ValueError("b"), KeyError("c"), TypeError("d")],
)
def test_an_error_of_rank_0_is_raised_on_every_rank(error):
    assert run_ranks(asked_of_main, error, timeout=120) == [repr(error)] * 2


class Unsendable(Exception):
    """Pickled well, and not read back: it takes two words and remembers one."""

    def __init__(self, file, why):
        super().__init__(f"{file} is {why}")


def met_by_main(why):
    """What this rank hears of an error that is not read back on another."""

    def work():
        raise Unsendable("a.jsonl", why)

    try:
        from_main(work)
    except (Unsendable, BackendError) as heard:
        return f"{type(heard).__name__}: {heard}"


def test_an_error_that_cannot_be_sent_is_told_in_words():
    main, other = run_ranks(met_by_main, "torn", timeout=120)
    assert main == "Unsendable: a.jsonl is torn"
    assert other == f"BackendError: rank 0 failed: {main}"


@pytest.mark.parametrize("place", ["sft.export_policy", "ppo_text.copy_export"])
def test_a_model_that_rank_0_cannot_write_ends_the_run_on_every_rank(tmp_path, place):
    said = run_ranks(learned, str(tmp_path), place, timeout=120)
    assert said == ["cannot write: no space"] * 2


def opened_after_a_lost_rank_0(folder):
    """Which attempt it is, where the lock of another host is watched for longer than ranks wait."""
    limit_waits(1.0)
    config = read([], {"run.dir": folder, "run.name": "a"})
    with mock.patch.multiple(run_lock, STILL_FOR=4.0, LOCK_POLL_SECONDS=0.2):
        run = open_run(config, resume=True, clean=False, command=(), world=World.from_launcher())
    run.close()
    return run.attempt


def test_ranks_wait_for_the_lock_of_another_host_whatever_their_time_out(tmp_path):
    lock = tmp_path / "a" / "run.lock"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}), "utf-8")
    assert run_ranks(opened_after_a_lost_rank_0, str(tmp_path), timeout=120) == [1, 1]
    assert not lock.exists()
