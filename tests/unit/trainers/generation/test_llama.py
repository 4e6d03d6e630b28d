"""The forward of Llama's layout writes what the model's own forward, without a cache, would."""

import copy

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainers.config import LoRAConfig
from trainers.generation import llama
from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.kv_cache import COLUMNS, SharedColumns
from trainers.generation.transformers import TransformersGenerator
from trainers.models.adapters import adapt
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic import SharedActorCritic

VOCAB = 60
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama3": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"hidden_act": "gelu"}),
}


def make(name="llama", **changes):
    """A small model of a family, with heads that share keys, and no weight at its usual value."""
    torch.manual_seed(0)
    kind, config, special = FAMILIES[name]
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }
    model = kind(config(**sizes | special | changes)).eval()
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name or "bias" in parameter_name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model


def generator(policy, *, batch_size=64, eos=(), autocast=None, weights="shared"):
    if not isinstance(policy, SharedActorCritic):
        policy = CausalPolicy(policy, temperature=1.0, chunk=512)
    return TransformersGenerator(
        GeneratorParts(
            policy=policy,
            eos_token_ids=eos,
            pad_token_id=0,
            batch_size=batch_size,
            autocast=autocast,
            weights=weights,
        )
    )


def requests(count=14, *, groups=1, new=40):
    return [
        Request(
            token_ids=[3 + (5 * (i // groups) + j) % 50 for j in range(1 + (i // groups) * 7 % 11)],
            index=i,
            position=i % 3,
            max_new_tokens=1 + i * 17 % new,
        )
        for i in range(count)
    ]


def worst(model, asked, responses, temperature=1.0):
    """The largest difference to log-probabilities of a full forward of each row alone."""
    found = 0.0
    for request, response in zip(asked, responses, strict=True):
        tokens = torch.tensor([[*request.token_ids, *response.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits[0].double() / temperature
        logprobs = logits.log_softmax(-1)
        for at, token in enumerate(response.token_ids, len(request.token_ids) - 1):
            found = max(
                found,
                abs(
                    float(logprobs[at, token]) - response.logprobs[at + 1 - len(request.token_ids)]
                ),
            )
    return found


@pytest.fixture
def fast_only(monkeypatch):
    """Fail where the general path would write."""
    monkeypatch.setattr(TransformersGenerator, "_write_batch", None)


@pytest.mark.usefixtures("fast_only")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("batch_size", [64, 5])
def test_logprobs_are_those_of_a_full_forward_for_ragged_and_refilled_rows(name, batch_size):
    model, asked = make(name), requests()
    responses = generator(model, batch_size=batch_size).generate(asked, Sampling(temperature=0.7))
    assert [len(one.token_ids) for one in responses] == [one.max_new_tokens for one in asked]
    assert worst(model, asked, responses, 0.7) < 1e-4


@pytest.mark.usefixtures("fast_only")
def test_rows_draw_the_same_in_every_batch_and_order():
    model, asked = make(), requests(20, groups=3)
    sampling = Sampling(seed=4, iteration=2)
    together = generator(model, eos=(5, 9)).generate(asked, sampling)
    assert {one.finish_reason for one in together} == {"stop", "length"}
    alone = [generator(model, eos=(5, 9)).generate([one], sampling)[0] for one in asked]
    backwards = generator(model, batch_size=7, eos=(5, 9)).generate(asked[::-1], sampling)[::-1]
    for other in (alone, backwards):
        assert [one.token_ids for one in other] == [one.token_ids for one in together]


def test_it_draws_what_the_general_path_draws(monkeypatch):
    model, asked = make("qwen3"), requests(20, groups=2)
    fast = generator(model, batch_size=8).generate(asked, Sampling())
    monkeypatch.setattr("trainers.generation.transformers.has_layout", lambda model: False)
    general = generator(model, batch_size=8).generate(asked, Sampling())
    for one, other in zip(fast, general, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("is_fast", [True, False])
def test_the_prompt_of_a_group_is_read_once(monkeypatch, is_fast):
    model, read = make(), []
    real = torch.nn.functional.embedding

    def counted(tokens, *rest):
        read.append(tokens.numel())
        return real(tokens, *rest)

    asked = [Request(token_ids=[3, 4, 5, 6 + i // 4], index=i, max_new_tokens=3) for i in range(12)]
    writer = generator(model)
    if is_fast:
        writer.generate(asked[:1], Sampling())  # is tried against the model once
    else:
        monkeypatch.setattr("trainers.generation.transformers.has_layout", lambda model: False)
    monkeypatch.setattr(torch.nn.functional, "embedding", counted)
    responses = writer.generate(asked, Sampling())
    monkeypatch.undo()
    assert read == [3 * 4, 12, 12]
    assert worst(model, asked, responses) < 1e-4
    assert len({one.token_ids for one in responses}) > 6, "each row draws for itself"


@pytest.mark.usefixtures("fast_only")
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bfloat16_differs_from_the_models_own_forward_by_rounding_alone(weights):
    model, asked = make(initializer_range=0.1).to(weights), requests()
    autocast = torch.bfloat16 if weights == torch.float32 else None
    responses = generator(model, batch_size=5, autocast=autocast).generate(asked, Sampling())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
        assert worst(model, asked, responses) < 0.1
    assert worst(model.float(), asked, responses) < 0.1


@pytest.mark.usefixtures("fast_only")
def test_adapters_and_a_shared_critic_write_too():
    model, asked = make(), requests()
    before = generator(copy.deepcopy(model)).generate(asked, Sampling())
    adapt(model, LoRAConfig(rank=2, targets=["q_proj", "down_proj"]), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0.0, 0.3)
    policy = SharedActorCritic(model, temperature=1.0, chunk=512, absent=((7, 9),))
    responses = generator(policy).generate(asked, Sampling())
    assert responses != before
    drawn = {token for one in responses for token in one.token_ids}
    assert not drawn & {7, 8}
    model.lm_head.register_forward_hook(
        lambda _, __, logits: logits.index_fill(-1, torch.tensor([7, 8]), -torch.inf)
    )
    assert worst(model, asked, responses) < 1e-4


@pytest.mark.usefixtures("fast_only")
def test_weights_that_change_in_place_are_read_anew():
    model, asked = make(), requests()
    writer = generator(model, autocast=torch.bfloat16)
    before = writer.generate(asked, Sampling())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.3)
    after = writer.generate(asked, Sampling())
    assert after != before
    assert after == generator(model, autocast=torch.bfloat16).generate(asked, Sampling())


def test_only_what_has_the_layout_is_written_so():
    assert llama.has_layout(make())
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    assert not llama.has_layout(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, **none)))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert not llama.has_layout(make(rope_parameters=dynamic))
    hooked = make()
    hooked.model.layers[1].register_forward_hook(lambda *given: None)
    assert not llama.has_layout(hooked)


def test_a_model_that_computes_something_else_is_written_by_its_own_forward(caplog):
    model, asked = make(), requests()
    model.model.layers[0].mlp.forward = lambda states: states * 2
    assert not llama.agrees(model)
    assert worst(model, asked, generator(model).generate(asked, Sampling())) < 1e-4
    assert "its own forward writes, more slowly" in caplog.text


def test_rows_that_outgrow_a_window_are_written_by_the_models_own_forward():
    model = make("mistral", sliding_window=8)
    asked = [Request(token_ids=[3, 4], index=i, max_new_tokens=n) for i, n in enumerate([20, 4])]
    assert llama.longest_exact(model) == 8
    assert worst(model, asked, generator(model).generate(asked, Sampling())) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_columns_hold_each_rows_keys_through_ends_and_arrivals(dtype):
    torch.manual_seed(0)
    cache, rows = SharedColumns(1, 2, 3), []  # rows: what each should hold, [n, 2, 3]
    rng = torch.Generator().manual_seed(3)
    for step in range(5 * COLUMNS):
        if step % 20 == 0:
            new = [torch.randn(1 + step // 4, 2, 3), torch.randn(2, 2, 3)]
            cache.add([len(one) for one in new], dtype, torch.device("cpu"))
            for one in new:
                place = slice(len(rows), len(rows) + 1)
                states = one.permute(1, 0, 2)[None].to(dtype)
                cache.put(0, place, states, states, torch.zeros(1, dtype=torch.long))
                rows.append(one)
        cache.open_column()
        token = torch.randn(len(rows), 2, 3)
        rows = [torch.cat([row, one[None]]) for row, one in zip(rows, token, strict=True)]
        keys, values, mask = cache.append(0, token, token)
        assert torch.equal(keys, values)
        assert cache.positions.tolist() == [len(row) - 1 for row in rows]
        mask = torch.zeros(len(rows), keys.shape[1]) if mask is None else mask
        for number, row in enumerate(rows):
            seen = keys.view(len(rows), 2, -1, 3)[number][:, mask[number] == 0].permute(1, 0, 2)
            assert torch.equal(seen, row.to(dtype))
        live = torch.rand(len(rows), generator=rng) < 0.97
        live[0] |= not live.any()
        order = cache.keep(live)
        assert sorted(order.tolist()) == live.nonzero().flatten().tolist()
        rows = [rows[number] for number in order.tolist()]
    assert cache._capacity[1] <= max(map(len, rows)) + 2 * COLUMNS + 20
