"""What every unit of a model costs in time on this machine, and whether the sum is true.

    latency(plan) = constant + sum over units ( scale_kind * alone(unit) + overhead of a unit )

`alone` is the time of the unit by itself; the four numbers are fitted to complete models of some
shapes, and judged on at least ten of others. Above 10 % error the table is refused.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from scipy.optimize import nnls
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

from trainers.compress.slicing import smaller_config
from trainers.compress.timing import TimedWork, interleaved, machine_record
from trainers.compress.units import (
    KINDS,
    Choice,
    Geometry,
    SizePlan,
    UnitKind,
    geometry_of,
    uniform_plan,
)
from trainers.errors import MeasurementError

MAX_ERROR = 0.10
"""Largest relative error of a table that is used."""
TOGETHER_BYTES = 2**31
"""Weights of complete models that are held at once."""
LEAST_MODELS = 10
"""Complete models that judge a table."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is timed.

    Attributes:
        batch: rows.
        prompt_tokens: tokens of each row that were read before, or that are read at once.
        phase: one more token after the prompt, or the prompt itself.
        dtype: of the weights.
    """

    batch: int = 1
    prompt_tokens: int = 64
    phase: Literal["decode", "prefill"] = "decode"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def new_tokens(self) -> int:
        """Tokens per row of one timed pass."""
        return 1 if self.phase == "decode" else self.prompt_tokens


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well the table predicts complete models that it was not fitted to.

    Attributes:
        r2: share of the variance that is predicted.
        largest_error: relative to the measured time.
        rows: (measured, predicted) seconds of each model.
    """

    r2: float
    largest_error: float
    rows: tuple[tuple[float, float], ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """Seconds of a pass: a constant, and what each unit adds to it.

    Attributes:
        constant: embedding, norm, head and what every pass costs.
        units: (kind, size) -> seconds; 0 for size 0.
        fit: on complete models.
        workload: what was timed.
        record: the machine.
    """

    constant: float
    units: Mapping[tuple[UnitKind, int], float]
    fit: Fit
    workload: Workload
    record: Mapping[str, Any]

    def seconds(self, kind: UnitKind, choice: Choice) -> float:
        """Return what a choice of a unit adds to a pass.

        Raises:
            MeasurementError: it was not measured.
        """
        if (kind, choice.size) not in self.units:
            known = sorted(size for other, size in self.units if other == kind)
            raise MeasurementError(
                f"no {kind} of size {choice.size} was measured, only {known}. Measure it."
            )
        return self.units[kind, choice.size]

    def predicted(self, plan: SizePlan) -> float:
        """Return the seconds of a pass of a plan."""
        return self.constant + sum(
            self.seconds(kind, choice)
            for layer in plan.layers
            for kind, choice in zip(KINDS, layer, strict=True)
        )

    def check(self) -> None:
        """Refuse a table that does not predict complete models.

        Raises:
            MeasurementError: an error above 10 %, or too few models.
        """
        if len(self.fit.rows) < LEAST_MODELS:
            raise MeasurementError(
                f"{len(self.fit.rows)} complete models judge a latency table: {LEAST_MODELS} are "
                "needed"
            )
        if self.fit.largest_error > MAX_ERROR:
            raise MeasurementError(
                f"the latency table is wrong by up to {self.fit.largest_error:.1%} on complete "
                f"models, and {MAX_ERROR:.0%} is allowed (R^2 {self.fit.r2:.3f}). Measure again "
                "on an idle machine, with more rounds."
            )


def random_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model with random weights: time does not depend on them."""
    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def model_work(model: PreTrainedModel, workload: Workload) -> TimedWork:
    """Return a pass of a complete model, its cache put back after each."""
    vocabulary = int(model.config.vocab_size)
    ids = torch.arange(workload.batch * workload.prompt_tokens) % vocabulary
    prompt = ids.reshape(workload.batch, workload.prompt_tokens)
    if workload.phase == "prefill":
        return TimedWork(torch.no_grad()(lambda: model(input_ids=prompt, use_cache=False)))
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=prompt, past_key_values=cache, use_cache=True)
    token = prompt[:, -1:]
    step = torch.no_grad()(
        lambda: model(input_ids=token, past_key_values=cache, use_cache=True)
    )  # fmt: skip
    return TimedWork(step, lambda: cache.crop(-1))  # a negative count is of tokens to remove


def unit_works(model: PreTrainedModel, workload: Workload) -> tuple[TimedWork, TimedWork]:
    """Return passes of the attention and of the MLP of a model's first layer, with their norms."""
    layer, dtype = model.model.layers[0], model.dtype
    hidden = torch.zeros(workload.batch, workload.new_tokens, model.config.hidden_size, dtype=dtype)
    past = workload.prompt_tokens if workload.phase == "decode" else 0
    positions = torch.arange(past, past + workload.new_tokens)[None]
    angles = model.model.rotary_emb(hidden, position_ids=positions)
    cache = None
    if past:
        cache = DynamicCache()
        ids = torch.zeros(workload.batch, past, dtype=torch.long)
        with torch.no_grad():
            model(input_ids=ids, past_key_values=cache, use_cache=True)

    def attention() -> torch.Tensor:
        normed = layer.input_layernorm(hidden)
        mixed, _ = layer.self_attn(
            hidden_states=normed,
            position_embeddings=angles,
            attention_mask=None,
            past_key_values=cache,
        )
        return hidden + mixed

    def mlp() -> torch.Tensor:
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    back = (lambda: None) if cache is None else (lambda: cache.crop(-1))
    return TimedWork(torch.no_grad()(attention), back), TimedWork(torch.no_grad()(mlp))


def shapes(geometry: Geometry, count: int, seed: int) -> list[SizePlan]:
    """Return `count` plans of one shape each: random sizes and depths, the smallest and the dense.

    Raises:
        MeasurementError: the model has fewer shapes.
    """
    groups = [size for size in geometry.sizes("attention") if size]
    channels = [size for size in geometry.sizes("mlp") if size]
    least = max(1, geometry.num_layers // 4)
    every = [
        (size, width, layers)
        for size in groups
        for width in channels
        for layers in range(least, geometry.num_layers + 1)
    ]
    if len(every) < count:
        raise MeasurementError(
            f"{count} shapes are needed to judge a latency table, and this model has {len(every)}"
        )
    inner = np.random.default_rng(seed).permutation(len(every) - 2)[: count - 2] + 1
    picked = [every[0], every[-1], *(every[number] for number in inner)]
    return [
        uniform_plan(
            geometry, groups=size, channels=width, dropped=range(layers, geometry.num_layers)
        )
        for size, width, layers in picked
    ]


def alone_times(
    config: PreTrainedConfig, workload: Workload, *, rounds: int
) -> dict[tuple[UnitKind, int], float]:
    """Return the seconds of every size of a unit by itself, the least of `rounds`."""
    geometry, dtype = geometry_of(config), getattr(torch, workload.dtype)
    dropped = range(1, geometry.num_layers)
    keys: list[tuple[UnitKind, int]] = []
    works: list[TimedWork] = []
    sizes = {kind: [size for size in geometry.sizes(kind) if size] for kind in KINDS}
    for number in range(max(map(len, sizes.values()))):
        picked = {kind: options[min(number, len(options) - 1)] for kind, options in sizes.items()}
        plan = uniform_plan(
            geometry, groups=picked["attention"], channels=picked["mlp"], dropped=dropped
        )
        pair = unit_works(random_model(smaller_config(config, plan), dtype), workload)
        for kind, work in zip(KINDS, pair, strict=True):
            if (kind, picked[kind]) not in keys:
                keys.append((kind, picked[kind]))
                works.append(work)
    seconds = interleaved(works, rounds=rounds).min(0)
    return dict(zip(keys, map(float, seconds), strict=True))


def complete_times(
    config: PreTrainedConfig, plans: Sequence[SizePlan], workload: Workload, *, rounds: int
) -> np.ndarray:
    """Return the seconds [plans] of complete models, the least of `rounds`.

    Models are interleaved as far as their weights fit in `TOGETHER_BYTES`.
    """
    dtype = getattr(torch, workload.dtype)
    seconds: list[float] = []
    works: list[TimedWork] = []
    held = 0
    for plan in plans:
        model = random_model(smaller_config(config, plan), dtype)
        works.append(model_work(model, workload))
        held += sum(weight.numel() * weight.itemsize for weight in model.parameters())
        if held > TOGETHER_BYTES or plan is plans[-1]:
            seconds += interleaved(works, rounds=rounds).min(0).tolist()
            works, held = [], 0
    return np.array(seconds)


def terms(plan: SizePlan, alone: Mapping[tuple[UnitKind, int], float]) -> list[float]:
    """Return what the fit multiplies: seconds alone of each kind, number of units, 1."""
    choices: list[tuple[UnitKind, int]] = [
        (kind, choice.size)
        for layer in plan.layers
        for kind, choice in zip(KINDS, layer, strict=True)
        if choice.size
    ]
    by_kind = [sum(alone[key] for key in choices if key[0] == kind) for kind in KINDS]
    return [*by_kind, float(len(choices)), 1.0]


def judged(measured: np.ndarray, predicted: np.ndarray) -> Fit:
    """Return how well seconds [n] are predicted."""
    variance = float(((measured - measured.mean()) ** 2).sum())
    error = float(((measured - predicted) ** 2).sum())
    return Fit(
        r2=1 - error / variance if variance else 0.0,
        largest_error=float((abs(predicted - measured) / measured).max()),
        rows=tuple(zip(map(float, measured), map(float, predicted), strict=True)),
    )


def measure_latency(
    config: PreTrainedConfig,
    workload: Workload | None = None,
    *,
    rounds: int = 60,
    models: int = 12,
    seed: int = 0,
) -> LatencyTable:
    """Measure the table of a model's shapes on this machine; `check` says whether it may be used.

    Args:
        config: of the dense model.
        workload: what is timed.
        rounds: how often each piece runs; the least time counts.
        models: complete models that judge the table, and as many that it is fitted to.
        seed: of their shapes.

    Raises:
        MeasurementError: the model has too few shapes.
        ConfigError: the family cannot be sliced.
    """
    workload = workload or Workload()
    geometry, began = geometry_of(config), time.perf_counter()
    alone = alone_times(config, workload, rounds=rounds)
    plans = shapes(geometry, 2 * models, seed)
    seconds = complete_times(config, plans, workload, rounds=rounds)
    rows = np.array([terms(plan, alone) for plan in plans])
    fitted, held = slice(0, models), slice(models, None)
    weights, _ = nnls(rows[fitted] / seconds[fitted, None], np.ones(models))
    *scales, overhead, constant = map(float, weights)
    scale = dict(zip(KINDS, scales, strict=True))
    units = {key: scale[key[0]] * value + overhead for key, value in alone.items()}
    empty: dict[tuple[UnitKind, int], float] = dict.fromkeys([(kind, 0) for kind in KINDS], 0.0)
    return LatencyTable(
        constant=constant,
        units=units | empty,
        fit=judged(seconds[held], rows[held] @ weights),
        workload=workload,
        record={**machine_record(), "seconds": time.perf_counter() - began},
    )
