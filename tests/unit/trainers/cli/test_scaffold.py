"""`llmgym envs new`: the package it writes installs, passes its own tests, and can be trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_model
from trainers.cli import main as cli
from trainers.cli.scaffold import checked_name, files_of, id_of, scaffold
from trainers.errors import ConfigError

ROOT = Path(__file__).parents[4]
SHORT = {
    "--ppo.num-iterations": "1",
    "--ppo.num-prompts": "2",
    "--ppo.samples-per-prompt": "2",
    "--ppo.num-epochs": "1",
    "--generation.max-new-tokens": "2",
    "--generation.max-prompt-tokens": "60",
    "--eval.num-tasks": "2",
    "--log.wandb.enabled": "false",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Write a package, install it into a folder of its own; give both folders."""
    parent = tmp_path_factory.mktemp("work")
    package, site = scaffold("opposites", parent), parent / "site"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", site]
    command = [sys.executable, "-m", "pip", "install", *options, package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return package, site


def said(installed, *words):
    """Run Python where the package is installed; give what it printed."""
    package, site = installed
    path = os.pathsep.join(map(str, (site, ROOT)))
    done = subprocess.run(
        [sys.executable, *words],
        cwd=package,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_passes_its_own_tests(installed):
    assert "6 passed" in said(installed, "-m", "pytest", "-q", "tests")


def test_its_id_is_there_wherever_it_is_installed_and_keeps_the_contract(installed):
    check = said(installed, "-m", "trainers.cli", "envs", "check", "opposites/Opposites-v0")
    assert check == "opposites/Opposites-v0: ok\n"
    assert "opposites/Opposites-v0  words" in said(
        installed, "-m", "trainers.cli", "envs", "list", "opposites"
    )


def test_it_can_be_trained_on(installed):
    package, _ = installed
    save_model(package / "model")
    words = [word for pair in SHORT.items() for word in pair]
    target = ["--envs.0.id", "opposites/Opposites-v0", "--model.path", "model", "--name", "a"]
    shown = said(installed, "-m", "trainers.cli", "train", *target, *words)
    assert "Next" in shown
    metrics = (package / "runs" / "a" / "metrics.jsonl").read_text("utf-8")
    assert '"rewards/right/mean"' in metrics
    assert '"env/opposites/Opposites-v0/success"' in metrics


def test_the_command_lists_what_it_wrote_and_what_comes_next(tmp_path, capsys):
    assert cli.main(["envs", "new", "my_words", "--dir", str(tmp_path / "deep")]) == 0
    printed = capsys.readouterr().out
    for path in files_of("my_words"):
        assert str(tmp_path / "deep" / "my_words" / path) in printed
        assert (tmp_path / "deep" / "my_words" / path).is_file()
    assert "llmgym envs check my_words/MyWords-v0" in printed
    assert [one.name for one in (tmp_path / "deep").iterdir()] == ["my_words"]


def test_what_exists_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert cli.main(["envs", "new", "mine", "--dir", str(tmp_path)]) == 2
    assert (
        "mine exists. Choose another name, or another folder: --dir DIR" in capsys.readouterr().err
    )
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my-env", "Did you mean my_env?"),
        ("MyEnv", "Did you mean myenv?"),
        ("2nd", "is no name of a package"),
        ("", "is no name of a package"),
        ("../up", "Did you mean up?"),
        ("class", "is no name of a package"),
        ("json", "is the name of a package that is there already"),
        ("llmgym", "llmgym envs new my_llmgym"),
    ],
)
def test_a_name_that_no_package_can_have_is_refused(name, says):
    with pytest.raises(ConfigError) as caught:
        checked_name(name)
    assert says in str(caught.value)


def test_an_id_is_made_of_the_name():
    assert id_of("my_first_env") == "my_first_env/MyFirstEnv-v0"


def test_a_package_of_several_turns_passes_its_own_tests_and_says_how_it_is_made(tmp_path):
    package = scaffold("hinted", tmp_path, turns=True)
    path = os.pathsep.join(map(str, (package, ROOT)))
    command = [sys.executable, "-m", "pytest", "-q", "tests"]
    options = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run(command, cwd=package, env=os.environ | {"PYTHONPATH": path}, **options)
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert "`reply` answers a response" in (package / "README.md").read_text()
    assert "`score`" not in (package / "README.md").read_text()
    assert set(files_of("hinted")) == set(files_of("hinted", turns=True))
