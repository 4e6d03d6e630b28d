import pytest
from transformers import AutoConfig

from tests.unit.trainers.compress.tiny_models import model_of
from trainers.compress.units import (
    KINDS,
    Choice,
    SizePlan,
    dense_plan,
    geometry_of,
    uniform_plan,
    uniform_sizes,
)
from trainers.errors import ConfigError


def smollm2(multiple=8):
    config = AutoConfig.for_model(
        "llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    return geometry_of(config, multiple=multiple)


def test_sizes_are_snapped_down_to_whole_groups_and_multiples():
    geometry = smollm2()
    assert [geometry.snapped("attention", level) for level in (0, 0.25, 0.5, 0.75, 1)] == [
        0, 1, 1, 2, 3,
    ]  # fmt: skip
    assert geometry.sizes("attention") == (0, 1, 2, 3)
    assert [geometry.snapped("mlp", level) for level in (0, 0.375, 0.5, 1)] == [0, 576, 768, 1536]
    assert smollm2(multiple=128).snapped("mlp", 0.375) == 512


@pytest.mark.parametrize("level", [1e-9, 0.01])
def test_a_level_above_zero_keeps_something(level):
    geometry = smollm2()
    assert geometry.snapped("attention", level) == 1
    assert geometry.snapped("mlp", level) == 8


def test_parameters_are_those_of_the_model():
    model = model_of("mistral")
    geometry = geometry_of(model.config)
    units = sum(geometry.parameters(kind, geometry.full(kind)) for kind in KINDS) * 4
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert units + geometry.embedding_parameters + norms == total
    assert geometry.kv_numbers("attention", 2) == 2 * 8 * 2


def test_plans_know_their_layers():
    geometry = geometry_of(model_of().config)
    plan = uniform_plan(geometry, groups=2, channels=24, dropped=[1])
    assert plan.kept == (0, 2, 3)
    assert plan.layers[0] == (Choice(2), Choice(24))
    assert uniform_sizes(plan) == (2, 24)
    assert uniform_sizes(dense_plan(geometry)) == (3, 48)


def test_plans_that_no_plain_folder_holds_are_refused():
    geometry = geometry_of(model_of().config)
    mixed = SizePlan((Choice(2), Choice(24), *dense_plan(geometry).choices[2:]))
    half = SizePlan((Choice(0), Choice(48)) * 4)
    for plan in (mixed, half):
        with pytest.raises(ConfigError, match="a plain folder holds layers of one shape"):
            uniform_sizes(plan)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"groups": 4, "channels": 8}, "attention of a layer has sizes from 1 to 3, got 4"),
        ({"groups": 1, "channels": 0}, "mlp of a layer has sizes from 1 to 48, got 0"),
        ({"groups": 1, "channels": 8, "dropped": [0, 1, 2, 3]}, "leave one"),
        ({"groups": 1, "channels": 8, "dropped": [7]}, "name layers that exist"),
    ],
)
def test_sizes_and_layers_that_the_model_has_not_are_refused(cut, message):
    with pytest.raises(ConfigError, match=message):
        uniform_plan(geometry_of(model_of().config), **cut)
