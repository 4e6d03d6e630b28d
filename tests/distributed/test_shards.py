"""Weights that are shared out while they load are those of a whole load, and are never whole."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests import tiny
from tests.distributed import shards
from tests.distributed.ranks import run_ranks
from tests.unit.trainers.models.families import FAMILIES, family_model
from trainers.models.critic_folders import build_critic, save_critic
from trainers.models.loading import load_causal_lm
from trainers.models.shards import Shard, shared_out

MIB = 2**20
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CASES = [
    (3, offload, learns, dtype)
    for offload in ("none", "params")
    for learns in ("separate", "shared", "lora", "lora shared")
    for dtype in ("float32", "bfloat16")
]


def saved(folder, family):
    """A folder of this family in several files, and one of a critic whose head has learned."""
    model = family_model(family)
    model.save_pretrained(folder / family, max_shard_size="20KB")
    critic = build_critic(model)
    nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(3))
    (folder / f"{family} critic").mkdir()
    save_critic(folder / f"{family} critic", critic.trunk, critic.head)
    return str(folder / family), str(folder / f"{family} critic")


def edited(folder, change=lambda found: found, **settings):
    """A folder of a tiny Llama, its tensors and its settings changed."""
    tiny.llama().save_pretrained(folder)
    file, said = folder / "model.safetensors", folder / "config.json"
    save_file(change(load_file(file)), file, {"format": "pt"})
    given = json.loads(said.read_text(encoding="utf-8")) | settings
    said.write_text(json.dumps(given), encoding="utf-8")
    return str(folder)


@pytest.mark.deepspeed
def test_every_family_loads_as_it_does_whole_to_the_last_bit(tmp_path):
    pairs = [saved(tmp_path, family) for family in FAMILIES]
    for found in run_ranks(shards.loaded, pairs):
        assert len(found) == len(FAMILIES)
        for folder, result in found.items():
            assert not any(result.values()), (folder, result)


def assert_equal_steps(pairs, timeout):
    for found in run_ranks(shards.stepped, pairs, timeout=timeout):
        for pair in pairs:
            (figures, weights), (expected, wanted) = found[pair]
            assert figures == expected, pair
            assert weights.keys() == wanted.keys()
            assert all(torch.equal(weights[name], wanted[name]) for name in wanted), pair


@pytest.mark.deepspeed
def test_engines_learn_and_references_answer_as_after_a_whole_load(tmp_path):
    llama, gpt2 = (saved(tmp_path, family)[0] for family in ("llama", "gpt2"))
    assert_equal_steps(
        [
            (llama, (3, "none", "separate", "float32")),
            (gpt2, (3, "params", "lora", "bfloat16")),
        ],
        timeout=280,
    )


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_engines_learn_the_same_wherever_weights_lie_and_whatever_learns(tmp_path, family):
    folder = saved(tmp_path, family)[0]
    assert_equal_steps([(folder, case) for case in CASES], timeout=800)


@pytest.mark.deepspeed
def test_no_rank_holds_more_than_its_share_and_a_few_tensors(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, num_attention_heads=8, **sizes))
    model.save_pretrained(tmp_path, max_shard_size="30MB")
    size = 4 * model.num_parameters()
    largest = 4 * 4096 * 512
    for loading, placing in run_ranks(shards.growth, str(tmp_path)):
        assert loading > size / 4, "it is measured"
        assert loading < size / 2 + 3 * largest
        assert placing < 6 * largest < size / 3, "shards become DeepSpeed's one at a time"


@pytest.mark.deepspeed
def test_ranks_that_read_different_weights_are_refused(tmp_path):
    one = edited(tmp_path / "one")
    other = edited(tmp_path / "other", lambda found: found | {HEAD: found[HEAD] + 1e-3})
    said = run_ranks(shards.said_to_each, [one, other])
    assert all("Give every host the same folder" in message for message in said)
    assert said[0].startswith("rank 1 reads other weights than rank 0")


def without(name):
    return lambda found: {key: value for key, value in found.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.norm.weight"), r"model\.norm\.weight \(1 missing.*Copy the folder again"),
        (lambda found: found | {"odd": torch.ones(2)}, r"odd \(1 unknown to its config\.json\)"),
        (
            lambda found: found | {HEAD: torch.ones(3, 32)},
            r"lm_head\.weight \(1 missing or of another shape\)",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_other_weights_than_the_model_has_are_refused(tmp_path, change, message):
    folder = edited(tmp_path / "model", change)
    with pytest.raises(ValueError, match=message):
        load_causal_lm(folder)
    with pytest.raises(ValueError, match=message), shared_out():
        load_causal_lm(folder)


def test_a_head_that_is_tied_and_saved_twice_is_one_weight_or_an_error(tmp_path):
    twice = edited(
        tmp_path / "twice",
        lambda found: found | {HEAD: found[EMBEDDING].clone()},
        tie_word_embeddings=True,
    )
    for load in (load_causal_lm, shared):
        model = load(twice)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    apart = edited(tmp_path / "apart", tie_word_embeddings=True)
    for load in (load_causal_lm, shared):
        with pytest.raises(ValueError, match=r"tie_word_embeddings.*two that differ.*to false"):
            load(apart)


def shared(folder):
    with shared_out():
        return load_causal_lm(folder)


def test_what_computes_with_a_shard_by_mistake_gets_nan(tmp_path):
    tiny.llama().save_pretrained(tmp_path)
    model = shared(str(tmp_path))
    assert all(isinstance(one, Shard) and one.isnan().all() for one in model.parameters())
    assert not model(torch.tensor([[1, 2, 3]])).logits.isfinite().any()
