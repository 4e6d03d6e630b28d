"""Where a test finds a real browser."""

import shutil
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Give a Chromium of the system, or the one that playwright has installed."""
    own = Path.home().glob(".cache/ms-playwright/chromium-*/chrome-linux*/chrome")
    found = [path for name in NAMES if (path := shutil.which(name))]
    return next(iter([*found, *map(str, sorted(own))]), None)
