"""Every config file is read as a run would read it."""

from tests.architecture.source import ROOT
from trainers.config_files import read


def test_every_config_file_loads_strictly():
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        assert read([file]), file
