"""Checkpoints: what is saved, found, kept and refused."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from trainers.checkpoint import manifest
from trainers.checkpoint import saving as checkpoint
from trainers.checkpoint.loading import find, find_at, load
from trainers.checkpoint.saving import Saver, checkpoint_name
from trainers.distributed.collectives import World
from trainers.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def saver(folder, keep_last=10):
    return Saver(folder, {"who": "test"}, world=World(), keep_last=keep_last)


def save(folder, number, *, keep_last=10, prefix="ppo"):
    state = {"policy": {"w": torch.full((4,), float(number))}, "state": {"iteration": number}}
    name = checkpoint_name(prefix, number)
    return saver(folder, keep_last).save(name, parts=state, own={"rng": [number]})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded(folder):
    path = save(folder, 3)
    loaded = load(path)
    assert torch.equal(loaded.parts["policy"][0]["w"], torch.full((4,), 3.0))
    assert loaded.parts["state"][0] == {"iteration": 3}
    assert loaded.own == {"rng": [3]}
    assert loaded.identity == {"who": "test"}


def test_the_newest_is_found(folder):
    for number in (1, 2, 10):
        save(folder, number)
    assert find(folder, "ppo").number == 10


def test_newest_means_saved_last_not_numbered_highest(folder):
    for number in (10, 20, 15):  # continued from 10 by hand
        save(folder, number)
    assert find(folder, "ppo").number == 15


def test_stages_are_apart(folder):
    save(folder, 5, prefix="sft")
    save(folder, 1)
    assert find(folder, "sft").number == 5
    assert find(folder, "ppo").number == 1


def test_none_is_found_where_none_was_published(folder):
    assert find(folder, "ppo") is None
    (folder / "ppo_000001.tmp").mkdir(parents=True)
    (folder / "notes").mkdir()
    assert find(folder, "ppo") is None


def test_a_broken_one_is_passed_over_and_the_reason_said(folder, caplog):
    save(folder, 1)
    (save(folder, 2) / "state.rank_0.json").unlink()
    found = find(folder, "ppo")
    assert found.number == 1
    assert "ppo_000002: state.rank_0.json is missing" in found.passed_over[0]
    assert "passed over" in caplog.text


def test_progress_is_never_dropped_in_silence(folder):
    (save(folder, 1) / "manifest.json").unlink()
    (save(folder, 2) / "stray").touch()
    with pytest.raises(CheckpointError, match=r"(?s)is whole.*no valid manifest.*stray.*--clean"):
        find(folder, "ppo")


def test_a_given_one_must_be_whole(folder):
    path = save(folder, 7)
    assert find_at(path).number == 7
    (path / "state.rank_0.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state.rank_0.json has 2 bytes.*bare --resume"):
        find_at(path)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_at(folder / "ppo_000009")
    with pytest.raises(CheckpointError, match="its name"):
        find_at(folder)


def test_the_last_k_are_kept(folder):
    for number in range(5):
        save(folder, number, keep_last=2)
    assert names(folder) == ["ppo_000003", "ppo_000004"]


def test_rotation_of_one_stage_leaves_the_other(folder):
    save(folder, 1, prefix="sft")
    for number in range(3):
        save(folder, number, keep_last=1)
    assert names(folder) == ["ppo_000002", "sft_000001"]


def test_only_folders_of_ours_are_removed_and_links_are_not_followed(folder, tmp_path):
    save(folder, 1)
    foreign = folder / "ppo_000000"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    (foreign / "manifest.json").write_text("{}")
    elsewhere = tmp_path / "ppo_000001"
    shutil.move(folder / "ppo_000001", elsewhere)
    (folder / "ppo_000001").symlink_to(elsewhere)
    (folder / ".trash-ppo_000009").symlink_to(elsewhere)
    for number in (2, 3):
        save(folder, number, keep_last=1)
    assert (foreign / "thesis.txt").read_text() == "mine"
    assert (elsewhere / "manifest.json").exists()
    assert "ppo_000002" not in names(folder)


def test_trash_left_by_a_kill_is_swept(folder):
    (folder / ".trash-ppo_000001").mkdir(parents=True)
    (folder / ".trash-ppo_000001" / "half").touch()
    (folder / ".trash-of-the-user").mkdir()
    save(folder, 2)
    assert names(folder) == [".trash-of-the-user", "ppo_000002"]


def test_saving_a_name_again_replaces_it(folder):
    first = save(folder, 4)
    (first / "state.rank_0.json").write_text("broken")
    save(folder, 4)
    assert names(folder) == ["ppo_000004"]
    assert find(folder, "ppo").passed_over == ()


def test_a_draft_left_by_a_kill_is_emptied(folder):
    draft = folder / "ppo_000001.tmp"
    draft.mkdir(parents=True)
    (draft / "old").touch()
    path = save(folder, 1)
    assert not (path / "old").exists()
    assert not draft.exists()


def test_state_folders_are_the_owners_alone(folder):
    path = save(folder, 1)
    assert path.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_mode & 0o777 == 0o700


def refuse(*_):
    raise OSError(28, "No space left on device")


def test_two_failed_saves_are_forgiven_and_the_third_raises(folder, monkeypatch, caplog):
    save(folder, 1)
    monkeypatch.setattr(checkpoint, "write_state", refuse)
    mine = saver(folder)
    assert mine.save("ppo_000002", parts={"a": {}}, own={}) is None
    assert mine.save("ppo_000003", parts={"a": {}}, own={}) is None
    assert (mine.num_failed, "No space left" in caplog.text) == (2, True)
    with pytest.raises(CheckpointError, match=r"ppo_000004 \(rank 0: .*No space left"):
        mine.save("ppo_000004", parts={"a": {}}, own={})
    assert names(folder) == ["ppo_000001"]
    assert find(folder, "ppo").number == 1


def test_a_good_save_forgets_the_failed_ones(folder, monkeypatch):
    mine = saver(folder)
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_state", refuse)
            assert mine.save("ppo_000002", parts={"a": {}}, own={}) is None
        assert mine.save("ppo_000002", parts={"a": {}}, own={}) is not None


def test_a_save_that_must_succeed_raises_at_once(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_state", refuse)
    with pytest.raises(CheckpointError, match="could not save"):
        saver(folder).save("ppo_000002", parts={"a": {}}, own={}, must=True)


def test_a_problem_of_another_rank_fails_the_save_here(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "gather", lambda mine: [mine, "disk full"])
    with pytest.raises(CheckpointError, match=r"\(rank 1: disk full\)"):
        checkpoint.save(
            folder, "ppo_000001", parts={}, own={}, identity={}, world=World(rank=0, size=2)
        )
    assert names(folder) == []


def test_a_rank_that_does_not_see_the_folder_says_so(folder):
    folder.mkdir()
    with pytest.raises(OSError, match="shared filesystem"):
        checkpoint.write_parts(folder / "ppo_000001.tmp", {}, {}, World(rank=1, size=2))


def test_a_listing_that_is_out_of_date_loses_no_file(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda _: ["rank_0.json"])
        path = save(folder, 1)
    assert find_at(path).number == 1
    assert load(path).parts["state"][0] == {"iteration": 1}


def test_a_file_that_is_gone_after_it_was_written_fails_the_save(folder, monkeypatch):
    real = checkpoint.write_state

    def lost(state, draft, part):
        names = real(state, draft, part)
        (draft / names[0]).unlink()
        return names

    monkeypatch.setattr(checkpoint, "write_state", lost)
    with pytest.raises(CheckpointError, match=r"\(rank 0: .*No such file.*rank_0\.json"):
        saver(folder).save("ppo_000001", parts={}, own={}, must=True)
    assert names(folder) == []


def test_one_that_cannot_be_read_is_passed_over(folder, monkeypatch):
    save(folder, 1)
    worn = save(folder, 2) / "policy.rank_0.safetensors"
    real = manifest.fingerprint

    def read(file):
        if file == worn:
            raise OSError(5, "Input/output error")
        return real(file)

    monkeypatch.setattr(manifest, "fingerprint", read)
    found = find(folder, "ppo")
    assert found.number == 1
    assert f"{worn.name} cannot be read: Input/output error" in found.passed_over[0]


def test_short_space_is_noticed_before_writing(folder, monkeypatch):
    save(folder, 1)
    usage = shutil.disk_usage(folder)._replace(free=10)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"10 bytes free in .* needed"):
        saver(folder).save("ppo_000002", parts={}, own={}, must=True)


def test_a_place_that_cannot_be_written_is_an_error_not_a_crash(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Not a directory"):
        saver(tmp_path / "file" / "checkpoints").save("ppo_000001", parts={}, own={}, must=True)


def test_a_rank_that_was_not_there_gets_the_state_of_rank_0(folder):
    assert load(save(folder, 1), rank=3).own == {"rng": [1]}


def test_a_name_outside_the_folder_is_never_written(folder):
    with pytest.raises(AssertionError, match="no checkpoint's name"):
        saver(folder).save("../ppo_000001", parts={}, own={})


def test_files_are_made_durable_before_the_name_appears(folder, monkeypatch):
    happened = []
    monkeypatch.setattr(checkpoint, "fsync", lambda path: happened.append(path.name))
    real = os.rename

    def rename(source, target):
        happened.append(f"rename {Path(target).name}")
        real(source, target)

    monkeypatch.setattr(checkpoint.os, "rename", rename)
    save(folder, 1)
    published = happened.index("rename ppo_000001")
    assert {
        "policy.rank_0.json",
        "policy.rank_0.safetensors",
        "rank_0.json",
        "state.rank_0.json",
    } <= {*happened[:published]}
    assert happened[published + 1] == "checkpoints"


def test_loading_something_else_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load(tmp_path)


def test_warnings_go_to_the_log(folder, caplog):
    caplog.set_level(logging.WARNING)
    save(folder, 1)
    assert caplog.text == ""


def test_a_rotation_that_fails_costs_a_warning_and_not_the_save(folder, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "discard", refuse)
    for number in (1, 2):
        assert save(folder, number, keep_last=1) == folder / f"ppo_{number:06d}"
    assert "could not remove old checkpoints" in caplog.text
