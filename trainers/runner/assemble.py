"""From settings to parts: tokenizer, models, engines, learner, collector.

Everything that a setting can get wrong is refused here, before weights load. Nothing runs here:
`loop.py` and `supervised.py` do that.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmgym.env import SingleTurnEnv, core_env, task_at
from llmgym.vector import LLMVectorEnv
from trainers.backends.base import Engine
from trainers.backends.torch import OptimizerSettings, TorchEngine
from trainers.backends.zero.engine import DeepSpeedEngine, frozen
from trainers.backends.zero.setup import Zero, loading
from trainers.checkpoint.identity import same_everywhere
from trainers.collect.ahead import PolicyCopy
from trainers.collect.base import Reference
from trainers.config import Config, ModelConfig
from trainers.config.batch_check import check_batch
from trainers.distributed.collectives import World, from_main, limit_waits
from trainers.errors import ConfigError
from trainers.learner import BasePolicy, FrozenPolicy, Learner
from trainers.models.adapters import adapt
from trainers.models.causal_lm import CausalPolicy
from trainers.models.chat import ChatFormat
from trainers.models.critic import Critic
from trainers.models.critic_folders import build_critic, check_critic, critic_outline
from trainers.models.loading import count_parameters, load_config, policy_outline
from trainers.models.packing import packs
from trainers.models.presets import llama_config
from trainers.models.saving import check_savable
from trainers.models.shards import layer_by_layer
from trainers.runner.generators import GenerationModel, Policy
from trainers.runner.session import Session

MOST = 10_000

LARGE_ON_CPU = 4_000_000
"""Parameters from which bfloat16 pays on a CPU: decoding at 1.7 M was 0.67 as fast as in float32,
at 15.7 M 1.23 times as fast, on AVX512-BF16."""


def compute_dtype(model: ModelConfig, device: torch.device, num_parameters: int) -> torch.dtype:
    """Return the type of matrix products; auto is bfloat16 where the hardware multiplies it.

    Small models stay in float32 on a CPU: what they gain in matrix products they lose in casts.
    """
    if model.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[model.dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    large = num_parameters >= LARGE_ON_CPU
    return torch.bfloat16 if large and cpu_multiplies_bf16() else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Tell whether this CPU has instructions that multiply bfloat16; without them torch is slow."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def check_shares(config: Config, world: World) -> None:
    """Refuse another number of ranks than was asked for, and batches that do not divide among them.

    Raises:
        ConfigError: says which.
    """
    ranks = config.backend.ranks
    if ranks not in (None, world.size):
        raise ConfigError(
            f"backend.nodes {config.backend.nodes} x backend.gpus {config.backend.gpus} are "
            f"{ranks} ranks, and {world.size} were started. deepspeed starts those of one machine "
            "where it finds no hostfile, with a warning alone.\n"
            "llmgym launch check --hostfile FILE looks at hosts; --backend.gpus null takes any"
        )
    check_batch(config, world.size)


def check_prompts(config: Config, chat: ChatFormat, vectors: Sequence[LLMVectorEnv]) -> None:
    """Refuse prompts over the limit, of tasks that can be counted and answered in one turn.

    The first 10,000 are read; what is not looked at here is as it comes.

    Args:
        config: settings.
        chat: renders the prompts.
        vectors: one of each environment, or none.

    Raises:
        ConfigError: one is longer than `generation.max_prompt_tokens`, and none is to be dropped.
    """
    limit = config.generation.max_prompt_tokens
    if not config.ppo.num_iterations or config.data.too_long != "raise":
        return
    for entry, envs in zip(config.envs, vectors, strict=False):
        size = envs.num_tasks()
        if size is None or not isinstance(envs.envs[0].unwrapped, SingleTurnEnv):
            continue
        openings = [envs.envs[0].reset(options={"index": i})[0] for i in range(min(size, MOST))]
        lengths = [len(chat.prompt_ids(messages)) for messages in openings]
        longest = max(lengths)
        if longest > limit:
            count = sum(length > limit for length in lengths)
            at = lengths.index(longest)
            message = str(openings[at][-1]["content"])
            place = task_at(core_env(envs.envs[0]).tasks, at).place
            raise ConfigError(
                f"{count} of {len(lengths)} prompts of {entry.label} are longer than "
                f"generation.max_prompt_tokens {limit}. The longest has {longest}"
                f"{place and f', in {place}'}: {message[:60]!r}.\n"
                "Raise it with --generation.max-prompt-tokens, or leave such prompts out with "
                "--data.too-long drop"
            )


def check_folders(config: Config, within: Path) -> None:
    """Refuse a model or a critic whose folders could not be written at the run's end.

    Args:
        config: settings.
        within: a folder on the disk of the run.

    Raises:
        ConfigError: as of `check_savable`; or `ppo.critic_init` is no critic for this policy.
    """
    source, limits = config.model.path, config.generation
    described = load_config(source) if source else llama_config(config.model, 300)
    init = config.ppo.critic_init if config.ppo.critic == "separate" else "policy"
    with torch.device("meta"):
        model = policy_outline(described, source or config.model.preset)
        reads, critic = config.ppo.critic_reads_logprobs, None
        if config.ppo.num_iterations and config.ppo.has_critic:
            critic = critic_outline(model, init, reads_logprobs=reads)
    if source and critic is not None and init != "policy":
        check_critic(critic, model, init, limits.max_prompt_tokens + limits.max_new_tokens)
    from_main(lambda: check_savable(model, critic, within))


def optimizer_settings(config: Config, rate: float) -> OptimizerSettings:
    """Return PPO's AdamW at `rate`."""
    ppo = config.ppo
    return OptimizerSettings(
        learning_rate=rate,
        betas=ppo.adam_betas,
        eps=ppo.adam_eps,
        weight_decay=ppo.weight_decay,
        max_grad_norm=ppo.max_grad_norm,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Where models live and what they multiply in."""

    device: torch.device
    dtype: torch.dtype
    zero: Zero | None = None

    @classmethod
    def of(cls, config: Config, world: World, module: nn.Module) -> "Devices":
        """Choose for this rank and a policy of this size."""
        size = count_parameters(module)
        dtype = compute_dtype(config.model, world.device, size)
        return cls(device=world.device, dtype=dtype, zero=Zero.of(config, world, dtype))

    @property
    def weights(self) -> torch.dtype:
        """The type of the weights that are computed with; their masters are float32."""
        return torch.bfloat16 if self.zero and self.zero.has_bf16_weights else torch.float32

    @property
    def autocast(self) -> torch.dtype | None:
        """What a forward pass outside of an engine is cast to; None: nothing."""
        return None if self.dtype == self.weights else self.dtype

    def engine(self, module: nn.Module, settings: OptimizerSettings, name: str) -> Engine:
        """Wrap a module for training."""
        placed: dict[str, Any] = {"name": name, "device": self.device, "dtype": self.dtype}
        if self.zero is None:
            return TorchEngine(module, settings, **placed)
        settings_json = self.zero.trained(settings)
        adamw = json.dumps(settings_json["optimizer"])
        same_everywhere(**{f"optimizer of the {name}": adamw})  # one host may lack a compiler
        made = DeepSpeedEngine(module, settings, **placed, json=settings_json)
        limit_waits(self.zero.config.backend.timeout_seconds)
        return made

    def frozen(self, module: nn.Module) -> nn.Module:
        """Place a module that does not train; it is shared out where the policy is."""
        if self.zero is None or self.zero.stage < 3:
            for weight in module.to(self.device).parameters():  # angles of positions stay float32
                weight.data = weight.data.to(self.weights)
            return module
        return frozen(module, self.zero.frozen())


def critic_of(config: Config, policy: Policy) -> Critic | None:
    """Build a separate critic, from a policy without adapters; None where it is not separate."""
    ppo, lora = config.ppo, config.model.lora
    if ppo.critic != "separate":
        return None
    checkpointing = config.backend.gradient_checkpointing
    with loading(config):
        critic = build_critic(
            policy.model,
            ppo.critic_init,
            gradient_checkpointing=checkpointing,
            reads_logprobs=ppo.critic_reads_logprobs,
        )
    if ppo.critic_init != "policy":  # a copy of the policy reads rows as the policy does
        with layer_by_layer(critic):
            packs(critic.trunk, config.backend.packing)
    if lora.rank and lora.critic == "adapters":
        adapt(critic, lora, seed=config.run.seed)
    return critic


def reference_of(config: Config, policy: Policy, devices: Devices) -> FrozenPolicy | None:
    """Copy the policy as it is now, for the KL; None where no copy is needed.

    With adapters the reference is the policy itself, its adapters off (`BasePolicy`).
    """
    if config.ppo.kl_placement == "none" or config.model.lora.rank:
        return None
    model = copy.deepcopy(policy.model)
    scorer = policy.scorer
    copied = CausalPolicy(
        model, temperature=scorer.temperature, chunk=scorer.chunk, absent=scorer.absent
    )
    placed = devices.frozen(copied.requires_grad_(False))
    return FrozenPolicy(placed, config, device=devices.device, autocast=devices.autocast)


def writer_of(policy: Policy, devices: Devices) -> GenerationModel:
    """Return what writes: the policy itself, unless its weights are shared out over ranks.

    Then it is a copy that is filled once a rollout, where `backend.zero.gather_gb` allows one. An
    engine in another process holds weights of its own.
    """
    zero = devices.zero
    if zero is None or zero.stage < 3 or zero.config.generation.engine != "transformers":
        return GenerationModel(policy=policy, weights="shared")
    if not zero.holds(count_parameters(policy) * devices.weights.itemsize):
        return GenerationModel(policy=policy, weights="sharded")
    empty = {id(weight): nn.Parameter(torch.empty(0), False) for weight in policy.parameters()}
    copied = copy.deepcopy(policy, empty)  # every rollout brings the weights
    return GenerationModel(policy=copied.to(devices.device), weights="copied")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModels:
    """What a text run trains, is held against and writes with.

    Attributes:
        copy: writes rollouts ahead; None: nothing does.
        num_trained: parameters of the policy that learn.
    """

    learner: Learner
    reference: Reference | None
    writer: GenerationModel
    copy: PolicyCopy | None
    num_trained: int


def copy_of(config: Config, policy: Policy, devices: Devices) -> tuple[Policy, PolicyCopy]:
    """Copy the policy, as a module and as the actor of rollouts that are written ahead."""
    module = copy.deepcopy(policy).requires_grad_(False)
    placed = devices.frozen(module)
    scorer = FrozenPolicy(placed, config, device=devices.device, autocast=devices.autocast)
    return module, PolicyCopy(module, scorer)


def text_models(config: Config, policy: Policy, devices: Devices) -> TextModels:
    """Build engines, reference and writer around a policy, which is taken for good."""
    ppo, lora = config.ppo, config.model.lora
    critic = critic_of(config, policy)
    if lora.rank:
        adapt(policy.model, lora, seed=config.run.seed)
    count = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    writer = writer_of(policy, devices)  # copied before an engine shares the weights out
    ahead = None
    if config.generation.ahead:
        module, ahead = copy_of(config, policy, devices)
        writer = GenerationModel(policy=module, weights="shared")
    reference: Reference | None = reference_of(config, policy, devices)
    second = None
    if critic is not None:
        settings = optimizer_settings(config, ppo.critic_learning_rate)
        second = devices.engine(critic, settings, "critic")
    engine = devices.engine(policy, optimizer_settings(config, ppo.learning_rate), "policy")
    learner = Learner(engine, second, config)
    if lora.rank and ppo.kl_placement != "none":
        reference = BasePolicy(learner)
    return TextModels(
        learner=learner, reference=reference, writer=writer, copy=ahead, num_trained=count
    )


def engines_json(config: Config, zero: Zero) -> dict[str, dict[str, Any]]:
    """Return what DeepSpeed is given, by engine."""
    ppo = config.ppo
    engines = {"policy": zero.trained(optimizer_settings(config, ppo.learning_rate))}
    if ppo.critic == "separate":
        settings = optimizer_settings(config, ppo.critic_learning_rate)
        engines["critic"] = zero.trained(settings)
    if zero.stage == 3 and ppo.kl_placement != "none" and not config.model.lora.rank:
        engines["reference"] = zero.frozen()
    if zero.stage == 3 and config.distill.teacher is not None:
        engines["teacher"] = zero.frozen()
    return engines


def card(session: Session, base_model: str | None) -> dict[str, Any]:
    """Return what a model card says: where the model comes from, its scores, its settings."""
    config = session.config
    scores = {}
    for step, done in session.held_out.evaluations:
        for evaluation in done:
            scores[f"{evaluation.env}, iteration {step}"] = round(evaluation.mean, 4)
    return {
        "title": config.run.name,
        "base_model": base_model,
        "metrics": scores,
        "text": f"Settings: config.yaml of the run, digest {config.digest}.",
    }
