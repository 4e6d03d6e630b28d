"""Who a process is among its peers, by what its launcher says."""

import pytest

from trainers.distributed.collectives import World
from trainers.errors import ConfigError

SAID = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
OF_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    for name in (*SAID, *OF_SLURM):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_tasks_of_srun_that_no_launcher_numbers_are_refused(monkeypatch):
    set_all(monkeypatch, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"})
    with pytest.raises(ConfigError) as refused:
        World.from_launcher()
    assert str(refused.value).startswith("srun started 8 tasks, and each would be a run of its own")
    assert str(refused.value).endswith("\nllmgym launch slurm -- quickstart")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": "8"},  # the shell of salloc on the host where it was typed
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # salloc on a node
    ],
)
def test_a_process_is_alone_where_no_launcher_says_otherwise(variables, monkeypatch):
    set_all(monkeypatch, variables)
    assert World.from_launcher() == World()


def test_torchrun_numbers_ranks_also_below_srun(monkeypatch):
    set_all(monkeypatch, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"})
    set_all(monkeypatch, {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"})
    assert World.from_launcher() == World(rank=9, size=16, local_rank=1)
