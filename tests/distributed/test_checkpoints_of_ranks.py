"""Ranks share the work of checking a checkpoint, and all find the same."""

from unittest import mock

import pytest
import torch

from tests.distributed.ranks import run_ranks
from trainers.checkpoint import manifest
from trainers.checkpoint.loading import find
from trainers.checkpoint.saving import Saver
from trainers.distributed.collectives import World

SIZE = 2


def saved(folder):
    """Save twice, each rank a part of its own; return what this rank hashed to find the newest."""
    world = World.from_launcher()
    saver = Saver(folder, {}, world=world, keep_last=2)
    for number in (1, 2):
        part = {"x": torch.full((1000,), float(world.rank))}
        saver.save(f"ppo_00000{number}", parts={"policy": part, "critic": part}, own={"n": number})
    with mock.patch.object(manifest, "fingerprint", wraps=manifest.fingerprint) as read:
        found = find(folder, "ppo")
    return found.number, [call.args[0].name for call in read.call_args_list]


def sought(folder):
    """What this rank finds."""
    found = find(folder, "ppo")
    return found.number, found.passed_over


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def test_files_are_hashed_once_and_each_rank_has_as_much_to_read(folder):
    (first, mine), (other, theirs) = run_ranks(saved, folder, size=SIZE, timeout=120)
    assert first == other == 2
    names = {path.name for path in (folder / "ppo_000002").iterdir()} - {"manifest.json"}
    assert sorted(mine + theirs) == sorted(names)
    for files in (mine, theirs):
        assert sum(name.endswith(".safetensors") for name in files) == SIZE


def test_damage_that_one_rank_sees_sends_all_to_the_older_one(folder):
    run_ranks(saved, folder, size=SIZE, timeout=120)
    newest = folder / "ppo_000002"
    for file in sorted(newest.glob("policy.*.safetensors")):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        why = f"{newest}: {file.name} is damaged: its SHA-256 differs"
        assert run_ranks(sought, folder, size=SIZE, timeout=120) == [(1, (why,))] * SIZE
        file.write_bytes(whole)
