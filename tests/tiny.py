"""Tiny models, ragged batches and settings that the tests of training share."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from gymnasium.spaces import Discrete
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.backends.torch import OptimizerSettings, TorchEngine
from trainers.batch import Experience, Metrics, Rollout, TextInputs
from trainers.config import (
    BackendConfig,
    Config,
    DistillConfig,
    GenerationConfig,
    LoRAConfig,
    ModelConfig,
    RunConfig,
)
from trainers.config.files import read
from trainers.config.ppo import PPOConfig
from trainers.learner import Learner
from trainers.models.adapters import adapt
from trainers.models.causal_lm import CausalPolicy
from trainers.models.chat import train_tokenizer
from trainers.models.critic import SharedActorCritic
from trainers.models.critic_folders import build_critic
from trainers.models.mlp import PolicyMLP, ValueMLP
from trainers.models.packing import pack_rows
from trainers.ppo import update

CPU = torch.device("cpu")
VOCAB = 40
PROMPTS = (3, 1, 5, 2, 4, 1, 2, 5)
RESPONSES = (1, 6, 2, 4, 3, 6, 5, 2)
"""Tokens of the prompts and responses of a ragged batch."""
RUN = {
    "run.name": "a",
    "ppo.num_iterations": 2,
    "ppo.num_prompts": 4,
    "ppo.samples_per_prompt": 2,
    "ppo.num_minibatches": 2,
    "ppo.num_epochs": 2,
    "ppo.learning_rate": 1e-3,
    "ppo.critic_learning_rate": 1e-2,
    "generation.max_new_tokens": 4,
    "generation.max_prompt_tokens": 40,
    "eval.num_tasks": 0,
    "log.wandb.enabled": False,
}
"""A text run of a second, from the model of `save_model`."""


def save_model(folder):
    """Save a Llama of two layers with a byte tokenizer that knows sums; return the folder."""
    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    model = llama(vocab_size=max(tokenizer.get_vocab().values()) + 1)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_settings(model, folder, **changes):
    """The settings of such a run, its folder below `folder`."""
    return read([], {**RUN, "model.path": str(model), "run.dir": str(folder), **changes})


def letters(response):
    """A reward with something to tell apart in any text."""
    return sum(map(ord, response)) % 11 / 10


def settings(*, tokens=1_000_000, seed=0, new=8, lora=0, distill=None, **ppo):
    """Settings of PPO, with micro-batches of `tokens` and adapters of rank `lora`.

    Without a critic an advantage is that of a group.
    """
    if ppo.get("critic") == "none":
        ppo = {"advantage": "rloo", **ppo}
    return Config(
        run=RunConfig(seed=seed),
        model=ModelConfig(lora=LoRAConfig(rank=lora, alpha=2.0)),
        ppo=PPOConfig(**ppo),
        distill=DistillConfig(**(distill or {})),
        generation=GenerationConfig(max_new_tokens=new),
        backend=BackendConfig(micro_batch_tokens=tokens),
    )


def llama(*, seed=0, **changes):
    """A Llama of two layers, with weights large enough to have opinions."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    limits = {"vocab_size": VOCAB, "max_position_embeddings": 64, "initializer_range": 0.1}
    return LlamaForCausalLM(LlamaConfig(**{**limits, **sizes, **heads, **changes}))


def optimizer(config, rate):
    """AdamW as `config.ppo` has it."""
    return OptimizerSettings(learning_rate=rate, max_grad_norm=config.ppo.max_grad_norm)


def torch_engine(module, settings, name):
    """The engine on plain torch."""
    return TorchEngine(module, settings, name=name, device=CPU)


def learner(config, *, seed=0, temperature=1.0, model=None, engine=torch_engine, packs=False):
    """A text learner, its value head away from zero so that its trunk learns from the start."""
    model = llama(seed=seed) if model is None else model
    assert not packs or pack_rows(model)
    reads = config.ppo.critic_reads_logprobs
    if config.ppo.critic == "shared":
        policy = SharedActorCritic(model, temperature=temperature, chunk=512, reads_logprobs=reads)
        critic, head = None, policy.value_head
    else:
        policy = CausalPolicy(model, temperature=temperature, chunk=512)
        is_separate = config.ppo.critic == "separate"
        critic = build_critic(model, reads_logprobs=reads) if is_separate else None
        head = critic.head if critic else None
    if head is not None:
        torch.nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    if config.model.lora.rank:
        adapted(model, config, seed=seed)
        if critic is not None:
            adapted(critic, config, seed=seed)
    engines = [
        engine(module, optimizer(config, rate), name) if module else None
        for name, module, rate in (
            ("policy", policy, config.ppo.learning_rate),
            ("critic", critic, config.ppo.critic_learning_rate),
        )
    ]
    return Learner(*engines, config)


def adapted(model, config, *, seed=0):
    """Put adapters into a model that change what it computes, so that both halves learn."""
    adapt(model, config.model.lora, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=rng)


