"""DeepSpeed's JSON: built from our settings, with a user's file laid over it. No torch here.

    settings -> engine_json, frozen_json        and        a user's file -> tuning -> over both

DeepSpeed accepts a misspelt key, a negative clipping threshold or an offload that does nothing
without a word (0.19.8). Here a file is read strictly: what it may not say is refused by name and
line, what our settings decide may only be repeated, and all else is passed on.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.backends.zero.keys import DEEPSPEED_SECTIONS, OFFLOAD, OPTIMIZER, REFUSED, TOP, ZERO
from trainers.config import Config
from trainers.config.backend import ZeroConfig
from trainers.errors import ConfigError

Tree = dict[str, Any]

NVME = {"sub_group_size": 100_000_000}
"""Masters and moments are read in by such parts: four buffers of this size lie in host memory."""
NVME_WEIGHTS = {
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}
"""Weights are read when they are used, and let go at once: DeepSpeed 0.19 runs out of buffers where
they stay, and fetches twice what it reads ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A value of the JSON that is decided by a setting of ours; by none: it has no other."""

    value: Any
    setting: str | None


def decided(config: Config, world_size: int) -> dict[str, Decided]:
    """Return what our settings decide, by dotted key of the JSON."""
    zero, ppo = config.backend.zero, config.ppo
    batch = "ppo.num_prompts, ppo.num_minibatches and backend.micro_batch_tokens"
    device = "nvme" if zero.nvme_path else "cpu"
    is_bf16 = {"bfloat16": True, "float32": False}.get(config.model.dtype, "auto")
    named = {
        "train_batch_size": (world_size, batch),
        "train_micro_batch_size_per_gpu": (1, batch),
        "gradient_accumulation_steps": (1, batch),
        "managed_gradient_accumulation": (True, batch),
        "gradient_clipping": (ppo.max_grad_norm or 0.0, "ppo.max_grad_norm"),
        "bf16.enabled": (is_bf16, "model.dtype"),
        "fp16.enabled": (False, "model.dtype"),
        "optimizer.type": ("AdamW", None),
        "optimizer.params.lr": (ppo.learning_rate, "ppo.learning_rate"),
        "optimizer.params.betas": (list(ppo.adam_betas), "ppo.adam_betas"),
        "optimizer.params.eps": (ppo.adam_eps, "ppo.adam_eps"),
        "optimizer.params.weight_decay": (ppo.weight_decay, "ppo.weight_decay"),
        "zero_optimization.stage": (zero.stage, "backend.zero.stage"),
    }
    for part, at in (
        ("offload_optimizer", ("optimizer", "params")),
        ("offload_param", ("params",)),
    ):
        place = device if zero.offload in at else "none"
        named[f"zero_optimization.{part}.device"] = (place, "backend.zero.offload")
        named[f"zero_optimization.{part}.nvme_path"] = (zero.nvme_path, "backend.zero.nvme_path")
    return {key: Decided(value=value, setting=setting) for key, (value, setting) in named.items()}


def tuning(config: Config, world_size: int) -> Tree:
    """Return what a user's file adds to our settings; nothing without a file.

    Raises:
        ConfigError: with every mistake of the file at once: where, what, and what to do.
    """
    if config.backend.zero.config is None:
        return {}
    file = Path(config.backend.zero.config)
    text, tree = _read(file)
    ours, zero = decided(config, world_size), config.backend.zero
    problems: list[str] = []
    kept: Tree = {}
    for key, value in _leaves(tree):
        problem = _problem(key, value, ours, zero)
        if problem is not None:
            problems.append(f"{file}:{_line(text, key)}: {problem}")
        elif value != "auto" and key not in ours:
            _put(kept, key, value)
    if problems:
        raise ConfigError("\n".join(problems))
    return kept


def _read(file: Path) -> tuple[str, Tree]:
    def unique(pairs: list[tuple[str, Any]]) -> Tree:
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f'"{twice[0]}" stands there twice')
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        text = file.read_text(encoding="utf-8")
        tree = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"backend.zero.config {file} cannot be read: {reason}. Name a JSON file of DeepSpeed "
            "settings, or drop it."
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"backend.zero.config {file} must hold a JSON object.")
    return text, tree


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{above}{name}"
        inside = key.split(".")[0] in DEEPSPEED_SECTIONS and key not in REFUSED
        if isinstance(value, dict) and value and inside:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _line(text: str, key: str) -> int:
    """Return the line of a dotted key: of the last of its names, each after the one before."""
    place = 0
    for name in key.split("."):
        match = re.compile(rf'"{re.escape(name)}"\s*:').search(text, place)
        place = match.end() if match else place
    return text.count("\n", 0, place) + 1


def _problem(key: str, value: Any, ours: Mapping[str, Decided], zero: ZeroConfig) -> str | None:  # noqa: ANN401
    """Return what is wrong with one line of a user's file."""
    for part in (key.split(".")[0], key):
        if part in REFUSED:
            return f"{part} is not for use here: {REFUSED[part]}."
    section, _, rest = key.partition(".")
    if unknown := _unknown(section, rest, ours):
        return unknown
    if value == "auto":
        return None
    if key in ours:
        return _contradiction(key, value, ours[key])
    if key in ("zero_optimization.offload_optimizer", "zero_optimization.offload_param"):
        return f"{key} must be an object."
    part = rest.split(".")[0]
    if part.startswith("offload_") and ours[f"{section}.{part}.device"].value == "none":
        return (
            f"{key} has no effect while backend.zero.offload is {zero.offload}: DeepSpeed would "
            "leave it out without a word. Set --backend.zero.offload, or drop it."
        )
    return _wrong_kind(key, value) or _combination(key, value, zero)


