"""The gradient of an update against one that shares no code with it: float64, no padding.

Every stage of ZeRO takes the gradient that is checked here (`tests/distributed/test_zero.py`).
"""

import copy

import pytest
import torch
from torch.func import functional_call
from transformers import AutoModelForTokenClassification

from tests import tiny

COEFFICIENTS = {"entropy_coef": 0.1, "value_coef": 0.3}
RANK, SCALE = 3, 2.0 / 3
"""Of the adapters: alpha is 2."""


def leaves_of(module):
    """Float64 copies of all parameters by name; those that learn ask for a gradient."""
    return {
        name: one.detach().double().requires_grad_(one.requires_grad)
        for name, one in module.named_parameters()
    }


def plain(leaves):
    """The weights of the model inside, adapters added to what they adapt."""
    found = {}
    for name, one in leaves.items():
        if name.startswith("model.") and ".lora_" not in name:
            found[name.removeprefix("model.").replace(".base_layer", "")] = one
    for name, down in leaves.items():
        if ".lora_A." in name:
            up = leaves[name.replace(".lora_A.", ".lora_B.")]
            key = name.removeprefix("model.").replace(".lora_A.default", "")
            found[key] = found[key] + SCALE * up @ down
    return found


def bare(model):
    """A model of the same kind in float64, for its code alone."""
    return type(model)(model.config).double()


def bare_critic(trunk):
    """The token classifier of transformers on a trunk of this kind, for its code alone."""
    config = copy.deepcopy(trunk.config)
    config.num_labels, config.classifier_dropout = 1, 0.0
    return AutoModelForTokenClassification.from_config(config).double()


def expected_gradients(learner, made, config):
    """The gradient of the objective of PPO, written from its equations."""
    ppo = config.ppo
    policy, critic = learner.policy_module, learner.critic_module
    mine = leaves_of(policy)
    model, weights = bare(policy.model), plain(mine)
    theirs = {} if critic is None else leaves_of(critic)
    judge = None if critic is None else bare_critic(critic.trunk)
    surrogate, entropy, squared = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for row, (prompt, response) in enumerate(zip(tiny.PROMPTS, tiny.RESPONSES, strict=True)):
        ids = made.inputs.tokens[row][made.inputs.attention_mask[row]][None]
        before = slice(prompt - 1, prompt + response - 1)
        output = functional_call(
            model, weights, (ids,), {"output_hidden_states": True, "use_cache": False}
        )
        every = output.logits[0, before].log_softmax(-1)
        now = every.gather(-1, ids[0, prompt:, None])[:, 0]
        old, advantage, target, value = (
            column[row, :response].double()
            for column in (made.old_logprobs, made.advantages, made.returns, made.old_values)
        )
        ratio = (now - old).exp()
        clipped = ratio.clamp(1 - ppo.clip_low, 1 + ppo.clip_high)
        surrogate = surrogate - torch.minimum(ratio * advantage, clipped * advantage).sum()
        entropy = entropy - (every.exp() * every).sum()
        if judge is None:
            head = mine["value_head.weight"], mine["value_head.bias"]
            values = (output.hidden_states[-1][0, before] @ head[0].T + head[1])[:, 0]
        else:
            values = functional_call(judge, plain(theirs), (ids,)).logits[0, before, 0]
        near = torch.minimum(torch.maximum(values, value - ppo.value_clip), value + ppo.value_clip)
        squared = squared + torch.maximum((values - target) ** 2, (near - target) ** 2).sum() / 2
    count = sum(tiny.RESPONSES)
    weight = ppo.value_coef if judge is None else 1.0
    total = (surrogate - ppo.entropy_coef * entropy + weight * squared) / count
    total.backward()
    return {
        f"{kind}.{name}": leaf.grad
        for kind, leaves in (("policy", mine), ("critic", theirs))
        for name, leaf in leaves.items()
        if leaf.grad is not None
    }


@pytest.mark.parametrize("lora", [0, RANK], ids=["whole", "adapters"])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_gradient_of_an_update_is_the_objective_s_in_float64(critic, lora):
    config = tiny.settings(critic=critic, lora=lora, tokens=25, **COEFFICIENTS)
    learner = tiny.learner(config)
    made = tiny.experience()
    found = tiny.gradients_of(learner, made, config)
    expected = expected_gradients(learner, made, config)
    assert found.keys() == expected.keys()
    assert tiny.difference(expected, found) < 1e-5
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) < 1e-5 * max(1, float(gradient.norm()))
