"""Former names of modules: each says where the module is now."""

import importlib

import pytest

import trainers


@pytest.mark.parametrize("former", sorted(trainers.MOVED))
def test_a_former_name_says_the_new_one_which_exists(former):
    new = f"trainers.{trainers.MOVED[former]}"
    with pytest.raises(ModuleNotFoundError, match=rf"^trainers\.{former} is now {new}$"):
        importlib.import_module(f"trainers.{former}")
    assert importlib.import_module(new)


def test_a_name_that_never_was_is_not_found_as_anywhere():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'trainers\.never'"):
        importlib.import_module("trainers.never")


def test_what_the_pages_of_0_1_import_still_is_there():
    tasks = importlib.import_module("llmgym.tasks")
    rows = importlib.import_module("llmgym.rows")
    ppo = importlib.import_module("trainers.ppo")
    assert tasks.from_file is importlib.import_module("llmgym.data.tasks").from_file
    assert rows.Columns is importlib.import_module("llmgym.data.rows").Columns
    assert ppo.gae is importlib.import_module("trainers.functional.advantages").gae
