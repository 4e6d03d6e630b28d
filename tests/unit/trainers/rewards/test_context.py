"""How many tokens a model takes, whatever its family calls them."""

import sys

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from llmgym.rewards.context import longest_sequence, rope_limit
from trainers.errors import ConfigError
from trainers.models.loading import check_context

HALF = 48
LONG = {"rope_type": "longrope", "short_factor": [1.0] * HALF, "long_factor": [2.0] * HALF}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "max_position_embeddings"),
        ("gpt2", "n_positions"),
        ("gpt_bigcode", "n_positions"),
        ("gptj", "n_positions"),
        ("openai-gpt", "n_positions"),
        ("dbrx", "max_seq_len"),
        ("mpt", "max_seq_len"),
        ("kimi_linear", "model_max_length"),
        ("rwkv", "context_length"),
    ],
)
def test_the_context_is_found_under_the_name_of_the_family(family, name):
    assert longest_sequence(CONFIG_MAPPING[family](**{name: 48})) == 48


@pytest.mark.parametrize("family", ["bloom", "mamba", "mamba2", "xlnet"])
def test_positions_without_an_end_have_no_limit(family):
    assert longest_sequence(CONFIG_MAPPING[family]()) == sys.maxsize


def test_rope_that_turns_by_the_longest_row_ends_a_row_where_it_begins_to():
    phi = {"max_position_embeddings": 256, "original_max_position_embeddings": 32}
    long = AutoConfig.for_model("phi3", rope_parameters={**LONG, "rope_theta": 1e4}, **phi)
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    ntk = AutoConfig.for_model("llama", max_position_embeddings=40, rope_parameters=dynamic)
    by_layer = {
        "full_attention": dynamic,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    mixed = CONFIG_MAPPING["gemma3_text"](max_position_embeddings=24, rope_parameters=by_layer)

    assert (longest_sequence(long), rope_limit(long)) == (32, 32)
    assert (longest_sequence(ntk), rope_limit(ntk)) == (40, 40)
    assert rope_limit(mixed) == 24


@pytest.mark.parametrize("kind", ["default", "linear", "yarn"])
def test_rope_that_does_not_look_at_rows_sets_no_limit(kind):
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4}
    config = AutoConfig.for_model("llama", max_position_embeddings=40, rope_parameters=rope)
    assert rope_limit(config) is None
    assert longest_sequence(config) == 40


def test_a_run_that_could_cross_the_length_of_rope_is_refused_with_its_figures():
    sizes = {"max_position_embeddings": 256, "original_max_position_embeddings": 32}
    config = AutoConfig.for_model("phi3", rope_parameters={**LONG, "rope_theta": 1e4}, **sizes)

    check_context(config, 20, 12)
    with pytest.raises(ConfigError, match=r"20 .* 13 = 33 exceeds 32 tokens, .* RoPE .* Lower one"):
        check_context(config, 20, 13)
