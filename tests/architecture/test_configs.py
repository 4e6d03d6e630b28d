"""Every config file is read as a run would read it."""

from tests.architecture.source import ROOT
from trainers.config.files import read


def test_every_config_file_loads_strictly():
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert files, "no config file was found"
    for file in files:
        assert read([file]), file
