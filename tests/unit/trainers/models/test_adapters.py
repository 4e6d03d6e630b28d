"""LoRA: what it computes, what it leaves alone, what is written and what is refused."""

import copy
import re
import sys

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tests import tiny
from trainers.backends.gathering import gathered, gathered_module
from trainers.config import LoRAConfig
from trainers.config.files import read
from trainers.errors import BackendError, ConfigError
from trainers.learner import BasePolicy
from trainers.models import adapters
from trainers.models.adapters import adapt, adapter_of, adapters_off, check_lora, has_adapters
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic_folders import build_critic
from trainers.ppo import update

LORA = LoRAConfig(rank=3, alpha=2.0)
RATES = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2}
TOKENS = torch.arange(3, 19).view(2, 8)


def gpt2():
    """A model whose layers hold their weights the other way round."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tiny.VOCAB, n_positions=32, n_embd=32, n_layer=2, n_head=4,
            initializer_range=0.1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def untied():
    return tiny.llama(tie_word_embeddings=False)


@pytest.fixture(params=[tiny.llama, untied, gpt2])
def model(request):
    return request.param()


@torch.no_grad()
def logits(model):
    return model(TOKENS, use_cache=False).logits


def changed(model, **lora):
    """Adapters with something to say."""
    tiny.adapted(model, read([], {"model.lora.rank": 3, "model.lora.alpha": 2.0, **lora}))
    return model


def test_at_the_start_and_with_adapters_off_a_model_is_its_base_to_the_last_bit(model):
    before = logits(model)
    adapt(model, LORA, seed=0)
    assert torch.equal(logits(model), before)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    assert not torch.allclose(logits(model), before, atol=1e-2)
    with adapters_off(model):
        assert torch.equal(logits(model), before)
    with pytest.raises(ZeroDivisionError), adapters_off(model):
        raise ZeroDivisionError
    assert not torch.allclose(logits(model), before, atol=1e-2), "on again, whatever happened"
    assert any(parameter.requires_grad for parameter in model.parameters())


def learning(model):
    return {name for name, one in model.named_parameters() if one.requires_grad}


def test_only_adapters_learn_and_a_classifier_s_head(model):
    critic = build_critic(model)
    head = {name for name, _ in critic.named_parameters() if name.split(".")[1] == critic.name}
    assert len(head) == 2
    for one, more in ((model, set()), (critic, head)):
        adapt(one, LORA, seed=0)
        thin = {name for name, _ in one.named_parameters() if ".lora_" in name}
        assert thin
        assert learning(one) == thin | more


def test_adapters_compute_the_equation_of_the_paper():
    model = changed(tiny.llama())
    layer = model.model.layers[0].mlp.down_proj
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    weight, up, down = (
        one.double()
        for one in (
            layer.base_layer.weight,
            layer.lora_B["default"].weight,
            layer.lora_A["default"].weight,
        )
    )
    inputs, found = inputs.double(), layer(inputs).double()
    expected = inputs @ weight.T + 2.0 / 3 * (inputs @ down.T) @ up.T
    # The bound of a sum in any order: terms x epsilon x the sum of their sizes.
    sizes = inputs.abs() @ weight.abs().T + (inputs.abs() @ down.abs().T) @ up.abs().T
    bound = weight.shape[1] * torch.finfo(torch.float32).eps * sizes
    assert (found - expected).abs().le(bound).all()
    assert (expected - inputs @ weight.T).abs().gt(10 * bound).any(), "the adapter's share is seen"


def test_matrices_are_drawn_by_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        model = tiny.llama()
        torch.manual_seed(5)
        adapt(model, LORA, seed=seed)
        drawn.append(model.model.layers[0].mlp.up_proj.lora_A["default"].weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_updates_change_adapters_and_heads_and_never_the_base(critic):
    config = tiny.settings(critic=critic, lora=3, **RATES)
    learner = tiny.learner(config)
    modules = [learner.policy_module, learner.critic_module]
    parameters = {
        f"{number}.{name}": one
        for number, module in enumerate(modules)
        for name, one in (module.named_parameters() if module else ())
    }
    before = {name: one.detach().clone() for name, one in parameters.items()}
    for _ in range(3):
        update(learner, tiny.experience(), config)
    moved = {name for name, one in parameters.items() if not torch.equal(one, before[name])}
    learns = re.compile(r"\.lora_|value_head|\.score\.")
    assert moved == {name for name in parameters if learns.search(name)}


def test_the_reference_is_the_policy_with_adapters_off():
    config = tiny.settings(critic="shared", lora=3, **RATES)
    inputs = tiny.text()
    mask = tiny.lengths_mask(tiny.RESPONSES, inputs.actions.shape[1])
    base = CausalPolicy(tiny.llama(), temperature=1.0, chunk=512)
    with torch.no_grad():
        expected = base(inputs, mask).logprobs
    learner = tiny.learner(config)
    reference = BasePolicy(learner)
    update(learner, tiny.experience(), config)
    got = reference.logprobs(inputs, mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert float((learner.logprobs(inputs, mask) - got).abs().max()) > 1e-2


def test_a_state_holds_what_learns_and_goes_on_to_the_bit():
    config = tiny.settings(critic="separate", lora=3, **RATES)
    one, other = tiny.learner(config), tiny.learner(config)
    update(one, tiny.experience(), config)
    state = one.state_dict()
    for engine in ("policy", "critic"):
        names = state[engine]["weights"].keys()
        assert names
        assert all(".lora_" in name or ".score." in name for name in names)
        assert names == state[engine]["optimizer"]["exp_avg"].keys()
    other.load_state_dict([state])
    figures = [update(learner, tiny.experience(), config).values() for learner in (one, other)]
    assert figures[0] == figures[1]
    plain = tiny.learner(tiny.settings(critic="separate"))
    with pytest.raises(ValueError, match="the policy's weights differ in name"):
        plain.load_state_dict([state])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft calls it
def test_what_is_written_computes_what_was_trained(model, tmp_path):
    base = copy.deepcopy(model)
    expected = logits(changed(model))
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    engine = tiny.torch_engine(policy, tiny.optimizer(tiny.settings(), 0.0), "policy")
    gathered_module(engine).model.save_pretrained(tmp_path / "merged")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not has_adapters(got)
    torch.testing.assert_close(logits(got), expected, rtol=0, atol=1e-5)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    assert torch.equal(logits(model), expected), "writing changes nothing"
    adapter_of(policy, gathered(engine, trained=True), "a/base").save(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6)
    assert loaded.peft_config["default"].base_model_name_or_path == "a/base"


def adapted_layers(model):
    return {name.rpartition(".")[2] for name, _ in adapters._adapted(model)}


def test_targets_are_all_linear_layers_of_the_body_those_of_peft_or_those_named():
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for targets, expected in (
        (["all-linear"], every),
        (["auto"], {"q_proj", "v_proj"}),
        (["up_proj", "k_proj"], {"up_proj", "k_proj"}),
    ):
        model = untied()
        adapt(model, LoRAConfig(rank=2, targets=targets), seed=0)
        assert adapted_layers(model) == expected
    one = untied()
    adapt(one, LoRAConfig(rank=2, targets=["layers.1.mlp.up_proj"]), seed=0)
    assert [name for name, _ in adapters._adapted(one)] == ["model.layers.1.mlp.up_proj"]


FOUND = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"targets": ["q_prj"]},
            f"q_prj matches no .* of llama, .* {FOUND}. Did you mean q_",
        ),
        ({"targets": ["up_proj", "lm_head"]}, "lm_head matches no linear layer of the body"),
        ({"targets": ["embed_tokens"]}, "embed_tokens matches no linear layer"),
    ],
)
def test_layers_that_are_not_there_are_refused_by_the_configuration_alone(
    tmp_path, monkeypatch, changes, said
):
    folder = tiny.save_model(tmp_path / "model")
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)  # no weights are needed
    given = {f"model.lora.{name}": value for name, value in changes.items()}
    config = read([], {"model.path": str(folder), "model.lora.rank": 2, **given})
    with pytest.raises(ConfigError, match=said):
        check_lora(config)
    check_lora(read([], {"model.path": str(folder), "model.lora.rank": 2}))


def test_a_critic_of_another_family_must_have_the_layers_too(tmp_path):
    policy = tiny.save_model(tmp_path / "policy")
    gpt2().save_pretrained(tmp_path / "critic")
    names = {
        "model.path": str(policy),
        "model.lora.rank": 2,
        "model.lora.targets": ["q_proj"],
        "ppo.critic_init": str(tmp_path / "critic"),
    }
    with pytest.raises(ConfigError, match="q_proj matches no linear layer of the body of gpt2"):
        check_lora(read([], names))
    check_lora(read([], {**names, "model.lora.critic": "whole"}))
    check_lora(read([], {**names, "ppo.critic": "shared", "ppo.critic_init": "policy"}))


def test_a_family_without_usual_layers_is_told_what_there_is(tmp_path, monkeypatch):
    usual = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
    monkeypatch.setattr(peft.utils, usual, {})
    config = tiny.settings(lora=2)
    object.__setattr__(config.model.lora, "targets", ["auto"])
    with pytest.raises(ConfigError, match=f"no layers for llama.*all-linear, or .*{FOUND}"):
        adapt(tiny.llama(), config.model.lora, seed=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.lora.rank": -1}, r"model\.lora\.rank"),
        ({"model.lora.rank": 2.5}, r"model\.lora\.rank"),
        ({"model.lora.alpha": 0.0}, r"model\.lora\.alpha"),
        ({"model.lora.targets": []}, r"model\.lora\.targets"),
        (
            {"model.lora.targets": ["all-linear", "q_proj"]},
            r"all-linear chooses layers by itself, got \['all-linear', 'q_proj'\]",
        ),
        (
            {"run.kind": "control", "model.lora.rank": 2, "ppo.kl_placement": "none"},
            "model.lora.rank 2 adapts a language model .* trains a fresh MLP",
        ),
    ],
)
def test_settings_that_make_no_adapters_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        read([], changes)


@pytest.mark.parametrize("changes", [{}, {"sft.num_epochs": 1, "ppo.num_iterations": 0}])
def test_a_fresh_model_has_nothing_to_adapt(changes):
    with pytest.raises(ConfigError, match=r"this run begins with a fresh one.*--model\.path"):
        check_lora(read([], {"model.lora.rank": 2, **changes}))
    check_lora(read([], {"model.lora.rank": 2, "sft.num_epochs": 1}))
    check_lora(read([], changes))


def test_without_peft_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackendError, match=r'pip install "llmgym-rl\[train,peft\]"'):
        check_lora(read([], {"model.lora.rank": 2, "model.path": "x"}))
    check_lora(read([], {}))


def test_a_plain_module_is_left_as_it_is():
    assert not has_adapters(tiny.llama())
