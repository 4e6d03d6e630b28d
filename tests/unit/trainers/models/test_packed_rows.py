"""Rows end to end: the same figures and gradients as of padded rows, and fewer tokens computed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.unit.trainers.models.families import (
    FAMILIES,
    VOCAB,
    family_model,
    ragged_inputs,
)
from trainers.batch import TextInputs
from trainers.errors import ConfigError
from trainers.models.causal_lm import CausalPolicy, hidden_states
from trainers.models.critic import SharedActorCritic
from trainers.models.critic_folders import build_critic
from trainers.models.loading import enable_checkpointing
from trainers.models.packed_rows import SHORT_ROW, Layout, causal, longest_packed
from trainers.models.packing import pack_rows, packs

PACKED = (*FAMILIES, "qwen2", "granite", "mixtral", "olmo2", "cohere", "olmoe")


def grouped_inputs():
    """Three prompts with three, one and two responses, one of them empty, in mixed order."""
    prompts, lengths = [0, 1, 0, 2, 2, 0], [4, 2, 1, 0, 3, 4]
    rng = torch.Generator().manual_seed(3)
    opening = torch.randint(3, VOCAB, (3, 5), generator=rng)
    tokens = torch.cat([opening[prompts], torch.randint(3, VOCAB, (6, 4), generator=rng)], dim=1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        mask[row, :prompt] = False
        mask[row, 5 + length :] = False
    tokens[~mask] = -7
    return TextInputs(tokens=tokens, attention_mask=mask, num_prompt=5), mask[:, 5:].clone()


ROWS = {"ragged": ragged_inputs, "grouped": grouped_inputs}


def figures(policy, critic, inputs, mask):
    """Return logprobs, entropies, values of real states, and the gradient of a sum of all."""
    output = policy(inputs, mask, entropy="metric")
    values = critic(inputs)
    real = F.pad(mask, (1, 0), value=True)
    values = torch.where(real, values, torch.zeros_like(values))
    share = torch.linspace(-1, 2, values.numel()).view(values.shape)
    (share[:, 1:] * output.logprobs).sum().backward()
    (share * values).sum().backward()
    gradients = {
        f"{kind}.{name}": weight.grad
        for kind, module in (("policy", policy), ("critic", critic))
        for name, weight in module.named_parameters()
        if weight.grad is not None
    }
    return {"logprobs": output.logprobs, "entropy": output.entropy, "values": values, **gradients}


def both(family, inputs, mask, change=lambda _model: None):
    """Return the figures of padded rows and of packed ones."""
    found = []
    for does_pack in (False, True):
        model = family_model(family)
        change(model)
        if does_pack:
            assert pack_rows(model)
        critic = build_critic(model)
        torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
        assert bool(longest_packed(critic)) == does_pack
        policy = CausalPolicy(model, temperature=0.7, chunk=512)
        found.append(figures(policy, critic, inputs, mask))
    return found


def assert_equal(found, tolerance=2e-5):
    padded, packed = found
    assert padded.keys() == packed.keys()
    for name, padded_figure in padded.items():
        expected = padded_figure.detach()
        assert expected.abs().max() > 0, name
        largest = float(expected.abs().max())
        difference = float((packed[name].detach() - expected).abs().max())
        assert difference < tolerance * max(1.0, largest), name


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_have_the_figures_and_gradients_of_padded_ones(family, rows):
    assert_equal(both(family, *ROWS[rows]()))


def test_activations_that_are_made_again_follow_the_same_layout():
    assert_equal(both("llama", *grouped_inputs(), change=enable_checkpointing))


def test_bfloat16_is_as_near_to_float32_packed_as_padded():
    inputs, mask = ragged_inputs(num_prompt=8, num_actions=40, rows=16)
    policy = CausalPolicy(family_model("llama"), temperature=1.0, chunk=512)
    exact = policy(inputs, mask).logprobs.detach()
    apart = []
    for does_pack in (False, True):
        if does_pack:
            assert pack_rows(policy.model)
        with torch.autocast("cpu", torch.bfloat16):
            found = policy(inputs, mask).logprobs.detach()
        apart.append(float((found - exact).square().mean().sqrt()))
    padded, packed = apart
    assert 0 < packed < 1.2 * padded


def test_a_shared_trunk_reads_packed_rows():
    inputs, mask = grouped_inputs()
    found = []
    for does_pack in (False, True):
        model = family_model("llama")
        if does_pack:
            assert pack_rows(model)
        policy = SharedActorCritic(model, temperature=1.0, chunk=512)
        torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
        output = policy(inputs, mask)
        found.append({"values": output.values[:, :1], "logprobs": output.logprobs})
    assert_equal(found)


def test_real_tokens_alone_are_computed_and_a_shared_prompt_once():
    model = family_model("llama")
    assert pack_rows(model)
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda *args: seen.append(args[2].shape[:2]))
    inputs, mask = grouped_inputs()
    hidden_states(model.model, inputs)
    assert seen == [(1, 5 + 4 + 3 + int(mask.sum()))]


@pytest.mark.parametrize("rows", ROWS)
def test_a_layout_names_every_real_token_once_and_where_each_state_is(rows):
    inputs, mask = ROWS[rows]()
    layout = Layout.of(inputs)
    flat = inputs.tokens.flatten()
    packed, positions = flat[layout.source], inputs.attention_mask.long().cumsum(1) - 1
    assert layout.source.unique().numel() == len(layout.source)
    assert sum(piece.tokens for piece in layout.pieces) == len(layout.source)
    real = F.pad(mask, (1, 0), value=True)
    at = inputs.num_prompt - 1
    assert torch.equal(packed[layout.places][real], inputs.tokens[:, at:][real])
    assert torch.equal(layout.positions[layout.places][real], positions[:, at:][real])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "total"), [(9, 9), (4, 11), (1, 6), (520, 520)])
def test_attention_of_the_last_tokens_is_the_softmax_over_all_before(width, total, dtype):
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, width, 8, generator=rng).to(dtype)
    key, value = (torch.randn(2, 2, total, 8, generator=rng).to(dtype) for _ in range(2))
    assert (total > SHORT_ROW) == (width == 520)

    found = causal(query, key, value, scale=0.3).double()

    for head in range(4):
        asked, known, read = query[:, head], key[:, head // 2], value[:, head // 2]
        scores = 0.3 * asked.double() @ known.double().transpose(1, 2)
        for step in range(width):
            seen = total - width + step + 1
            shares = scores[:, step, :seen].softmax(-1)
            expected = (shares[:, None] @ read.double()[:, :seen])[:, 0]
            tolerance = 1e-5 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(found[:, head, step], expected, atol=tolerance, rtol=0)


def test_short_rows_in_bfloat16_have_gradients_as_exact_as_of_the_fused_kernel():
    rng = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 4, 40, 16, generator=rng).bfloat16().requires_grad_() for _ in range(3)]
    share = torch.randn(2, 4, 40, 16, generator=rng)
    exact = [part.detach().double().requires_grad_() for part in parts]
    attend = F.scaled_dot_product_attention
    expected = torch.autograd.grad(attend(*exact, is_causal=True), exact, share.double())

    def apart(output):
        gradients = torch.autograd.grad(output, parts, share.bfloat16())
        pairs = zip(gradients, expected, strict=True)
        return sum(float((one.double() - other).square().sum()) for one, other in pairs)

    assert 0 < apart(causal(*parts, scale=None)) < apart(attend(*parts, is_causal=True))


def test_models_that_attention_alone_does_not_describe_stay_padded():
    model = family_model("lfm2")
    assert not packs(model, "auto")
    assert not longest_packed(model)
    with pytest.raises(ConfigError, match=r"--backend\.packing auto"):
        packs(model, "on")


def test_a_kernel_that_was_asked_for_stays():
    model = family_model("llama")
    model.set_attn_implementation("eager")
    assert not packs(model, "auto")
    assert model.config._attn_implementation == "eager"


def test_rows_longer_than_a_sliding_window_are_padded():
    inputs, _ = ragged_inputs()
    model = family_model("mistral")
    assert pack_rows(model)
    for window, computed in ((4, inputs.tokens.numel()), (9, int(inputs.attention_mask.sum()))):
        twin = copy.deepcopy(model)
        twin.config.sliding_window = window
        assert longest_packed(twin) == window
        seen = []
        twin.model.embed_tokens.register_forward_hook(
            lambda *args, seen=seen: seen.append(args[2].shape[:2].numel())
        )
        hidden_states(twin.model, inputs)
        assert seen == [computed]


def test_the_kernel_is_not_written_into_a_saved_model(tmp_path):
    model = family_model("llama")
    assert pack_rows(model)
    model.save_pretrained(tmp_path)
    assert "llmgym" not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_prompts_that_differ_by_a_token_of_padding_are_not_shared():
    inputs, _ = grouped_inputs()
    assert inputs.prompt_numbers.unique().numel() == 3
    longer = inputs.attention_mask.clone()
    longer[1, 0] = True
    apart = replace(inputs, tokens=inputs.tokens.clamp(min=0), attention_mask=longer)
    assert apart.prompt_numbers.unique().numel() == 3
    longer[3, 1] = True
    assert replace(apart, attention_mask=longer).prompt_numbers.unique().numel() == 4
