import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.unit.trainers.compress.tiny_models import KINDS, database_of, model_of, rows_of
from trainers.compress.slicing import shortened_lists, slice_model, smaller_config
from trainers.compress.units import dense_plan, geometry_of, uniform_plan
from trainers.errors import ConfigError


def sliced(database, model, plan):
    return slice_model(model, plan, database.variants.variant)


def logits(model, rows):
    with torch.no_grad():
        return model(input_ids=rows.tokens, use_cache=False).logits


CUTS = [
    {"groups": 1, "channels": 24},
    {"groups": 2, "channels": 48, "dropped": [0]},
    {"groups": 3, "channels": 8, "dropped": [3]},
    {"groups": 2, "channels": 16, "dropped": [0, 2]},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama biased"])
def test_a_sliced_model_computes_what_the_padded_candidate_does(kind, cut, tmp_path):
    database, rows = database_of(kind), rows_of(5)
    plan = uniform_plan(database.variants.geometry, **cut)
    smaller = sliced(database, model_of(kind), plan)
    smaller.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    expected = database.logits(plan, rows)[rows.mask]

    assert loaded.config.num_hidden_layers == 4 - len(cut.get("dropped", []))
    torch.testing.assert_close(logits(loaded, rows)[rows.mask], expected, atol=1e-5, rtol=1e-5)
    dense = logits(model_of(kind), rows)[rows.mask]
    assert (dense - expected).abs().max() > 0.1  # something was cut


def test_biases_of_a_llama_are_sliced_and_it_stays_a_llama():
    database, rows = database_of("llama biased"), rows_of(5)
    plan = uniform_plan(database.variants.geometry, groups=4, channels=16, dropped=[1])
    smaller = sliced(database, model_of("llama biased"), plan)
    assert smaller.config.model_type == "llama"
    expected = database.logits(plan, rows)[rows.mask]
    torch.testing.assert_close(logits(smaller, rows)[rows.mask], expected, atol=1e-5, rtol=1e-5)


def test_a_biased_llama_with_heads_that_do_not_divide_its_width_is_refused():
    model = model_of("llama biased")
    plan = uniform_plan(geometry_of(model.config), groups=5, channels=16)
    with pytest.raises(ConfigError, match="Llama with biases needs heads that divide its width 24"):
        smaller_config(model.config, plan)


def test_heads_that_do_not_divide_the_width_make_a_mistral_without_window():
    model = model_of("llama", num_attention_heads=6, num_key_value_heads=6, head_dim=4)
    geometry = geometry_of(model.config)
    odd = smaller_config(model.config, uniform_plan(geometry, groups=5, channels=48))
    assert (odd.model_type, odd.sliding_window, odd.head_dim) == ("mistral", None, 4)
    even = smaller_config(model.config, uniform_plan(geometry, groups=3, channels=48))
    assert (even.model_type, even.head_dim) == ("llama", 4)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_plan_that_changes_nothing_gives_the_same_tensors(kind):
    model, database = model_of(kind), database_of(kind)
    same = sliced(database, model, dense_plan(database.variants.geometry))
    for (name, before), (other, after) in zip(
        model.state_dict().items(), same.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(before, after)


def test_lists_with_an_entry_per_layer_are_kept_in_step():
    model, database = model_of("qwen2"), database_of("qwen2")
    plan = uniform_plan(database.variants.geometry, groups=2, channels=48, dropped=[1, 2])
    smaller = sliced(database, model, plan)
    assert smaller.config.layer_types == ["full_attention", "sliding_attention"]
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1]
    fields = {"num_hidden_layers": 3, "a": [5, 6, 7], "b": (1, 2, 3), "c": [1, 2], "d": 3}
    fields |= {"eos_token_id": [8, 9, 10], "architectures": ["X", "Y", "Z"]}
    assert shortened_lists(fields, (0, 2)) == {"a": [5, 7], "b": [1, 3]}


def test_tied_embeddings_stay_one_tensor(tmp_path):
    database = database_of("llama")
    plan = uniform_plan(database.variants.geometry, groups=2, channels=24, dropped=[1])
    smaller = sliced(database, model_of("llama"), plan)
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight


def test_a_sliced_model_writes_the_same_text_with_a_cache_and_without():
    database = database_of("qwen3")
    plan = uniform_plan(database.variants.geometry, groups=1, channels=24, dropped=[0])
    smaller = sliced(database, model_of("qwen3"), plan)
    prompt = rows_of(6).tokens[:2, :6]
    texts = [
        smaller.generate(
            prompt,
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            use_cache=cached,
            pad_token_id=0,
        )
        for cached in (True, False)
    ]
    assert torch.equal(*texts)


def test_a_family_that_cannot_be_sliced_is_told_which_can():
    config = AutoConfig.for_model("gpt2", n_layer=2)
    with pytest.raises(
        ConfigError, match=r"family gpt2 cannot be sliced\. These can: llama, mistral"
    ):
        geometry_of(config)


def test_heads_that_form_no_equal_groups_are_refused():
    config = AutoConfig.for_model("qwen3", num_attention_heads=6, num_key_value_heads=4)
    with pytest.raises(ConfigError, match="6 attention heads do not form equal groups over 4"):
        geometry_of(config)
