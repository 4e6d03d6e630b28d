"""The wheel: what it carries, and that an empty environment can use it."""

import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from tests.architecture.source import ROOT

pytestmark = pytest.mark.slow
LOADED = "import llmgym, trainers.config as c; print(llmgym.__file__); print(c.CONFIG_ROOT)"


def said(*command, cwd=ROOT):
    """Run a command; give what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of this tree, once."""
    folder = tmp_path_factory.mktemp("wheel")
    said(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("llmgym_rl-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel alone in an empty environment, then lend it our installed libraries."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    said(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return folder


def test_wheel_carries_the_packages_their_types_and_the_presets(wheel):
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = {
        path.relative_to(ROOT).as_posix()
        for top in ("llmgym", "trainers")
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".py", ".typed")
    }
    presets = {
        f"trainers/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("configs/**/*.yaml")
    }
    assert presets
    assert packages | presets <= carried
    assert {name.split("/")[0] for name in carried} == {"llmgym", "trainers"}


def test_installed_wheel_imports_and_finds_its_own_presets(installed, tmp_path):
    package, presets = said(installed / "bin" / "python", "-c", LOADED, cwd=tmp_path).split()
    assert package.startswith(str(installed))
    assert presets.startswith(str(installed))


def test_installed_wheel_answers_help(installed, tmp_path):
    assert "train" in said(installed / "bin" / "llmgym", "--help", cwd=tmp_path)
