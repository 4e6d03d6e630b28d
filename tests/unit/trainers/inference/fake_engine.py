"""An environment of llama.cpp whose package is `fake_xllamacpp.py`."""

import shutil
import socket
import sys
from pathlib import Path

FAKE = Path(__file__).with_name("fake_xllamacpp.py")


def fake_python(folder):
    """Write an interpreter that finds the fake package, and return its path."""
    packages = folder / "packages"
    packages.mkdir(parents=True)
    shutil.copy(FAKE, packages / "xllamacpp.py")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def free_port():
    """A port that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
