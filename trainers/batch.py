"""What travels through training: frozen records of tensors, and sums that become metrics.

Shapes: B rows (sequences or environments), T actions of a row (response tokens or env steps),
P prompt tokens, L = P + T. `[B, T]` fields are aligned on actions; masks say what is True.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RowIndex = Tensor | slice
"""Which rows: their numbers [N], [B] True where a row is taken, or a slice, as views."""


def floats(figures: Tensor) -> list[float]:
    """Return figures [N] as numbers of Python; a GPU is waited for once."""
    return cast(list[float], figures.tolist())  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInputs:
    """Token sequences: prompts padded on the left, responses on the right.

        [ pad pad p0 p1 | r0 r1 r2 pad ]
          <----- P ---->  <---- T ---->

    Attributes:
        tokens: [B, L] ids; what stands in padding never matters.
        attention_mask: [B, L] True on real tokens.
        num_prompt: P, so that actions are `tokens[:, P:]`.
        logprobs: [B, T] old ones of the actions, else 0, for `ppo.critic_reads_logprobs`; or None.
    """

    tokens: Int[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    num_prompt: int
    logprobs: Float[Tensor, "B T"] | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TextInputs":
        logprobs = None if self.logprobs is None else change(self.logprobs)
        tokens, mask = change(self.tokens), change(self.attention_mask)
        return replace(self, tokens=tokens, attention_mask=mask, logprobs=logprobs)

    @property
    def actions(self) -> Int[Tensor, "B T"]:
        """[B, T] the ids after the prompt."""
        return self.tokens[:, self.num_prompt :]

    @property
    def sizes(self) -> Int[Tensor, "B 2"]:
        """[B, 2] prompt and response tokens of each row, at least one: the widths it needs."""
        prompt, response = self.attention_mask.tensor_split([self.num_prompt], dim=1)
        return torch.stack([prompt.sum(1), response.sum(1)], dim=1).clamp(min=1)

    @property
    def prompt_numbers(self) -> Int[Tensor, " B"]:
        """[B] a number for each prompt; rows of one number have the same."""
        real = self.tokens.masked_fill(~self.attention_mask, -1)[:, : self.num_prompt]
        unique = torch.unique(real, dim=0, return_inverse=True)  # pyright: ignore
        return cast(Tensor, unique[1])

    def rows(self, index: RowIndex) -> "TextInputs":
        """Return the rows of `index`."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> "TextInputs":
        """Return a copy on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def blank(self) -> "TextInputs":
        """Return one row of zeros with one prompt and one response token."""
        blank = self._each(lambda tensor: tensor.new_zeros(1, tensor.shape[1]))
        blank.attention_mask[:, self.num_prompt - 1 : self.num_prompt + 1] = True
        return blank

    def window(self) -> tuple[int, int]:
        """Return (left, right): prompt columns and action columns that no row needs.

        At least one prompt and one action column stay.
        """
        used = self.attention_mask.any(0)
        used[self.num_prompt - 1 : self.num_prompt + 1] = True
        columns = used.nonzero().flatten()
        return int(columns[0]), used.shape[0] - 1 - int(columns[-1])

    def narrowed(self, left: int, right: int) -> "TextInputs":
        """Return the rows without `left` prompt and `right` action columns."""
        end = self.tokens.shape[1] - right
        return replace(
            self,
            tokens=self.tokens[:, left:end],
            attention_mask=self.attention_mask[:, left:end],
            num_prompt=self.num_prompt - left,
            logprobs=None if self.logprobs is None else self.logprobs[:, : end - self.num_prompt],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlInputs:
    """Steps of numeric environments: obs [B, T, ...] and actions [B, T] or [B, T, A].

    `action_mask` [B, T, K] is True on allowed actions, `action_prior` [B, T, K] is added to logits.
    """

    obs: Float[Tensor, "B T ..."]
    actions: Tensor
    action_mask: Bool[Tensor, "B T K"] | None = None
    action_prior: Float[Tensor, "B T K"] | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ControlInputs":
        named: dict[str, Tensor | None] = {
            item.name: getattr(self, item.name) for item in fields(self)
        }
        return replace(
            self, **{n: change(value) for n, value in named.items() if value is not None}
        )

    @property
    def sizes(self) -> Int[Tensor, "B 2"]:
        """[B, 2] zero and the steps of each row: the widths it needs."""
        sizes = self.actions.new_zeros((self.obs.shape[0], 2), dtype=torch.long)
        sizes[:, 1] = self.obs.shape[1]
        return sizes

    def rows(self, index: RowIndex) -> "ControlInputs":
        """Return the rows of `index`."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> "ControlInputs":
        """Return a copy on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def flat(self) -> "ControlInputs":
        """Return every step as a row of its own, [B * T, 1, ...]: an MLP has no memory."""
        return self._each(lambda tensor: tensor.flatten(0, 1).unsqueeze(1))

    def blank(self) -> "ControlInputs":
        """Return one row of zeros; nothing is allowed in it, and nothing counts."""
        return self._each(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]))

    def window(self) -> tuple[int, int]:
        """Return (0, 0): there is no padding."""
        return 0, 0

    def narrowed(self, left: int, right: int) -> "ControlInputs":
        """Return itself; there is nothing to trim."""
        assert (left, right) == (0, 0), "control rows have no padding"
        return self


Inputs = TextInputs | ControlInputs


class PolicyOutput(NamedTuple):
    """What a policy returns of the actions; 0 where response_mask is False.

    Attributes:
        logprobs: [B, T] natural log-probabilities of the actions, float32.
        entropy: [B, T] exact entropy in nats of the distribution of each action, or None.
        values: critic at the state before each action, [B, T + 1] of text, [B, T] of control, where
            a value head reads the policy's trunk; else None.
        compared: [B, T, K] figures of both distributions, where a teacher's are given, or None.
    """

    logprobs: Tensor
    entropy: Tensor | None
    values: Tensor | None = None
    compared: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What happened in one iteration on this rank: the collector's work.

    Attributes:
        response_mask: [B, T] True on actions the policy took; False on padding, on what the
            environment said between turns, and in rows whose reward failed.
        logprobs: [B, T] of the actions under the policy that took them, tempered, by the trainer.
        generator_logprobs: [B, T] the same figure as the sampler reported it, or None.
        ref_logprobs: [B, T] under the reference, or None without one.
        rewards: [B, T] shaped reward after each action.
        values: [B, T] critic at the state before each action, or None without a critic.
        next_values: [B, T] critic at the state after it, or None.
        terminated: [B, T] True where the task ended.
        boundary: [B, T] True at the last action of an episode, or of the rollout.
        teacher_rewards: [B, T] what a teacher pays for each action alone, or None without one.
        teacher_values: [B, T] its mean over all actions of that state, or None.
        index: [B] sequence index over all ranks; neighbouring rows of one are an episode, in order.
    """

    inputs: Inputs
    response_mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    generator_logprobs: Float[Tensor, "B T"] | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    rewards: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"] | None = None
    next_values: Float[Tensor, "B T"] | None = None
    terminated: Bool[Tensor, "B T"]
    boundary: Bool[Tensor, "B T"]
    teacher_rewards: Float[Tensor, "B T"] | None = None
    teacher_values: Float[Tensor, "B T"] | None = None
    index: Int[Tensor, " B"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What is learned from: fixed for all epochs of an iteration.

    Attributes:
        response_mask: [B, T] True on actions that count.
        old_logprobs: [B, T] what the ratio divides by.
        ref_logprobs: [B, T] under the reference, or None.
        generator_logprobs: [B, T] as the sampler reported them, or None.
        old_values: [B, T] critic before the update, or None without a critic.
        advantages: [B, T] whitened where configured.
        returns: [B, T] targets of the critic, never whitened, or None.
        weights: [B, T] share of each action in the loss, or None before an update.
        index: [B] sequence index, counted over all ranks; rows of an episode share it.
    """

    inputs: Inputs
    response_mask: Bool[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"] | None = None
    generator_logprobs: Float[Tensor, "B T"] | None = None
    old_values: Float[Tensor, "B T"] | None = None
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None = None
    weights: Float[Tensor, "B T"] | None = None
    index: Int[Tensor, " B"]

    def __len__(self) -> int:
        """Return B."""
        return self.index.shape[0]

    def _tensors(self) -> dict[str, Tensor]:
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def columns(self) -> dict[str, Tensor]:
        """Return the [B, T] tensors by name."""
        return {name: value for name, value in self._tensors().items() if value.dim() == 2}

    def rows(self, index: RowIndex) -> "Experience":
        """Return the rows of `index`."""
        picked = {name: value[index] for name, value in self._tensors().items()}
        return replace(self, inputs=self.inputs.rows(index), **picked)

    def to(self, device: torch.device) -> "Experience":
        """Return a copy on `device`; itself if it is there."""
        if self.index.device == device:
            return self
        moved = {name: value.to(device) for name, value in self._tensors().items()}
        return replace(self, inputs=self.inputs.to(device), **moved)

    def blank(self) -> "Experience":
        """Return one row with nothing to learn, which keeps ranks in step."""
        zeros = {
            name: value.new_zeros(1, *value.shape[1:]) for name, value in self._tensors().items()
        }
        return replace(self, inputs=self.inputs.blank(), **zeros)

    def flat(self) -> "Experience":
        """Return every step of an environment as a row of its own: an MLP has no memory.

        Steps behind the end of an episode are left out.
        """
        assert isinstance(self.inputs, ControlInputs), "the tokens of a text belong together"
        steps = self.response_mask.shape[1]
        offsets = torch.arange(steps, device=self.index.device)
        index = (self.index.unsqueeze(1) * steps + offsets).flatten()
        columns = {name: column.reshape(-1, 1) for name, column in self.columns().items()}
        every = replace(self, inputs=self.inputs.flat(), index=index, **columns)
        return every if self.response_mask.all() else every.rows(every.response_mask[:, 0])

    def trimmed(self) -> "Experience":
        """Return the rows without the padding columns that none of them needs."""
        left, right = self.inputs.window()
        if not (left or right):
            return self
        end = self.response_mask.shape[1] - right
        cut = {name: value[:, :end] for name, value in self.columns().items()}
        return replace(self, inputs=self.inputs.narrowed(left, right), **cut)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Held-out performance in one environment: a mean with its 95 % interval, NaN if unknown.

    Attributes:
        scores: one figure a task, in task order, for paired comparisons.
        rows: prompts, completions and scores, for the samples shown.
    """

    env: str
    mean: float
    ci_low: float
    ci_high: float
    scores: tuple[float, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Sums that are divided once, at the end: never a mean of means.

    Attributes:
        means: name -> (numerator, denominator).
        maxima: name -> largest value seen.
        minima: name -> smallest value seen.
    """

    means: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    maxima: Mapping[str, float] = field(default_factory=dict[str, float])
    minima: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def scalars(cls, values: Mapping[str, float | int]) -> "Metrics":
        """Take figures that are global already; adding two of a name averages them."""
        return cls(means={name: (float(value), 1.0) for name, value in values.items()})

    @classmethod
    def masked(cls, values: Mapping[str, Tensor], mask: Tensor) -> "Metrics":
        """Take the mean of each [B, T] tensor over the True entries of `mask` [B, T]."""
        # All sums in one tensor: a GPU is waited for once, and small batches take few operations.
        figures = torch.stack([value.detach() for value in values.values()]).double()
        kept = figures.where(mask, figures.new_zeros(()))
        *sums, count = floats(torch.cat([kept.flatten(1).sum(1), mask.sum().double()[None]]))
        return cls(means={name: (total, count) for name, total in zip(values, sums, strict=True)})

    def __add__(self, other: "Metrics") -> "Metrics":
        """Pool what both have seen."""
        means = dict(self.means)
        for name, (numerator, denominator) in other.means.items():
            have = means.get(name, (0.0, 0.0))
            means[name] = (have[0] + numerator, have[1] + denominator)
        maxima, minima = dict(self.maxima), dict(self.minima)
        for name, value in other.maxima.items():
            maxima[name] = max(value, maxima.get(name, value))
        for name, value in other.minima.items():
            minima[name] = min(value, minima.get(name, value))
        return Metrics(means=means, maxima=maxima, minima=minima)

    def __or__(self, other: "Metrics") -> "Metrics":
        """Join two sets of names; the right one wins."""
        return Metrics(
            means={**self.means, **other.means},
            maxima={**self.maxima, **other.maxima},
            minima={**self.minima, **other.minima},
        )

    def values(self) -> dict[str, float]:
        """Return name -> figure; what nothing was counted for is left out."""
        means = {name: n / d for name, (n, d) in self.means.items() if d}
        return {**means, **self.maxima, **self.minima}
