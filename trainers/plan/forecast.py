"""The forecast of a run: parameters, memory by phase, disk and work, from its settings alone."""

import math
from dataclasses import dataclass, field, replace

import torch

from trainers.config import Config
from trainers.errors import BackendError, ConfigError
from trainers.plan.batch import BatchShape
from trainers.plan.counting import Usage, frozen_heap
from trainers.plan.disk import disk_of
from trainers.plan.fakes import FAILS, failure_of
from trainers.plan.lengths import Work
from trainers.plan.rehearsal import Rehearsal
from trainers.plan.shapes import Shapes
from trainers.plan.state import WEIGHT, Holding, ModelState

HEAP_SHARE = 0.4
"""What a CPU process holds beyond the tensors of a phase, as a share of its working memory: free
blocks between live ones, which the C library's heap keeps; measured in docs/results/plan.md."""

EXPERIENCE_BYTES = 80
"""Of one column of an iteration's experience: its token, and the float32 figures of an action."""


LEARNS = 2
"""Times that weights are gathered to learn from a micro-batch: forward and backward."""

TENSORS_AT_ONCE = 3
"""Copies of the largest tensor, at most, while it is read, cut and sent to the other ranks."""

SINGLE_RANK = Holding()


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Memory of one process in one phase of a run, in bytes, beyond the imported libraries.

    Attributes:
        name: as in `timing_s/*`, or a stage.
        detail: what is worked on at once.
        weights: of all models there are.
        optimizer: Adam's moments, masters, and what ranks sum gradients up in.
        gradients: at the moment of the peak.
        working: activations, caches, copies.
        heap: what the heap keeps around them on a CPU.
    """

    name: str
    detail: str
    weights: int
    optimizer: int
    gradients: int = 0
    working: int = 0
    heap: int = 0

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.optimizer + self.gradients + self.working + self.heap


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run takes.

    Attributes:
        parameters: of each model by its role.
        learned: how many of them learn.
        largest: parameters of the policy's largest tensor.
        dtype: of the matrix products.
        source: where the sizes of the policy come from.
        holding: how ranks hold the models.
        memory: phases in their order, of the GPU where there is one.
        host: most host memory of a rank with a GPU, by what is done.
        main: what rank 0 takes of it beyond the others, by what is done.
        disk: bytes of the run folder by part.
        work: of a rank, with texts at their limits.
        notes: what is not known, in words.
    """

    parameters: dict[str, int]
    dtype: str
    source: str
    holding: Holding
    batch: BatchShape
    learned: dict[str, int] = field(default_factory=dict)
    largest: int = 0
    memory: list[Phase] = field(default_factory=list)
    host: dict[str, int] = field(default_factory=dict)
    main: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> Phase | None:
        """The phase that takes most; None where nothing is known."""
        return max(self.memory, key=lambda phase: phase.total, default=None)

    def state(self, role: str) -> ModelState:
        """Return what a rank holds of a model that learns, whole or in part."""
        size = self.parameters.get(role, 0)
        learned = self.learned.get(role, size)
        return self.holding.trained(learned) + self.holding.frozen(size - learned)

    def gathering(self, usage: Usage, *roles: str, times: int = 1) -> Usage:
        """Return the same work with the weights gathered for it, where ranks share them out."""
        size = sum(self.parameters.get(role, 0) for role in roles)
        return replace(usage, received=times * self.holding.gathered(size))

    def add(
        self, name: str, detail: str, state: ModelState, usage: Usage, *, learns: bool = False
    ) -> None:
        """Add a phase."""
        stage = self.holding.stage
        keeps = stage == 3 or (learns and stage is not None)
        working = max(usage.peak + state.window, state.step if learns else 0)
        self.memory.append(
            Phase(
                name=name,
                detail=detail,
                weights=state.weights,
                optimizer=state.optimizer + state.buckets,
                gradients=state.gradients if keeps else usage.gradients,
                working=working,
                heap=0 if self.holding.is_gpu else round(HEAP_SHARE * working),
            )
        )

    def add_save(self, name: str, state: ModelState, *roles: str) -> None:
        """Add the writing of models that learn: rank 0 exports one by one, then each rank saves.

        Each has a copy on the host of its part of their state; before, rank 0 has a whole model.
        """
        learned = {role: self.learned.get(role, self.parameters.get(role, 0)) for role in roles}
        copied, most = (
            self.holding.saved(sum(learned.values()), is_main=is_main) for is_main in (False, True)
        )
        for role, count in learned.items():
            size = self.parameters.get(role, 0)
            most = max(most, self.holding.exported(size, is_adapted=count < size))
        if self.holding.is_gpu:
            self.host[name], self.main[name] = state.host + copied, most - copied
        usage = Usage(peak=0 if self.holding.is_gpu else most)
        self.add(name, "rank 0's copies on the host", replace(state, window=0), usage)

    def add_load(self, state: ModelState, *, is_fresh: bool = False) -> None:
        """Add the beginning: each rank loads float32 weights whole, and copies them once.

        At stage 3 it holds its share of all models, and a few tensors whole; unless they are fresh.
        """
        others = (count for role, count in self.parameters.items() if role != "policy")
        held = WEIGHT * (self.parameters["policy"] + max(others, default=0))
        is_shared_out = self.holding.stage == 3 and not is_fresh
        if is_shared_out:
            share = -(-sum(self.parameters.values()) // self.holding.ranks)
            held = WEIGHT * (share + TENSORS_AT_ONCE * self.largest)
        if self.holding.is_gpu:
            self.host.update(load=held, training=state.host)
        elif self.holding.stage:
            how = "shares of weights" if is_shared_out else "whole weights"
            self.add("load", how, ModelState(weights=held), Usage(peak=0))


def forecast_text(
    config: Config, shapes: Shapes, *, dtype: torch.dtype, holding: Holding = SINGLE_RANK
) -> Forecast:
    """Forecast a text run; nothing is allocated.

    Args:
        config: of the run.
        shapes: its models.
        dtype: of the matrix products.
        holding: how many processes share the work, and how they hold the models.
    """
    parameters = {"policy": shapes.num_policy}
    if config.ppo.num_iterations:
        parameters |= {"critic": shapes.num_critic} if shapes.critic else {}
        if config.ppo.kl_placement != "none" and not config.model.lora.rank:
            parameters["reference"] = shapes.num_reference
    forecast = Forecast(
        parameters=parameters,
        dtype=str(dtype).removeprefix("torch."),
        source=shapes.source,
        holding=holding,
        batch=BatchShape.of(config, holding.ranks),
        disk=disk_of(config, parameters, shapes.num_learned),
        learned=shapes.num_learned,
        largest=max(weight.numel() for weight in shapes.policy.parameters()),
    )
    if config.sft.num_epochs and config.model.lora.rank and config.model.path is None:
        forecast.notes.append("the supervised stage of a fresh model learns whole, and takes more")
    if any(reward.model for reward in config.rewards):
        forecast.notes.append("memory and time of the reward model, which come on top")
    if config.distill.teacher is not None:
        forecast.notes.append("memory and time of the teacher, which come on top")
    if holding.ranks > 1:
        talk = "sum gradients up" if holding.stage == 3 else "talk to one another"
        forecast.notes.append(f"time that ranks {talk} and move what is offloaded")
    rehearsal = Rehearsal(shapes, config, dtype)
    try:
        with frozen_heap():
            _count_passes(config, forecast, rehearsal)
    except (BackendError, ConfigError):  # of settings, not of the pass
        raise
    except FAILS as error:
        name = type(shapes.policy).__name__
        forecast.notes.append(f"working memory and time: {failure_of(name, error)}")
    return forecast


def _count_passes(config: Config, forecast: Forecast, rehearsal: Rehearsal) -> None:
    """Add memory and time of each stage that the settings ask for."""
    if config.sft.num_epochs:
        _supervised(config, forecast, rehearsal)
    if config.reward_model.num_epochs:
        _reward_model(forecast)
    if config.ppo.num_iterations:
        _improved(config, forecast, rehearsal)


def _supervised(config: Config, forecast: Forecast, rehearsal: Rehearsal) -> None:
    """Add the supervised stage: the policy alone."""
    batch, state = forecast.batch, forecast.state("policy")
    forecast.add_load(state, is_fresh=config.model.path is None)
    rows = math.ceil(config.sft.batch_size / batch.ranks)
    micro = min(max(batch.micro_batch_tokens // batch.width, 1), rows)
    number = math.ceil(rows / micro)
    keeps = not forecast.holding.stage
    usage = rehearsal.learning(micro, micro_batches=number, with_critic=False, keeps=keeps)
    usage = forecast.gathering(usage, "policy", times=LEARNS)
    forecast.add("sft", f"{micro} x {batch.width} tokens", state, usage, learns=True)
    forecast.add_save("sft save", state, "policy")
    examples = config.data.num_examples
    if examples is None:
        forecast.notes.append("time of the supervised stage: data.num_examples is not set")
        return
    steps = config.sft.num_epochs * math.ceil(
        examples * (1 - config.sft.holdout) / config.sft.batch_size
    )
    work = usage.times(number)
    forecast.work.append(Work(name="sft", usage=work, often=steps, passes=number))


def _reward_model(forecast: Forecast) -> None:
    """Add the stage of reward models: what is held, without its activations."""
    state = forecast.state("policy")
    usage = Usage(peak=0, gradients=state.gradients)
    forecast.add("reward_model", "without activations", state, usage)
    forecast.add_save("reward_model save", state, "policy")
    forecast.notes.append("activations and time of the stage reward_model")


def _copy(config: Config, forecast: Forecast) -> ModelState:
    """Return the copies that text is written with; note what follows where one is absent."""
    most, holding = config.backend.zero.gather_gb, forecast.holding
    copy = holding.copied(forecast.parameters["policy"], round(most * 2**30))
    if holding.stage == 3 and not copy.weights:
        forecast.notes.append(
            "how far gathers stay below that speed: the policy takes more than "
            f"backend.zero.gather_gb {most:g}, so each layer is gathered for every token"
        )
    return copy + holding.frozen(forecast.parameters["policy"] * config.generation.ahead)


def _improved(config: Config, forecast: Forecast, rehearsal: Rehearsal) -> None:
    """Add PPO: its phases in their order."""
    batch, sizes, holding = forecast.batch, forecast.parameters, forecast.holding
    copy = _copy(config, forecast)
    state = forecast.state("policy") + forecast.state("critic") + copy
    state += holding.frozen(sizes.get("reference", 0))
    forecast.add_load(state)
    kept = EXPERIENCE_BYTES * batch.rank_rows * batch.width
    iterations = config.ppo.num_iterations

    leaves = config.backend.offload_between_phases and holding.can_leave
    if leaves:
        forecast.host["rollout"] = state.host + state.optimizer

    def add(name: str, detail: str, usage: Usage) -> None:
        usage, learns = replace(usage, peak=usage.peak + kept), name == "update"
        there = replace(state, optimizer=0) if leaves and not learns else state
        forecast.add(name, detail, there, usage, learns=learns)

    def score(name: str, usage: Usage, role: str, models: int = 1) -> None:
        add(name, f"{batch.scored_rows} x {batch.width} tokens", usage)
        work, passes = forecast.gathering(usage, role), batch.scored_batches
        work = work.times(models * passes)
        forecast.work.append(Work(name=name, usage=work, often=iterations, passes=passes))

    def write(name: str, rows: int, often: float) -> None:
        at_once = min(config.generation.batch_size, rows)
        reading, writing, cache = rehearsal.generation(at_once)
        if not copy.weights:
            reading = forecast.gathering(reading, "policy")
            writing = forecast.gathering(writing, "policy", times=config.generation.max_new_tokens)
        add(name, f"{at_once} rows, {size_text(cache)} cache", reading.then(writing))
        read, wrote = reading.times(rows / at_once), writing.times(rows / at_once)
        forecast.work.append(Work(name=name, usage=read, often=often, part="prompt"))
        forecast.work.append(Work(name=name, usage=wrote, often=often, part="response"))

    write("rollout", batch.rank_rows, iterations)
    models = 1 + (config.ppo.kl_placement != "none")
    score("logprobs", rehearsal.logprobs(batch.scored_rows), "policy", models)
    if config.ppo.has_critic:
        usage = rehearsal.values(batch.scored_rows)
        score("values", usage, "critic" if "critic" in sizes else "policy")
    usage = rehearsal.learning(
        batch.micro_rows, micro_batches=batch.micro_batches, keeps=not holding.stage
    )
    usage = forecast.gathering(usage, "policy", "critic", times=LEARNS)
    add("update", f"{batch.micro_rows} x {batch.width} tokens", usage)
    work = usage.times(batch.micro_batches * batch.steps)
    forecast.work.append(
        Work(name="update", usage=work, often=iterations, passes=batch.micro_batches)
    )
    forecast.add_save("save", state, "policy", "critic")
    if config.eval.num_tasks:
        mine = math.ceil(config.eval.num_tasks / batch.ranks)
        every = config.eval.every
        write("evaluate", mine, often=2 + ((iterations - 1) // every if every else 0))


def forecast_control(config: Config, parameters: dict[str, int], num_obs: int) -> Forecast:
    """Forecast a run on numeric environments, whose memory is that of its experience.

    Args:
        config: of the run.
        parameters: of each model by its role.
        num_obs: numbers of an observation.
    """
    batch = BatchShape.of(config)
    forecast = Forecast(
        parameters=parameters,
        dtype="float32",
        source=f"mlp {config.model.hidden_sizes}",
        holding=SINGLE_RANK,
        batch=batch,
        disk=disk_of(config, parameters),
        notes=["time, which is the environment's own"],
    )
    state = SINGLE_RANK.trained(sum(parameters.values()))
    experience = batch.rows * (4 * num_obs + EXPERIENCE_BYTES)
    units = sum(config.model.hidden_sizes) * len(parameters)
    activations = 3 * WEIGHT * units * batch.micro_rows
    usage = Usage(peak=2 * experience + activations, gradients=state.gradients)
    forecast.add("update", f"{batch.micro_rows} steps", state, usage)
    forecast.add_save("save", state, "policy", "critic")
    return forecast


def size_text(size: float) -> str:
    """Return bytes in words, as `1.2 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit in ("B", "KiB") else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
