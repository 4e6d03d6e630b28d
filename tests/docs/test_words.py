"""What the pages name exists, and what exists is named."""

import inspect
import re

import pytest

import llmgym.errors
import trainers.errors
from llmgym.envs import BUILT_IN, NUMERIC
from scripts import env_pages
from tests.docs.pages import PAGES, ROOT, name, prose, quoted
from trainers.cli.main import VERBS
from trainers.config import schema
from trainers.config.files import parse, presets

EVERYTHING = "\n".join(page.read_text("utf-8") for page in PAGES)
SECTION = "|".join(schema.names(()))
SETTING = re.compile(rf"(?:--)?((?:{SECTION})\.[a-z_0-9-]+(?:\.[a-z_0-9-]+)*)(?=[\s:=]|$)")
FILES = (".py", ".md", ".yaml", ".jsonl", ".lock")
COLUMNS = {"reward_model.ground_truth"}
"""Of the rows of other trainers."""
METRICS = re.compile(r"^\| `([a-z_]+/[^`]+)`", re.MULTILINE)
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def test_the_pages_of_environments_are_current():
    assert env_pages.stale() == [], "python scripts/env_pages.py writes them"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_resolves(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page))
    ours = [link for link in links if "://" not in link]
    assert [link for link in ours if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_setting_that_is_named_exists(page):
    found = [one for text in quoted(page) for one in SETTING.findall(text)]
    named = {one.replace("-", "_") for one in found if not one.endswith(FILES)}
    assert {one for one in named - COLUMNS if schema.at(parse(one)) is None} == set()


def test_every_test_that_is_named_exists():
    named = TEST.findall(EVERYTHING)
    assert named, "no page names a test"
    for path, test in named:
        file = ROOT / "tests" / path.removeprefix("tests/")
        assert re.search(rf"^def {test}\(", file.read_text("utf-8"), re.MULTILINE), test


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_metric_that_is_named_is_explained(page):
    explained = METRICS.findall((ROOT / "docs" / "metrics.md").read_text("utf-8"))
    sections = "|".join({key.split("/")[0] for key in explained})
    keys = {key for key in quoted(page) if re.fullmatch(rf"({sections})/[a-z_{{}}0-9/]+", key)}
    folders = {key for key in keys if (ROOT / key).exists()}
    assert keys - folders - set(explained) == set()


def test_every_phase_that_is_timed_is_explained():
    code = "".join(file.read_text("utf-8") for file in (ROOT / "trainers").rglob("*.py"))
    phases = re.findall(r'phases\.of\("(\w+)"\)|phases\.move\("\w+", "(\w+)"', code)
    timed = {one or other for one, other in phases}
    (row,) = re.findall(r"^\| `timing_s/\{phase\}` \|.*$", EVERYTHING, re.MULTILINE)
    assert timed > {"rollout", "sync"}
    assert {phase for phase in timed if not re.search(rf"\b{phase}\b", row)} == set()


def test_every_page_of_results_is_in_their_index():
    folder = ROOT / "docs" / "results"
    index = (folder / "README.md").read_text("utf-8")
    pages = {page.name for page in folder.glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_shown(verb):
    assert f"llmgym {verb}" in EVERYTHING


@pytest.mark.parametrize("env_id", [env_id for env_id, *_ in (*BUILT_IN, *NUMERIC)])
def test_every_environment_is_shown(env_id):
    assert env_id in EVERYTHING


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_shown(preset):
    assert re.search(rf"`{preset}`|llmgym train {preset}\b", EVERYTHING)


@pytest.mark.parametrize("module", [llmgym.errors, trainers.errors], ids=lambda one: one.__name__)
def test_every_error_is_explained(module):
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    own = [cls for _, cls in inspect.getmembers(module, inspect.isclass)]
    names = [cls.__name__ for cls in own if cls.__module__ == module.__name__]
    assert names
    assert [one for one in names if one not in text] == []


def test_every_setting_of_ppo_is_in_the_page_of_ppo():
    text = (ROOT / "docs" / "ppo.md").read_text("utf-8")
    settings = [f"ppo.{one}" for one in schema.names(("ppo",))]
    assert [one for one in settings if not re.search(rf"{one}\b", text)] == []
