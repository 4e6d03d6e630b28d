"""Every setting, written wrongly, is refused with its right name."""

import pytest

from tests.unit.trainers.config.refusal import refused
from trainers.config import schema

LEAVES = [leaf for leaf in schema.leaves() if leaf[-1] not in ("kwargs", "options")]


@pytest.mark.parametrize("leaf", LEAVES, ids=schema.dotted)
def test_a_misspelt_setting_is_refused_with_the_right_name(leaf):
    *parent, name = leaf
    for wrong in (name + name[-1], f"{name}x", name[:1] + name):
        assert wrong not in schema.names(tuple(parent))
        said = refused([], {schema.dotted((*parent, wrong)): 1})
        assert f"Did you mean {schema.dotted(leaf)}?" in said


@pytest.mark.parametrize("leaf", LEAVES, ids=schema.dotted)
def test_a_value_of_no_possible_kind_is_refused_by_name(leaf):
    assert refused([], {schema.dotted(leaf): {"a": 1}}).startswith(schema.dotted(leaf))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "ppo.learning_rate"),
        ("epochs", "ppo.num_epochs"),
        ("batch_size", "ppo.num_prompts"),
        ("seed", "run.seed"),
        ("sft.lr", "sft.learning_rate"),
        ("ppo.vf_coef", "ppo.value_coef"),
        ("ppo.clip_range", "ppo.clip_low"),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_ours(name, meant):
    assert f"Did you mean {meant}?" in refused([], {name: 1})


def test_every_synonym_names_a_setting():
    for meant in schema.SYNONYMS.values():
        path = tuple(int(part) if part.isdigit() else part for part in meant.split("."))
        assert schema.at(path) is not None
