"""An address names what is in a module or a file, and one that leads nowhere is refused."""

from pathlib import Path

import pytest

from llmgym import addresses
from llmgym.errors import PluginError

TOYS = Path(__file__).parent / "toys.py"


def test_an_address_names_a_module_or_a_file():
    assert addresses.load("math:sqrt")(4) == 2.0
    say = addresses.load(f"{TOYS}:say")
    assert addresses.load(f"{TOYS}:say") is say


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("math", "package.module:Name"),
        ("math:sqroot", "did you mean sqrt"),
        ("no_such_module:x", "no_such_module does not load"),
        ("no_such_file.py:x", "There is no file"),
        (f"{TOYS}:gues", "did you mean guess or Guess"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(address, match):
    with pytest.raises(PluginError, match=match):
        addresses.load(address)


def test_a_file_that_breaks_is_refused_and_not_kept(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(PluginError, match="ZeroDivisionError"):
            addresses.load(f"{path}:x")


ODD = {
    "folder.py": "is a folder; an address is file.py:name",
    "loop.py": "is no plain file",
    "x" * 300 + ".py": "There is no file",
    "~nobody/score.py": "There is no file",
    "exits.py": r"exits\.py:2: SystemExit: 0",
    "empty.py": "has no 'score'; it has nothing that can be named",
    "text.txt": r"text\.txt is a file\. A module is named without a path",
    "nosuffix": "nosuffix is a file",
    "./": "is a folder. A module is named without",
    "/dev/null": "/dev/null is a file",
}


@pytest.mark.parametrize("place", ODD)
def test_what_is_no_file_of_python_is_refused_and_ends_no_process(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    for name in ("empty.py", "text.txt", "nosuffix"):
        (tmp_path / name).touch()
    with pytest.raises(PluginError, match=ODD[place]):
        addresses.load(f"{place}:score")
    found = addresses.file_of(f"{place}:score")
    assert found is None or found.name in ("exits.py", "empty.py")
