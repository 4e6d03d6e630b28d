"""The learner: policy and critic behind one door, micro-batches, counts that agree over ranks.

`critic: separate` is two engines with an optimizer each; `shared` is one engine whose model has a
value head; `none` is one engine, whose values are None. `ppo.py` trains through nothing else, and
the collector sees it as an `Actor`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from trainers.backends.base import Engine
from trainers.backends.gathering import gathered, gathered_module
from trainers.batch import Experience, Inputs, Metrics, PolicyOutput, RowIndex
from trainers.config import Config
from trainers.distributed.collectives import global_max
from trainers.functional.distillation import (
    Against,
    Figures,
    TeacherComparison,
    TeacherModel,
    compare,
    fitted,
)
from trainers.functional.logprobs import EntropyMode
from trainers.functional.row_groups import row_groups
from trainers.functional.schedules import rate_factor
from trainers.models.adapters import adapters_off
from trainers.models.packed_rows import longest_packed


@torch.no_grad()
def evaluated(
    inputs: Inputs,
    run: Callable[[Inputs, RowIndex], Tensor],
    *,
    budget: int,
    packed_up_to: float,
    device: torch.device,
) -> Tensor:
    """Run a model over all rows by token budget, without gradients.

    Every rank runs it equally often, on blank rows at the end where there is less to do.

    Args:
        inputs: B rows.
        run: takes some rows, trimmed, and their numbers; returns [n, K] or [n, K, F].
        budget: tokens of one pass.
        packed_up_to: tokens of the longest row that it reads packed; padding of others counts.
        device: where the model is.

    Returns:
        [B, K'] or [B, K', F] float32 in row order, zeros where rows were trimmed.
    """
    groups = row_groups(inputs, budget, packed_up_to=packed_up_to)
    result = torch.empty(0)
    for group in groups:
        picked = inputs.rows(group)
        micro = picked.narrowed(*picked.window())
        part = run(micro.to(device), group).float()
        if not result.numel():  # text values have one column more than there are actions
            extra = part.shape[1] - micro.actions.shape[1]
            rows, width = inputs.actions.shape[:2]
            result = part.new_zeros(rows, width + extra, *part.shape[2:])
        result[group, : part.shape[1]] = part
    blank = inputs.blank()
    blank = blank.narrowed(*blank.window()).to(device)
    for _ in range(int(global_max(torch.tensor(len(groups), device=device))) - len(groups)):
        run(blank, torch.zeros(1, dtype=torch.long))
    return result.to(inputs.actions.device)


@final
class Learner:
    """Policy and critic in training."""

    def __init__(self, policy: Engine, critic: Engine | None, config: Config) -> None:
        """Take the engines; the critic's where `ppo.critic` is separate."""
        self._policy = policy
        self._critic = critic
        self._config = config
        self._version = 0
        self._rates = (config.ppo.learning_rate, config.ppo.critic_learning_rate)
        modules = [policy.module] if critic is None else [policy.module, critic.module]
        self._packed_up_to = min(map(longest_packed, modules))

    @property
    def policy_version(self) -> int:
        """Optimizer steps taken by the policy: which weights these are."""
        return self._version

    @property
    def policy_module(self) -> nn.Module:
        """The bare policy."""
        return self._policy.module

    @property
    def critic_module(self) -> nn.Module | None:
        """The bare critic; None where it is not separate."""
        return None if self._critic is None else self._critic.module

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the policy's (name, tensor)."""
        return self._policy.weights()

    def whole_policy(self) -> nn.Module:
        """Return the policy with every weight, on rank 0; a collective."""
        return gathered_module(self._policy)

    def trained_policy(self) -> dict[str, Tensor]:
        """Return what learns of the policy, by name, on rank 0; a collective."""
        return gathered(self._policy, trained=True)

    def whole_critic(self) -> nn.Module | None:
        """Return the critic with every weight, on rank 0; None where it is not separate."""
        return None if self._critic is None else gathered_module(self._critic)

    def anneal(self, progress: float) -> None:
        """Set both learning rates; `progress` is the share of iterations done."""
        ppo = self._config.ppo
        factor = rate_factor(progress, ppo.lr_schedule, warmup=ppo.warmup_fraction)
        self._rates = (factor * ppo.learning_rate, factor * ppo.critic_learning_rate)
        self._policy.set_learning_rate(self._rates[0])
        if self._critic is not None:
            self._critic.set_learning_rate(self._rates[1])

    @contextmanager
    def offloaded(self) -> Iterator[None]:
        """Free the memory of moments and masters, where `backend.offload_between_phases` says so.

        Inside, models only compute: no gradient, no step, no state.
        """
        engines = [engine for engine in (self._policy, self._critic) if engine is not None]
        moved = engines if self._config.backend.offload_between_phases else []
        try:
            for engine in moved:
                engine.offload()
            yield
        finally:
            for engine in moved:
                engine.reload()

    def close(self) -> None:
        """Give the memory of both engines back; the last call."""
        for engine in (self._policy, self._critic):
            if engine is not None:
                engine.close()

    def micro_batches(self, experience: Experience) -> list[Experience]:
        """Split a minibatch by token budget, each part trimmed to its own width.

        Every rank gets the same number: blank rows, without loss, fill up where there is less.
        """
        budget = self._config.backend.micro_batch_tokens
        groups = row_groups(experience.inputs, budget, packed_up_to=self._packed_up_to)
        parts = [experience.rows(group).trimmed().to(self._policy.device) for group in groups]
        number = int(global_max(torch.tensor(max(len(parts), 1), device=self._policy.device)))
        if number == len(parts):
            return parts
        blank = experience.blank().trimmed().to(self._policy.device)
        return parts + [blank] * (number - len(parts))

    def compared_with_gradient(
        self, experience: Experience, teacher: TeacherModel, figures: Figures, *, last: bool
    ) -> Tensor:
        """Return what `figures` makes of policy and teacher at the actions [B, T, K]."""
        mask, inputs = experience.response_mask, experience.inputs
        table = teacher.every_logprob(inputs, mask)
        against = Against(logprobs=table, figures=figures)
        output: PolicyOutput = self._policy.forward(inputs, mask, against=against, last=last)
        assert output.compared is not None
        return output.compared

    def forward(
        self, experience: Experience, *, entropy: EntropyMode, last: bool, critic_only: bool = False
    ) -> PolicyOutput:
        """Return logprobs, entropies and values [B, T] of a micro-batch, with gradients.

        Under `critic_only` the policy's have none: DistributedDataParallel waits for a backward
        pass after every forward pass that could have one.
        """
        mask, inputs = experience.response_mask, experience.inputs
        with torch.set_grad_enabled(not critic_only):
            output: PolicyOutput = self._policy.forward(inputs, mask, entropy=entropy, last=last)
        values = output.values
        if self._critic is not None:
            values = self._critic.forward(inputs, last=last)
        return output._replace(values=None if values is None else values[:, : mask.shape[1]])

    def backward(self, policy_loss: Tensor | None, value_loss: Tensor) -> None:
        """Add the gradients of losses []; without a policy loss only the critic learns."""
        if self._critic is None:
            assert policy_loss is not None, "only a separate critic has a phase of its own"
            ppo = self._config.ppo
            shared = ppo.value_weight * value_loss if ppo.has_critic else 0.0
            self._policy.backward(policy_loss + shared)
            return
        self._critic.backward(value_loss)
        if policy_loss is not None:
            self._policy.backward(policy_loss)

    def step(self, *, critic_only: bool) -> Metrics:
        """Step the optimizers; return gradient norms before clipping, and rates.

        Raises:
            NonFiniteError: on every rank, before a weight of either engine is changed.
        """
        figures: dict[str, float] = {}
        engines: list[Engine] = []
        if self._critic is not None:
            engines.append(self._critic)
            figures |= {"value/grad_norm": self._critic.clip(), "value/lr": self._rates[1]}
        if not critic_only:
            engines.append(self._policy)
            figures |= {"policy/grad_norm": self._policy.clip(), "policy/lr": self._rates[0]}
            self._version += 1
        for engine in engines:  # after every clip: all of them move, or none
            engine.step()
        return Metrics.scalars(figures)

    def _run(self, inputs: Inputs, run: Callable[[Inputs, RowIndex], Tensor]) -> Tensor:
        budget = self._config.backend.micro_batch_tokens
        return evaluated(
            inputs, run, budget=budget, packed_up_to=self._packed_up_to, device=self._policy.device
        )

    def _output(self, inputs: Inputs, response_mask: Tensor) -> PolicyOutput:
        mask = response_mask[:, : inputs.actions.shape[1]].to(self._policy.device)
        return self._policy.forward(inputs, mask, entropy="none")

    def logprobs(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Return [B, T] log-probabilities of the actions under the current policy."""

        def run(micro: Inputs, rows: RowIndex) -> Tensor:
            return self._output(micro, response_mask[rows]).logprobs

        return self._run(inputs, run)

    def compared(
        self, teacher: TeacherModel, inputs: Inputs, response_mask: Tensor, *, clip: float | None
    ) -> TeacherComparison:
        """Compare the current policy with a teacher at the actions of the mask [B, T]."""
        figures = partial(compare, clip=clip)

        def run(micro: Inputs, rows: RowIndex) -> Tensor:
            mask = response_mask[rows, : micro.actions.shape[1]].to(self._policy.device)
            against = Against(logprobs=teacher.every_logprob(micro, mask), figures=figures)
            output: PolicyOutput = self._policy.forward(micro, mask, against=against)
            assert output.compared is not None
            return output.compared

        budget = self._config.backend.micro_batch_tokens
        packed_up_to = min(self._packed_up_to, teacher.packed_up_to)
        device = self._policy.device
        both = evaluated(inputs, run, budget=budget, packed_up_to=packed_up_to, device=device)
        return TeacherComparison(*both.unbind(-1))

    def values(self, inputs: Inputs) -> Tensor | None:
        """Return the critic's [B, T + 1] values of text, [B, T] of control; None without one."""
        if not self._config.ppo.has_critic:
            return None

        def run(micro: Inputs, rows: RowIndex) -> Tensor:
            if self._critic is not None:
                return self._critic.forward(micro)
            nothing = torch.zeros(micro.actions.shape[:2], dtype=torch.bool)
            values = self._output(micro, nothing).values
            assert values is not None, "a shared trunk has a value head"
            return values

        return self._run(inputs, run)

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's pieces of both engines, and the policy's version."""
        critic = {} if self._critic is None else self._critic.state_dict()
        return {"policy": self._policy.state_dict(), "critic": critic, "version": self._version}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `state_dict` returned on every rank, of any number of ranks."""
        self._policy.load_state_dict([state["policy"] for state in states])
        if self._critic is not None:
            self._critic.load_state_dict([state["critic"] for state in states])
        self._version = int(states[0]["version"])


@final
class FrozenPolicy:
    """The reference: a copy that never trains, scored by token budget as the policy is."""

    def __init__(
        self, module: nn.Module, config: Config, *, device: torch.device,
        autocast: torch.dtype | None,
    ) -> None:  # fmt: skip
        """Take a policy module on `device` for good; its parameters need no gradient."""
        self._module = module
        self._device = device
        self._autocast = autocast
        self._budget = config.backend.micro_batch_tokens
        self._packed_up_to = longest_packed(module)

    def logprobs(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Return [B, T] log-probabilities of the actions."""

        def run(micro: Inputs, rows: RowIndex) -> Tensor:
            mask = response_mask[rows, : micro.actions.shape[1]].to(self._device)
            mixed = self._autocast is not None
            with torch.autocast(self._device.type, self._autocast, enabled=mixed):
                return self._module(micro, mask, entropy="none").logprobs

        return evaluated(
            inputs, run, budget=self._budget, packed_up_to=self._packed_up_to, device=self._device
        )


@final
class Teacher:
    """A frozen model whose distributions a student learns, placed as the reference is."""

    def __init__(
        self, module: nn.Module, vocab_size: int, *, device: torch.device,
        autocast: torch.dtype | None,
    ) -> None:  # fmt: skip
        """Take a `TeacherPolicy` on `device` for good, and how many tokens the student embeds."""
        self._module, self._vocab_size = module, vocab_size
        self._device, self._autocast = device, autocast
        self.packed_up_to = longest_packed(module)

    @torch.no_grad()
    def every_logprob(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Return log-probabilities [N, V] of every token at the N actions of a mask [B, T].

        Rows are those of one pass, on the device.
        """
        mixed = self._autocast is not None
        with torch.autocast(self._device.type, self._autocast, enabled=mixed):
            return fitted(self._module(inputs, response_mask), self._vocab_size)


@final
class BasePolicy:
    """The reference of a policy that learns adapters: the same weights, adapters off."""

    def __init__(self, learner: Learner) -> None:
        """Take the learner of the policy."""
        self._learner = learner

    def logprobs(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Return [B, T] log-probabilities of the actions."""
        with adapters_off(self._learner.policy_module):
            return self._learner.logprobs(inputs, response_mask)