def _contradiction(key: str, value: Any, mine: Decided) -> str | None:  # noqa: ANN401
    if value == mine.value or (value is False and mine.value == "auto"):
        return None
    if mine.setting is None:
        return f"{key} must be {json.dumps(mine.value)}, got {json.dumps(value)}: drop the line."
    return (
        f"{key} {json.dumps(value)} contradicts {json.dumps(mine.value)}, which is decided by "
        f'{mine.setting}. Change it there, and write "auto" here or drop the line.'
    )


def _unknown(section: str, rest: str, ours: Mapping[str, Decided]) -> str | None:
    if section not in TOP and section not in ours:
        return _misspelt(section, sorted({*TOP, *(key for key in ours if "." not in key)}))
    if not rest or section not in DEEPSPEED_SECTIONS:
        return None
    if section == "zero_optimization":
        name, _, inner = rest.partition(".")
        if inner and name.startswith("offload_"):
            return None if inner in OFFLOAD else _misspelt(inner, sorted(OFFLOAD))
        known = [*ZERO, "offload_optimizer", "offload_param"]
        return None if name in known else _misspelt(name, known)
    known = {
        "bf16": {"enabled", "bf16_master_weights_and_grads", "bf16_optimizer_states"},
        "fp16": {"enabled"},
        "data_types": {"grad_accum_dtype"},
        "optimizer": {"type", *(f"params.{key}" for key in OPTIMIZER)},
    }[section]
    return None if rest in known else _misspelt(rest, sorted(known))


