"""Settings that change nothing, or leave nothing of use to learn. A run says so once."""

from collections.abc import Callable

from trainers.config.environments import env_kwargs
from trainers.config.files import parse
from trainers.config.schema import value_at
from trainers.config.settings import SCHEMA, BackendConfig, Config
from trainers.errors import ConfigError


def _stay(backend: BackendConfig) -> bool:
    """Tell whether DeepSpeed keeps moments and masters where they are between phases."""
    is_fixed = backend.zero.stage < 2 or backend.zero.offload != "none"
    return backend.name == "deepspeed" and is_fixed


INEFFECTIVE: tuple[tuple[str, Callable[[Config], bool], str, str], ...] = (
    *(
        (name, lambda config: config.ppo.critic != "separate", "ppo.critic is not separate", remedy)
        for name, remedy in (
            ("ppo.critic_learning_rate", "set ppo.learning_rate, the policy's"),
            ("ppo.critic_init", "set ppo.critic separate"),
        )
    ),
    *(
        (
            name,
            lambda config: not config.ppo.has_critic,
            "ppo.critic is none",
            "set ppo.advantage gae with a critic",
        )
        for name in ("ppo.gae_lambda", "ppo.value_clip")
    ),
    (
        "ppo.scale_advantages",
        lambda config: config.ppo.has_critic,
        "ppo.advantage is gae",
        "set ppo.whiten_advantages",
    ),
    (
        "ppo.critic_reads_logprobs",
        lambda config: config.is_control or not config.ppo.has_critic,
        "run.kind is control, or ppo.critic is none",
        "set model.path, of a text run with a critic",
    ),
    (
        "ppo.value_coef",
        lambda config: config.ppo.critic != "shared",
        "ppo.critic is not shared",
        "set ppo.critic_learning_rate",
    ),
    (
        "ppo.whiten_advantages",
        lambda config: config.ppo.advantage == "teacher",
        "ppo.advantage is teacher, whose advantages have mean 0 and are in nats",
        "set distill.coef",
    ),
    *(
        (
            f"distill.{name}",
            lambda config: config.distill.teacher is None or not config.ppo.num_iterations,
            "distill.teacher is not set or ppo.num_iterations is 0",
            "set distill.teacher and ppo.num_iterations",
        )
        for name in ("method", "max_tokens", "max_minutes")
    ),
    *(
        (
            f"distill.{name}",
            lambda config: config.distill.teacher is None or config.distill.method != "ppo",
            "distill.teacher is not set or distill.method is not ppo",
            "set distill.teacher and distill.method ppo",
        )
        for name in ("coef", "clip")
    ),
    (
        "distill.beta",
        lambda config: config.distill.teacher is None or config.distill.method != "gkd",
        "distill.teacher is not set or distill.method is not gkd",
        "set distill.teacher and distill.method gkd",
    ),
    *(
        (
            f"ppo.{name}",
            lambda config: config.distill.is_direct,
            "distill.method is gkd or sft_kd, which follows a divergence alone",
            "set distill.method ppo",
        )
        for name in (
            "clip_low",
            "clip_high",
            "clip_dual",
            "target_kl",
            "entropy_coef",
            "old_logprobs",
            "mismatch_correction",
        )
    ),
    (
        "ppo.kl_target",
        lambda config: config.ppo.kl_controller == "fixed",
        "ppo.kl_controller is fixed",
        "set ppo.kl_controller adaptive",
    ),
    (
        "ppo.kl_horizon",
        lambda config: config.ppo.kl_controller == "fixed",
        "ppo.kl_controller is fixed",
        "set ppo.kl_controller adaptive",
    ),
    (
        "ppo.truncation_penalty",
        lambda config: config.ppo.on_truncation != "penalty",
        "ppo.on_truncation is not penalty",
        "set ppo.on_truncation penalty",
    ),
    (
        "ppo.samples_per_prompt",
        lambda config: (
            config.is_control and config.ppo.has_critic and config.ppo.samples_per_prompt != 1
        ),
        "run.kind is control and ppo.critic is not none",
        "set ppo.num_prompts, the number of environments",
    ),
    (
        "generation.ahead",
        lambda config: config.is_control,
        "run.kind is control",
        "train on text",
    ),
    (
        "envs.0.executor",
        lambda config: config.is_control,
        "run.kind is control",
        "train on text",
    ),
    *(
        (
            f"envs.0.curriculum.{name}",
            lambda config: not config.env.curriculum.levels,
            "envs.0.curriculum.levels is empty",
            "set its levels",
        )
        for name in ("up", "down", "window")
    ),
    (
        "ppo.num_steps",
        lambda config: not config.is_control,
        "the run is of text",
        "set generation.max_new_tokens",
    ),
    *(
        (
            f"data.{name}",
            lambda config: not (config.sft.num_epochs or config.reward_model.num_epochs),
            "no supervised stage reads rows",
            remedy,
        )
        for name, remedy in (
            ("response_column", "set envs.0.kwargs.solution_column"),
            ("num_examples", "set sft.num_epochs, or give a shorter file"),
        )
    ),
    *(
        (
            f"model.lora.{name}",
            lambda config: not config.model.lora.rank,
            "model.lora.rank is 0",
            "set model.lora.rank",
        )
        for name in ("alpha", "targets")
    ),
    (
        "model.lora.critic",
        lambda config: not config.model.lora.rank or config.ppo.critic != "separate",
        "model.lora.rank is 0 or ppo.critic is not separate",
        "set model.lora.rank and ppo.critic separate",
    ),
    (
        "model.hidden_sizes",
        lambda config: not config.is_control,
        "the run is of text",
        "set model.preset",
    ),
    *(
        (
            f"backend.zero.{name}",
            lambda config: config.backend.name == "torch",
            "backend.name is torch",
            "set backend.name deepspeed",
        )
        for name in ("stage", "offload", "gather_gb")
    ),
    (
        "backend.offload_between_phases",
        lambda config: _stay(config.backend),
        "there is no GPU, or DeepSpeed has moments and masters stay (below stage 2, or offloaded)",
        "train on a GPU by plain torch or at stage 2 or 3 without offload",
    ),
    *(
        (
            f"generation.{name}",
            lambda config: config.generation.engine != "vllm",
            "generation.engine is not vllm",
            "set generation.engine vllm",
        )
        for name in ("vllm.cache_gb", "vllm.options", "servers", "timeout_seconds")
    ),
    (
        "generation.tolerance",
        lambda config: config.generation.engine not in ("vllm", "continuous"),
        "generation.engine is exact",
        "set generation.engine vllm or continuous",
    ),
    *(
        (
            f"generation.speculative.{name}",
            lambda config: config.generation.engine != "speculative",
            "generation.engine is not speculative",
            "set generation.engine speculative",
        )
        for name in ("drafter", "length", "entropy", "controller", "longest")
    ),
    (
        "eval.min_delta",
        lambda config: config.eval.patience is None,
        "eval.patience is off",
        "set eval.patience",
    ),
)
"""A setting, when it has no effect, why, and what has."""

