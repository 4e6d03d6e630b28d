"""The command line is the settings plus two frozen lists: a new verb or option is a decision."""

import dataclasses
import re
import typing

from trainers.cli.main import VERBS
from trainers.cli.train import help_text
from trainers.config import Config

FROZEN_VERBS = [
    "train",
    "sft",
    "reward-model",
    "plan",
    "eval",
    "play",
    "envs",
    "rewards",
    "data",
    "compress",
    "export",
    "bench",
    "serve",
    "report",
    "runs",
    "launch",
    "schema",
    "doctor",
]
FROZEN_OPTIONS = {
    "config",
    "plugins",
    "resume",
    "trust",
    "clean",
    "dry_run",
    "gpus",
    "nodes",
    "json",
    "quiet",
    "data",
    "name",
    "reward",
    "deepspeed_config",
}
LISTED = {"envs", "rewards"}  # their settings stand under the number of an entry, from 0


def fields_of(cls, prefix=""):
    """Give the dotted names of all settings, read from the dataclasses."""
    for name, kind in typing.get_type_hints(cls).items():
        entry = [one for one in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(one)]
        below = f"{prefix}{name}." + ("0." if f"{prefix}{name}" in LISTED else "")
        if entry:
            yield from fields_of(entry[0], below)
        else:
            yield prefix + name


def test_the_verbs_are_the_frozen_ones():
    assert list(VERBS) == FROZEN_VERBS


def test_the_options_are_the_settings_and_the_frozen_ones():
    text = help_text("train", Config())
    offered = {
        name.replace("-", "_")
        for line in text.splitlines()
        for name in re.findall(r"^  (?:-c FILE, )?--([a-z0-9_.-]+)", line)
    }
    assert offered - {*fields_of(Config)} == FROZEN_OPTIONS
    assert {*fields_of(Config)} - offered == set()
