"""`llmgym doctor`: a line for each thing, its remedy, and an exit code that a script can use."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys

import pytest

from trainers.cli import doctor
from trainers.cli import main as cli

NAMES = ("Python", "packages", "training", "CPU", "GPU", "compiler", "disk", "memory", "runs")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder, and no variables that say more."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WANDB_MODE", "WANDB_API_KEY", "LLMGYM_DATA", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "builds"))
    return tmp_path


def findings(part):
    return {one.name: one for one in part()}


def test_every_thing_has_a_line_with_its_status(capsys):
    code = cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    found = {line[5:].split()[0]: line.split()[0] for line in lines}
    assert set(found.values()) <= {"ok", "warn", "fail"}
    assert {*NAMES, "W&B", "hub", "data"} <= found.keys()
    assert code == int("fail" in found.values())


def test_json_says_the_same(capsys):
    cli.main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found[0]["name"] == "Python"
    assert found[0].keys() == {"name", "found", "status", "remedy"}


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("1.1", ">=1.1,<2", True),
        ("1.0.9", ">=1.1,<2", False),
        ("2.0", ">=1.1,<2", False),
        ("1.10.0", ">=1.9", True),
        ("2.13.0+cpu", ">=2.10", True),
        ("1.1.0", "==1.1", True),
        ("3", "!=3.0", False),
        ("5", "", True),
    ],
)
def test_versions_are_compared_number_by_number(version, wanted, inside):
    assert doctor.fits(version, wanted) is inside


def test_packages_out_of_their_range_or_missing_are_told_with_the_extra(monkeypatch):
    wanted = ["numpy>=99", "no-such-package>=1; extra == 'train'", "numpy; extra == 'math'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = findings(doctor.packages)
    assert found["packages"].status == "fail"
    assert found["packages"].detail.endswith("is not >=99")
    assert found["packages"].remedy == 'pip install "llmgym-rl"'
    assert str(found["training"]) == (
        'warn training   no-such-package missing  -> pip install "llmgym-rl[train]"'
    )
    assert found["[math]"].status == "ok"


def test_a_checkout_that_is_not_installed_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    (found,) = doctor.packages()
    assert (found.status, found.remedy) == ("warn", "pip install -e .")


def test_online_without_credentials_fails_with_both_ways_out(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    found = findings(doctor.services)["W&B"]
    assert (found.status, found.remedy) == ("fail", "wandb login, or WANDB_MODE=offline")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert findings(doctor.services)["W&B"].status == "ok"


def test_a_hub_that_is_off_and_a_data_folder_that_is_not_there_are_told(place, monkeypatch):
    (place / "hub" / "models--a--b").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(place))
    monkeypatch.setenv("LLMGYM_DATA", str(place / "nope"))
    (hub,) = doctor.hub()
    assert "HF_HUB_OFFLINE is set" in hub.detail
    assert "1 model in" in hub.detail
    assert findings(doctor.services)["data"].status == "warn"


def test_a_hub_is_called_online_only_where_it_takes_a_connection(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(doctor, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        (found,) = doctor.hub()
        assert "takes a connection, 0 models in" in found.detail
    (found,) = doctor.hub()
    assert found.status == "warn"
    assert "takes no connection (Connection refused)" in found.detail
    assert "HF_HUB_OFFLINE=1" in found.remedy
    monkeypatch.setattr(doctor, "getproxies", lambda: {"https": "http://127.0.0.1:9"})
    (found,) = doctor.hub()
    assert "not tried" in found.detail


def test_runs_that_cannot_be_written_fail(monkeypatch, capsys):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = findings(doctor.machine)["runs"]
    assert found.status == "fail"
    assert "cannot be written: Permission denied" in found.detail
    assert "--run.dir DIR" in found.remedy
    assert cli.main(["doctor"]) == 1
    assert "fail runs" in capsys.readouterr().out


def test_a_compiler_that_is_missing_matters_where_deepspeed_is(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    for installed, status, remedy in ((None, "ok", ""), (1, "warn", "install g++ and ninja")):
        monkeypatch.setattr(doctor, "find_spec", lambda name, it=installed: it)
        (found,) = doctor.compilers()
        assert (found.status, found.remedy) == (status, remedy)
        assert "no g++ and no ninja" in found.detail


def test_it_needs_no_torch():
    code = (
        "import sys, importlib.abc\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'wandb'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from trainers.cli import doctor\n"
        "doctor.find_spec = lambda name: None\n"
        "doctor.main([])\n"
    )
    root = os.path.dirname(os.path.dirname(doctor.__file__)) + "/.."
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cores" in done.stdout