def control_learner(config, *, obs_size=3, seed=0):
    """A learner on numeric observations with two actions."""
    rng = torch.Generator().manual_seed(seed)
    policy = PolicyMLP(obs_size, Discrete(2), hidden_sizes=[16], rng=rng)
    critic = ValueMLP(obs_size, hidden_sizes=[16], rng=rng)
    one = TorchEngine(policy, optimizer(config, 0.0), name="policy", device=CPU)
    other = TorchEngine(critic, optimizer(config, 0.0), name="critic", device=CPU)
    return Learner(one, other, config)


def lengths_mask(lengths, width, *, right=False):
    """[B, width] True on the first, or the last, `lengths` columns of each row."""
    columns = torch.arange(width)
    columns = columns.flip(0) if right else columns
    return columns < torch.tensor(lengths).unsqueeze(1)


def text(prompts=PROMPTS, responses=RESPONSES, *, seed=1, spare=(0, 0)):
    """Left-padded prompts with right-padded responses, random ids in the padding as well.

    `spare` adds columns of padding on the left and on the right.
    """
    left, right = max(prompts) + spare[0], max(max(responses), 1) + spare[1]
    mask = torch.cat(
        [lengths_mask(prompts, left, right=True), lengths_mask(responses, right)], dim=1
    )
    rng = torch.Generator().manual_seed(seed)
    # A row's tokens depend on the row alone, not on the padding.
    ids = torch.randint(3, VOCAB, (len(prompts), 2, 64), generator=rng)
    junk = torch.randint(3, VOCAB, mask.shape, generator=rng)
    tokens = junk.clone()
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        tokens[row, left - prompt : left] = ids[row, 0, :prompt]
        tokens[row, left : left + response] = ids[row, 1, :response]
    return TextInputs(tokens=tokens, attention_mask=mask, num_prompt=left)


def noise(shape, seed, scale=1.0):
    """Normal numbers that depend on nothing else."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rollout(*, prompts=PROMPTS, responses=RESPONSES, spare=(0, 0), first=0, **changes):
    """A ragged text rollout with random figures; every row ends and terminates."""
    inputs = text(prompts, responses, spare=spare)
    mask = inputs.attention_mask[:, inputs.num_prompt :]
    rows, width = mask.shape
    last = mask & ~torch.nn.functional.pad(mask, (0, 1))[:, 1:]

    def column(seed, scale=1.0):
        return noise((rows, 64), seed, scale)[:, :width].clone()

    parts = {
        "logprobs": column(2, 0.3) - 3.5,
        "generator_logprobs": column(3, 0.3) - 3.5,
        "ref_logprobs": column(4, 0.3) - 3.5,
        "rewards": column(5),
        "values": column(6),
        "next_values": column(7),
        "terminated": last,
        "boundary": last,
    }
    parts |= changes
    return Rollout(
        inputs=replace(inputs, logprobs=parts["logprobs"] * mask),
        response_mask=mask,
        index=torch.arange(rows) + first,
        **parts,
    )


def experience(**changes):
    """A ragged text minibatch with random figures, padding included."""
    made = rollout()
    shape = made.response_mask.shape
    parts = {
        "inputs": made.inputs,
        "response_mask": made.response_mask,
        "old_logprobs": made.logprobs,
        "ref_logprobs": made.ref_logprobs,
        "generator_logprobs": made.generator_logprobs,
        "old_values": made.values,
        "advantages": noise(shape, 8),
        "returns": noise(shape, 9),
        "index": made.index,
    }
    return Experience(**{**parts, **changes})


def on_policy(learner, made):
    """The experience as the learner itself would have recorded it."""
    old = learner.logprobs(made.inputs, made.response_mask)
    values = learner.values(made.inputs)[:, : made.response_mask.shape[1]]
    return replace(made, old_logprobs=old, old_values=values)


def gradients_of(learner, made, config):
    """The gradients that an update of the learner would have stepped with."""
    with mock.patch.object(learner, "step", return_value=Metrics()):
        update(learner, made, config)
    found = gradients(learner)
    for module in (learner.policy_module, learner.critic_module):
        if module is not None:
            module.zero_grad()
    return found


def gradients(learner):
    """Every gradient by name, of policy and critic."""
    modules = {"policy": learner.policy_module, "critic": learner.critic_module}
    return {
        f"{kind}.{name}": parameter.grad.clone()
        for kind, module in modules.items()
        if module is not None
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def weights(learner):
    """Every weight by name, of policy and critic, copied."""
    modules = {"policy": learner.policy_module, "critic": learner.critic_module}
    return {
        f"{kind}.{name}": parameter.detach().clone()
        for kind, module in modules.items()
        if module is not None
        for name, parameter in module.named_parameters()
    }


def difference(one, other):
    """The relative distance of two dicts of tensors, as one long vector."""
    assert one.keys() == other.keys()
    left = torch.cat([value.double().flatten() for value in one.values()])
    right = torch.cat([other[name].double().flatten() for name in one])
    return float((left - right).norm() / left.norm())


def assert_on_policy(figures):
    """What an update looks like whose policy is the one that acted."""
    assert figures["policy/ratio_avg"] == pytest.approx(1.0, abs=1e-6)
    assert figures["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert abs(figures["policy/approxkl_avg"]) <= 1e-6
    assert figures["policy/clipfrac_avg"] == 0.0
