"""Damage is noticed wherever it is, and nothing that is loaded is executed."""

import json
import pickle
import random
from pathlib import Path

import pytest

from tests.faults.savers import number_found, save
from trainers.checkpoint.loading import load, verify
from trainers.checkpoint.manifest import fingerprint, write_manifest

FILES = (
    "policy.rank_0.json",
    "policy.rank_0.safetensors",
    "state.rank_0.json",
    "rank_0.json",
    "manifest.json",
)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, 1, keep_last=2)
    save(tmp_path, 2, keep_last=2)
    return tmp_path


def truncate(file, rng):
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def flip(file, rng):
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def delete(file, _):
    file.unlink()


def lengthen(file, _):
    file.write_bytes(file.read_bytes() + b" ")


def test_the_files_are_those_that_are_damaged_below(folder):
    assert {path.name for path in (folder / "ppo_000002").iterdir()} == {*FILES}


@pytest.mark.parametrize("damage", [truncate, flip, delete, lengthen])
@pytest.mark.parametrize("file", FILES)
def test_damage_to_any_file_sends_the_resume_to_the_older_one(folder, file, damage):
    rng = random.Random(0)
    path = folder / "ppo_000002" / file
    whole = path.read_bytes()
    assert number_found(folder) == 2
    for _ in range(60):
        damage(path, rng)
        assert number_found(folder) == 1
        path.write_bytes(whole)
    assert number_found(folder) == 2


def test_a_file_too_many_sends_the_resume_to_the_older_one(folder):
    (folder / "ppo_000002" / "rank_1.json").write_text("{}")
    assert number_found(folder) == 1


def test_damage_to_all_is_an_error_that_names_each(folder):
    for name in ("ppo_000001", "ppo_000002"):
        flip(folder / name / "policy.rank_0.safetensors", random.Random(1))
    said = number_found(folder)
    assert said.count("policy.rank_0.safetensors is damaged") == 2


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("file", ["policy.rank_0.safetensors", "policy.rank_0.json", "rank_0.json"])
def test_a_pickle_in_a_checkpoint_is_not_run(folder, tmp_path, file):
    target = tmp_path / "it_ran"
    bomb = pickle.dumps(Bomb(target))
    path = folder / "ppo_000002"
    (path / file).write_bytes(bomb)
    body = json.loads((path / "manifest.json").read_text())
    body["files"][file] = fingerprint(path / file)
    del body["sha256"]
    write_manifest(path, body)  # who can write the folder can write the hashes
    assert verify(path) is None
    with pytest.raises(Exception):  # noqa: B017, PT011 - any, as long as nothing runs
        load(path)
    assert not target.exists()
    pickle.loads(bomb)
    assert target.exists(), "the bomb is a dud, so this test shows nothing"
