import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.unit.trainers.models.families import FAMILIES, family_model, ragged_inputs
from trainers.errors import ConfigError
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic import SharedActorCritic, classifier_of
from trainers.models.critic_folders import build_critic

WARNED = "ignore:.*:UserWarning"


def with_random_head(critic):
    with torch.no_grad():
        rng = torch.Generator().manual_seed(2)
        critic.head.weight.normal_(generator=rng)
        critic.head.bias.fill_(0.3)
    return critic


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_critic_says_zero_everywhere(family):
    inputs, mask = ragged_inputs()
    values = build_critic(family_model(family))(inputs)
    assert values.dtype == torch.float32
    assert values.shape == (mask.shape[0], mask.shape[1] + 1)
    assert values.eq(0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_the_plain_classifier_on_the_row_alone(family):
    critic = with_random_head(build_critic(family_model(family)))
    inputs, mask = ragged_inputs()
    got = critic(inputs)
    for row, (tokens, real) in enumerate(zip(inputs.tokens, inputs.attention_mask, strict=True)):
        logits = classifier_of(critic.trunk, critic.head)(
            input_ids=tokens[real].unsqueeze(0)
        ).logits[0, :, 0]
        num_prompt, count = int(real[: inputs.num_prompt].sum()), int(mask[row].sum())
        want = logits[num_prompt - 1 :]
        assert want.shape == (count + 1,)
        torch.testing.assert_close(got[row, : count + 1], want, atol=rounding(want), rtol=0)


def rounding(values):
    """How far float32 values of a network may lie apart, summed in another order: 256 epsilon.

    Of 2 to 24 layers 25 were measured, as a share of the largest value.
    """
    return 256 * torch.finfo(torch.float32).eps * max(1.0, float(values.detach().abs().max()))


def test_the_critic_copies_the_trunk_and_shares_no_memory_with_it():
    policy = family_model("llama")
    critic = build_critic(policy)
    theirs = dict(critic.trunk.named_parameters())
    for name, parameter in policy.base_model.named_parameters():
        assert torch.equal(theirs[name], parameter)
        assert theirs[name].data_ptr() != parameter.data_ptr()


def test_building_a_critic_draws_no_random_number():
    policy = family_model("llama")
    before = torch.random.get_rng_state()
    build_critic(policy)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_weight_of_a_critic_that_left_zero_is_reached_by_its_gradient():
    critic = with_random_head(build_critic(family_model("gpt2")))
    inputs, _ = ragged_inputs()
    critic(inputs).square().sum().backward()
    assert [n for n, p in critic.named_parameters() if p.grad is None] == []
    assert critic.head.weight.grad.abs().sum() > 0


def test_values_stay_float32_under_bfloat16_compute():
    critic = with_random_head(build_critic(family_model("llama")))
    inputs, _ = ragged_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(inputs).dtype == torch.float32
    assert critic.head.weight.dtype == torch.float32


@pytest.mark.filterwarnings(WARNED)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_a_one_label_score_head_of_a_folder_is_taken_over(family, kind, tmp_path):
    config = family_model(family).config
    config.num_labels = 1
    auto = {
        "sequence": AutoModelForSequenceClassification,
        "token": AutoModelForTokenClassification,
    }[kind]
    scored = auto.from_config(config).eval()
    scored.save_pretrained(tmp_path)
    inputs, _ = ragged_inputs()
    row = inputs.rows(torch.tensor([0]))

    values = build_critic(family_model(family), str(tmp_path))(row)

    logits = scored(input_ids=row.tokens).logits.reshape(-1)
    torch.testing.assert_close(values[0, -1], logits[-1], atol=1e-5, rtol=0)
    assert values[0, -1] != 0


@pytest.mark.filterwarnings(WARNED)
@pytest.mark.parametrize("labels", [2, None])
def test_a_head_that_does_not_fit_or_is_not_there_starts_at_zero(labels, tmp_path):
    model = family_model("llama")
    if labels:
        model.config.num_labels = labels
        model = AutoModelForTokenClassification.from_config(model.config)
    model.save_pretrained(tmp_path)
    inputs, _ = ragged_inputs()

    critic = build_critic(family_model("llama"), str(tmp_path))

    assert critic(inputs).eq(0).all()
    embedding = critic.trunk.get_input_embeddings().weight
    assert torch.equal(embedding, model.get_input_embeddings().weight)


def test_a_critic_folder_that_is_missing_is_named():
    with pytest.raises(ConfigError, match="model folder /nowhere/critic does not exist"):
        build_critic(family_model("llama"), "/nowhere/critic")


def test_a_shared_trunk_gives_the_policys_figures_and_values_of_one_pass():
    model = family_model("llama")
    shared = SharedActorCritic(model, temperature=0.7, chunk=512)
    inputs, mask = ragged_inputs()

    output = shared(inputs, mask, entropy="metric")
    alone = CausalPolicy(model, temperature=0.7, chunk=512)(inputs, mask, entropy="metric")

    assert torch.equal(output.logprobs, alone.logprobs)
    assert torch.equal(output.entropy, alone.entropy)
    assert output.values.shape == (mask.shape[0], mask.shape[1] + 1)
    assert output.values.eq(0).all()


def test_a_shared_trunk_exports_as_a_classifier_with_the_same_values():
    shared = SharedActorCritic(family_model("phi"), temperature=1.0, chunk=512)
    with torch.no_grad():
        shared.value_head.weight.fill_(0.1)
        shared.value_head.bias.fill_(0.2)
    inputs, mask = ragged_inputs()
    row = inputs.rows(torch.tensor([0]))

    values = shared(row, mask[:1]).values
    logits = classifier_of(shared.trunk, shared.head).eval()(input_ids=row.tokens).logits[0, :, 0]

    torch.testing.assert_close(values[0], logits[inputs.num_prompt - 1 :], atol=1e-5, rtol=0)


def test_the_classifiers_configuration_is_its_own():
    policy = family_model("llama")
    before = policy.config.to_dict()
    critic = build_critic(policy)
    classifier = classifier_of(critic.trunk, critic.head)
    assert classifier.config.num_labels == 1
    assert policy.config.to_dict() == before
