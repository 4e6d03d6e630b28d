"""The pages of the documentation, cut into what the tests look at."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIRST = ["README.md", "docs/start/*.md", "docs/guides/*.md"]
START = [page for one in FIRST for page in sorted(ROOT.glob(one))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(page):
    """A page by its path in the checkout."""
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """The fenced blocks of a page in these languages."""
    found = FENCE.findall(page.read_text("utf-8"))
    return [text for language, text in found if language in languages]


def prose(page):
    """The text of a page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def quoted(page):
    """Everything that stands between backticks in a page's text."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page):
    """Every command of a page, as words: lines of bash blocks, and what is quoted in its text."""
    for text in blocks(page, "bash", "console"):
        lines = text.replace("\\\n", " ").splitlines()
        yield from filter(None, (shlex.split(line, comments=True) for line in lines))
    for text in quoted(page):
        if text.startswith("llmgym "):
            yield shlex.split(text)
        elif re.match(r"--[\w.-]+ \S", text):
            yield ["llmgym", "train", *shlex.split(text)]
