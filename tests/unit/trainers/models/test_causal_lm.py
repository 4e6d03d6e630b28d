from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from tests.unit.trainers.models.families import (
    FAMILIES,
    HEADS,
    VOCAB,
    WIDTH,
    family_model,
    ragged_inputs,
)
from trainers.batch import TextInputs
from trainers.errors import ConfigError
from trainers.models.causal_lm import (
    ActionScorer,
    CausalPolicy,
    check_head,
    hides_left_padding,
    position_ids,
)
from trainers.models.loading import enable_checkpointing
from trainers.models.miniature import miniature


def own_distribution(model, inputs, temperature):
    """Per row alone, without padding: log softmax of the model's own logits, [T, V] where real."""
    rows = []
    for tokens, mask in zip(inputs.tokens, inputs.attention_mask, strict=True):
        real = tokens[mask].unsqueeze(0)
        logits = model(input_ids=real, use_cache=False).logits[0].double()
        num_prompt = int(mask[: inputs.num_prompt].sum())
        rows.append((logits[num_prompt - 1 : -1] / temperature).log_softmax(-1))
    return rows


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES + HEADS)
def test_logprobs_and_entropy_are_those_of_the_models_own_logits_of_the_row_alone(
    family, temperature
):
    model = family_model(family)
    inputs, mask = ragged_inputs()
    policy = CausalPolicy(model, temperature=temperature, chunk=3)

    with torch.no_grad():
        output = policy(inputs, mask, entropy="metric")
        expected = own_distribution(model, inputs, temperature)

    for row, logp in enumerate(expected):
        count = int(mask[row].sum())
        actions = inputs.actions[row, :count]
        want = logp[torch.arange(count), actions].float()
        torch.testing.assert_close(output.logprobs[row, :count], want, atol=1e-5, rtol=0)
        entropy = -(logp.exp() * logp).sum(-1).float()
        torch.testing.assert_close(output.entropy[row, :count], entropy, atol=1e-5, rtol=0)
        assert output.logprobs[row, count:].eq(0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_in_padding_never_matters(family):
    policy = CausalPolicy(family_model(family), temperature=1.0, chunk=512)
    inputs, mask = ragged_inputs()
    garbage = torch.tensor([-1, 10 * VOCAB, 7])
    filled = inputs.tokens.clone()
    filled[~inputs.attention_mask] = garbage[torch.arange(int((~inputs.attention_mask).sum())) % 3]

    one = policy(inputs, mask).logprobs
    other = policy(replace(inputs, tokens=filled), mask).logprobs

    assert torch.equal(one, other)
    other.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_padding_alone_is_finite_and_changes_no_other(family):
    policy = CausalPolicy(family_model(family), temperature=1.0, chunk=512)
    inputs, mask = ragged_inputs()
    empty = replace(inputs, attention_mask=inputs.attention_mask.clone())
    empty.attention_mask[1] = False
    mask[1] = False

    got = policy(empty, mask).logprobs
    got.sum().backward()

    rest = torch.tensor([0, 2, 3])
    torch.testing.assert_close(got[rest], policy(inputs, mask).logprobs[rest], atol=1e-6, rtol=0)
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())


def test_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 1], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_response_at_all_gives_every_parameter_a_zero_gradient(family):
    policy = CausalPolicy(family_model(family), temperature=1.0, chunk=512)
    inputs, mask = ragged_inputs()

    output = policy(inputs, torch.zeros_like(mask), entropy="loss")
    (output.logprobs.sum() + output.entropy.sum()).backward()

    assert output.logprobs.eq(0).all()
    gradients = {name: p.grad for name, p in policy.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None] == []
    assert all(grad.eq(0).all() for grad in gradients.values())


def test_the_mask_may_have_holes():
    policy = CausalPolicy(family_model("llama"), temperature=1.0, chunk=2)
    inputs, mask = ragged_inputs()
    holes = mask.clone()
    holes[:, 1] = False

    full, part = policy(inputs, mask).logprobs, policy(inputs, holes).logprobs

    torch.testing.assert_close(part, full * holes, atol=1e-6, rtol=0)


