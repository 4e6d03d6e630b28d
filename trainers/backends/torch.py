"""The engine on plain torch: one process, or one a rank under DistributedDataParallel."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.backends.base import Engine, check_names, copy_pieces, learning, pieces_of
from trainers.errors import LOWER_RATES, NonFiniteError

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
MARGIN = 1e-6
"""Below limit (1 - MARGIN) - MARGIN the factor limit / (norm + 1e-6) of torch is no less than 1 in
float32, rounding included, so that clipping multiplies by 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW and clipping of one engine; the rate is set from outside, by progress."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0


@final
class TorchEngine(Engine):
    """One module, its AdamW, and gradients summed over ranks."""

    def __init__(
        self,
        module: nn.Module,
        settings: OptimizerSettings,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Move the module to `device`; `dtype` is that of the matrix products (autocast)."""
        self._name = name
        self._module = module.to(device)
        self._device = device
        self._dtype = dtype
        self._settings = settings
        self._wrapped = module
        if dist.is_initialized():  # rank 0's weights become everyone's
            self._wrapped = DistributedDataParallel(self._module, broadcast_buffers=False)
        self._learned = [parameter for _, parameter in learning(self._module)]
        self._optimizer = torch.optim.AdamW(
            self._learned,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    @property
    def module(self) -> nn.Module:
        """The bare model."""
        return self._module

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self._device

    @property
    def is_sharded(self) -> bool:
        """False: every rank has every weight."""
        return False

    def _waiting(self, last: bool) -> AbstractContextManager[None]:
        if isinstance(self._wrapped, DistributedDataParallel) and not last:
            return self._wrapped.no_sync()
        return nullcontext()

    def forward(self, *args: Any, last: bool = True, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run the model; gradients are summed over ranks after the `last` backward."""
        if self._dtype == torch.float32:
            mixed = nullcontext()
        else:
            mixed = torch.autocast(self._device.type, self._dtype)
        with self._waiting(last), mixed:
            return self._wrapped(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` [], this rank's part of a sum."""
        if dist.is_initialized():
            # DistributedDataParallel divides the sum over ranks by their number; this undoes it.
            loss = loss * dist.get_world_size()
        loss.backward()

    def clip(self) -> float:
        """Clip the gradient; return its norm before clipping."""
        gradients = [p.grad for p in self._learned if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        length = norm.item()
        if not math.isfinite(length):  # the gradient is a sum over ranks: all see the same
            raise NonFiniteError(self._blame())
        limit = self._settings.max_grad_norm
        if limit is not None and length + MARGIN > limit * (1 - MARGIN):
            nn.utils.clip_grads_with_norm_(self._learned, limit, norm)
        return length

    def step(self) -> None:
        """Step with the clipped gradient, and clear it."""
        self._optimizer.step()
        self._clear()

    def _clear(self) -> None:
        """Drop the gradient; `zero_grad` takes longer than a small model's step."""
        for parameter in self._learned:
            parameter.grad = None

    def _blame(self) -> str:
        named = self._module.named_parameters()
        bad = [n for n, p in named if p.grad is not None and not p.grad.isfinite().all()]
        self._clear()
        return (
            f"the gradient of the {self._name} is not finite; no weight was changed. First bad "
            f"tensor: {bad[0] if bad else 'none alone, only their norm'}. {LOWER_RATES}"
        )

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of every parameter group."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def weights(self, *, trained: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor), a tied tensor once."""
        for name, parameter in learning(self._module, trained=trained):
            yield name, parameter.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what learns, AdamW's moments and step counts by name; nothing off rank 0."""
        moments: dict[str, dict[str, Tensor]] = {kind: {} for kind in ADAM_STATE}
        weights: dict[str, Tensor] = {}
        is_main = not dist.is_initialized() or dist.get_rank() == 0
        for name, parameter in learning(self._module) if is_main else ():
            weights[name] = _copied(parameter)
            for kind, value in self._optimizer.state.get(parameter, {}).items():
                moments[kind][name] = _copied(value)
        return {"weights": weights, "optimizer": moments, "starts": {}}

    @torch.no_grad()
    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `state_dict` returned on every rank, bit for bit."""
        named = dict(learning(self._module))
        check_names(states, iter(named), self._name)
        self._optimizer.state.clear()
        for name, parameter in named.items():
            weights = torch.empty_like(
                parameter, device="cpu", memory_format=torch.contiguous_format
            )
            copy_pieces(weights.view(-1), 0, name, pieces_of(states, ["weights"], name))
            parameter.copy_(weights)
            steps = pieces_of(states, ["optimizer", "step"], name)
            if not steps:  # what never had a gradient has no moments
                continue
            moments = {"step": steps[0][1].clone().to(parameter.device)}
            for kind in ADAM_STATE[1:]:
                moment = torch.empty_like(weights)
                copy_pieces(moment.view(-1), 0, name, pieces_of(states, ["optimizer", kind], name))
                moments[kind] = moment.to(parameter.device)
            self._optimizer.state[parameter] = moments

    def _move_moments(self, device: torch.device) -> None:
        for state in self._optimizer.state.values():
            for kind in ("exp_avg", "exp_avg_sq"):
                state[kind] = state[kind].to(device)

    def offload(self) -> None:
        """Move AdamW's moments to host memory."""
        self._move_moments(torch.device("cpu"))

    def reload(self) -> None:
        """Move AdamW's moments back."""
        self._move_moments(self._device)

    def close(self) -> None:
        """Give the memory of moments and gradients back."""
        self._optimizer.state.clear()
        self._clear()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