NEED_GPU = ("backend.offload_between_phases",)
"""Settings that have no effect without a GPU."""
PROMPTS = "llmgym/Prompts-v0"
"""It asks what is written in it where no file is named."""


def without_effect(config: Config, *, has_gpu: bool) -> list[str]:
    """Return a sentence for each setting that differs from its default in vain."""
    settings, usual = (SCHEMA.dump_python(source, mode="json") for source in (config, Config()))
    messages: list[str] = []
    for name, is_idle, why, remedy in INEFFECTIVE:
        value = value_at(settings, parse(name))
        is_vain = is_idle(config) or (name in NEED_GPU and not has_gpu)
        if is_vain and value != value_at(usual, parse(name)):
            messages.append(f"{name} {value} has no effect while {why}. Drop it, or {remedy}.")
    return messages


def for_practice(config: Config) -> list[str]:
    """Return a sentence where PPO trains a model that knows nothing, or on nobody's prompts."""
    if config.is_control or not config.ppo.num_iterations:
        return []
    kwargs = {**env_kwargs(config), **config.eval.kwargs}
    missing: dict[str, str] = {}
    if config.model.path is None and not config.sft.num_epochs:
        missing["PPO starts from a fresh model, which has learned nothing"] = "--model.path MODEL"
    if config.env.id == PROMPTS and kwargs.get("path") is None:
        rows = f"the prompts are the few written in {PROMPTS}"
        missing[rows] = "--data my.jsonl --reward my_reward.py:score"
    if not missing:
        return []
    problem, options = ", and ".join(missing), " ".join(missing.values())
    return [f"{problem}: nothing else was named. Name your own: {options}"]


def check_work(config: Config, *, has_own: bool) -> None:
    """Refuse a run that trains nothing, or takes nothing of what the caller gives.

    Raises:
        ConfigError: says what to set.
    """
    if config.reward_model.num_epochs:
        if has_own:
            raise ConfigError(
                "a reward model learns from rows: env and reward would have no effect."
            )
    elif not (config.sft.num_epochs or config.ppo.num_iterations):
        raise ConfigError(
            "ppo.num_iterations 0 and sft.num_epochs 0 leave nothing to train. Set one of them; "
            "llmgym eval scores a model as it is."
        )


def emulated(config: Config, *, has_gpu: bool, cpu_has_bf16: bool) -> list[str]:
    """Return a warning where bfloat16 is set for a CPU without it."""
    if has_gpu or cpu_has_bf16 or config.model.dtype != "bfloat16":
        return []
    return [
        "model.dtype bfloat16 is emulated on this CPU, up to 90 times slower than float32. Set "
        "--model.dtype auto: bfloat16 where the hardware multiplies it, else float32."
    ]


def remarks(config: Config, *, has_gpu: bool, cpu_has_bf16: bool) -> list[str]:
    """Return what a run says of its settings at its start."""
    return [
        *without_effect(config, has_gpu=has_gpu),
        *emulated(config, has_gpu=has_gpu, cpu_has_bf16=cpu_has_bf16),
        *for_practice(config),
    ]