def test_entropy_carries_a_gradient_only_when_it_is_for_the_loss():
    policy = CausalPolicy(family_model("llama"), temperature=1.0, chunk=2)
    inputs, mask = ragged_inputs()

    assert policy(inputs, mask).entropy is None
    assert not policy(inputs, mask, entropy="metric").entropy.requires_grad
    assert policy(inputs, mask, entropy="loss").entropy.requires_grad


def test_recomputed_activations_give_the_same_gradient():
    inputs, mask = ragged_inputs()
    gradients = []
    for recompute in (False, True):
        policy = CausalPolicy(family_model("llama"), temperature=1.0, chunk=512)
        if recompute:
            enable_checkpointing(policy.model)
        policy(inputs, mask).logprobs.sum().backward()
        gradients.append([p.grad for p in policy.parameters()])
    assert any(getattr(m, "gradient_checkpointing", False) for m in policy.model.modules())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_bfloat16_compute_stays_near_float32_and_is_reduced_in_it():
    policy = CausalPolicy(family_model("llama"), temperature=1.0, chunk=512)
    inputs, mask = ragged_inputs()

    exact = policy(inputs, mask).logprobs
    with torch.autocast("cpu", torch.bfloat16):
        rough, again = policy(inputs, mask).logprobs, policy(inputs, mask).logprobs

    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0)
    assert torch.equal(rough, again)


@pytest.mark.parametrize("family", FAMILIES + HEADS)
def test_the_check_at_load_accepts_every_family(family):
    check_head(CausalPolicy(family_model(family), temperature=0.7, chunk=512))


ROPE = {
    "phi3": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 4, 8, 16]},
    "llama": {"rope_type": "dynamic", "factor": 4.0},
}


@pytest.mark.parametrize("family", ROPE)
def test_rows_are_checked_to_the_length_where_rope_turns_by_the_longest_and_no_further(family):
    sizes = {
        **WIDTH,
        "attention_dropout": 0.0,
        "max_position_embeddings": 128 if family == "phi3" else 32,
    }
    sizes |= {"original_max_position_embeddings": 32} if family == "phi3" else {}
    rope = {"rope_theta": 1e4, **ROPE[family]}
    config = AutoConfig.for_model(family, rope_parameters=rope, **sizes)
    policy = CausalPolicy(AutoModelForCausalLM.from_config(config), temperature=1.0, chunk=512)

    check_head(policy, longest=32)
    with pytest.raises(ConfigError, match=r"beside a row of 33 tokens .*max_new_tokens"):
        check_head(policy)


@pytest.mark.parametrize("family", ["rwkv", "qwen3_next", "llama4_text"])
def test_padding_before_a_row_does_not_reach_what_would_read_it(family):
    model = miniature(CONFIG_MAPPING[family]())
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    inputs, mask = ragged_inputs()
    filled = replace(inputs, tokens=inputs.tokens.where(inputs.attention_mask, 7))

    logprobs = policy(inputs, mask).logprobs

    assert not hides_left_padding(model)
    assert torch.equal(policy(filled, mask).logprobs, logprobs)
    for row, logp in enumerate(own_distribution(model, inputs, 1.0)):
        count = int(mask[row].sum())
        right = logp[torch.arange(count), inputs.actions[row, :count]].float()
        torch.testing.assert_close(logprobs[row, :count], right, atol=1e-5, rtol=0)
    logprobs.sum().backward()
    assert all(one.grad is None or one.grad.isfinite().all() for one in policy.parameters())


def test_a_head_that_is_not_known_is_refused_by_name():
    policy = CausalPolicy(family_model("gemma2"), temperature=1.0, chunk=512)
    policy.scorer = ActionScorer(temperature=1.0, chunk=512)  # forgets the cap

    with pytest.raises(ConfigError, match="Gemma2ForCausalLM computes its logits in a way"):
        check_head(policy)


def test_one_prompt_token_and_one_action_are_enough():
    model = family_model("gpt2")
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    tokens = torch.tensor([[5, 9]])
    inputs = TextInputs(tokens=tokens, attention_mask=torch.ones(1, 2).bool(), num_prompt=1)

    got = policy(inputs, torch.ones(1, 1).bool()).logprobs

    want = model(input_ids=tokens).logits[0, 0].log_softmax(-1)[9]
    torch.testing.assert_close(got[0, 0], want, atol=1e-5, rtol=0)
