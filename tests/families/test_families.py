"""Families of models are exact through rollout, update, export and load, with either critic."""

import pytest
import torch

from tests.families.families import FAMILIES, PAGE, family_config, measure
from tests.unit.trainers.models.families import ragged_inputs
from trainers.errors import ConfigError
from trainers.models.causal_lm import body_of, hidden_states
from trainers.models.miniature import MINIATURE_ERRORS, miniature
from trainers.models.packing import pack_rows

ALWAYS = (
    "gemma3", "gpt_oss", "granitemoehybrid", "lfm2", "llama4_text", "mamba2", "minimax", "phi3",
    "qwen3_5_text", "qwen3_next",
)  # fmt: skip
LEAST = 60
"""Families that must pass everything; those refused do not count."""


@pytest.mark.parametrize("name", ALWAYS)
def test_a_family_is_exact_through_rollout_update_export_and_load(tmp_path, name):
    found = measure(name, tmp_path)
    assert found.passes, found.line()
    assert found.line() in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted({*FAMILIES} - {*ALWAYS}))
def test_every_family_does_what_its_row_of_the_page_says(tmp_path, name):
    cells = measure(name, tmp_path).line().split("|")[:-2]
    assert "|".join(cells) in PAGE.read_text(encoding="utf-8")


def test_the_page_has_a_row_for_every_family_and_enough_of_them_pass():
    rows = [one for one in PAGE.read_text(encoding="utf-8").splitlines() if one.startswith("| `")]
    assert [one.split("`")[1] for one in rows] == list(FAMILIES)
    assert sum("| yes | yes |" in one for one in rows) >= LEAST


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_are_packed_where_a_family_computes_the_same_of_them():
    packing = []
    inputs, mask = ragged_inputs()
    for name in FAMILIES:
        try:
            model = miniature(family_config(name))
            padded = hidden_states(body_of(model), inputs).detach()
        except (ConfigError, *MINIATURE_ERRORS):  # no small model, or none that runs alone
            continue
        if pack_rows(model):
            packing.append(name)
            found = hidden_states(body_of(model), inputs)
            torch.testing.assert_close(
                found[:, 1:][mask], padded[:, 1:][mask], atol=1e-3, rtol=1e-3
            )
    assert {"llama", "qwen3", "phi3", "mixtral", "gpt2"} <= {*packing}
    assert len(packing) >= LEAST