def _misspelt(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else "Drop it."
    return f"{name} is no key that is known here. {hint}"


def _wrong_kind(key: str, value: Any) -> str | None:  # noqa: ANN401
    section, _, rest = key.partition(".")
    if section != "zero_optimization":
        return None
    kind = ZERO.get(rest) or OFFLOAD[rest.partition(".")[2]]
    type_words = {
        bool: "true or false",
        int: "a whole number, 0 or above",
        float: "a number, 0 or above",
    }
    if kind is bool:
        return None if isinstance(value, bool) else f"{key} must be {type_words[bool]}."
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if kind is int and is_number and value != int(value):
        is_number = False
    return None if is_number else f"{key} must be {type_words[kind]}, got {json.dumps(value)}."


def _combination(key: str, value: Any, zero: ZeroConfig) -> str | None:  # noqa: ANN401
    """Return what DeepSpeed 0.19 cannot do at this stage, or does wrong."""
    if key == "data_types.grad_accum_dtype":
        if value not in ("fp32", "bf16"):
            return f'{key} must be "fp32" or "bf16", got {json.dumps(value)}.'
        if value == "fp32" and zero.stage == 0:
            return f"{key} fp32 does not exist at stage 0: drop it."
        if value == "fp32" and zero.stage < 3 and zero.offload != "none":
            return (
                f"{key} fp32 at stage {zero.stage} with an offloaded optimizer skips every step "
                "after one that was not finite: drop it, or set --backend.zero.stage 3."
            )
    if key == "zero_optimization.overlap_comm" and value and zero.stage < 2:
        return f"{key} works at stages 2 and 3, and backend.zero.stage is {zero.stage}: drop it."
    return None


def _put(tree: Tree, key: str, value: Any) -> None:  # noqa: ANN401
    *path, last = key.split(".") if key.split(".")[0] in DEEPSPEED_SECTIONS else [key]
    for name in path:
        tree = tree.setdefault(name, {})
    tree[last] = value


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """Return `below` with `above` laid over it, section by section."""
    result = deepcopy(dict(below))
    for key, value in above.items():
        inner = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = _over(result[key], value) if inner else deepcopy(value)
    return result


def _zero_section(zero: ZeroConfig, *, on_gpu: bool) -> Tree:
    device: Tree = {"device": "cpu", "pin_memory": on_gpu}
    if zero.nvme_path is not None:
        device = {"device": "nvme", "nvme_path": zero.nvme_path, "pin_memory": on_gpu}
    section: Tree = {
        "stage": zero.stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu and zero.stage >= 2,
        "reduce_bucket_size": 200_000_000,
    }
    if zero.offload != "none":
        section["offload_optimizer"] = dict(device)
    if zero.stage == 3:
        section |= {
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "sub_group_size": 1_000_000_000,
        }
        if zero.offload == "params":
            section["offload_param"] = dict(device)
    if zero.nvme_path is not None:
        section |= NVME
        if zero.offload == "params":
            section |= NVME_WEIGHTS
            section["offload_param"]["max_in_cpu"] = 0  # it would keep the first 1e9 numbers
    return section


def engine_json(
    zero: ZeroConfig,
    adamw: Mapping[str, Any],
    *,
    max_grad_norm: float | None,
    is_bf16: bool,
    on_gpu: bool,
    tuning: Mapping[str, Any],
) -> Tree:
    """Return the JSON of an engine that trains.

    Args:
        zero: stage and offload.
        adamw: the optimizer's parameters; `torch_adam` needs no compiler.
        max_grad_norm: where gradients are clipped; None: nowhere.
        is_bf16: bfloat16 weights with float32 masters, else float32 throughout.
        on_gpu: False on a machine without an accelerator.
        tuning: what `tuning` returned.
    """
    made: Tree = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": True,  # the engine sets its boundary
        "gradient_clipping": max_grad_norm or 0.0,  # left out it would be 1.0
        "optimizer": {"type": "AdamW", "params": dict(adamw)},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero_section(zero, on_gpu=on_gpu),
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if is_bf16:
        made["bf16"] = {"enabled": True, "check_grad_overflow": True}
    # Stage 0 has none; 1 and 2 with offload would skip every step after one that was not finite.
    if zero.stage == 3 or (zero.stage and zero.offload == "none"):
        made["data_types"] = {"grad_accum_dtype": "fp32"}
    return _over(made, tuning)


def can_leave(engine: Mapping[str, Any]) -> bool:
    """Tell whether masters and moments of such an engine can leave a GPU and come back.

    Stage 1 in bfloat16 cannot, and stage 3 moves those of DeepSpeed's own Adam alone.
    """
    section = engine["zero_optimization"]
    if section["stage"] < 2 or "offload_optimizer" in section:
        return False
    return section["stage"] == 2 or not engine["optimizer"]["params"].get("torch_adam")


def frozen_json(
    zero: ZeroConfig, *, is_bf16: bool, on_gpu: bool, tuning: Mapping[str, Any]
) -> Tree:
    """Return the JSON of a model at stage 3 that does not train, such as the reference."""
    section = _over(_zero_section(zero, on_gpu=on_gpu), tuning.get("zero_optimization", {}))
    section.pop("offload_optimizer", None)
    made: Tree = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": section,
        "steps_per_print": 1_000_000_000,
    }
    if is_bf16:
        made["bf16"] = {"enabled": True}
    return made
