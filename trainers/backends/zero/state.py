"""What a rank holds of an engine under ZeRO: pieces of float32 masters and of Adam's moments.

DeepSpeed's checkpoints are pickles that fit one number of ranks. These pieces say where they belong
to: any number of ranks, at any stage, can take them up. Each stage keeps them elsewhere:

    0: the parameters     1, 2: fragments of flat groups     3: flat sub-groups, on NVMe perhaps

A sub-group on NVMe is read in, used for all of its parameters, and written back if it changed.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.backends.base import check_names, copy_pieces, learning, pieces_of
from trainers.backends.torch import ADAM_STATE


@final
class ZeroState:
    """The pieces of one engine that lie on this rank.

    Args:
        engine: DeepSpeed's.
        module: what it trains.
        stage: of ZeRO.
        name: for messages.
    """

    def __init__(self, engine: Any, module: nn.Module, *, stage: int, name: str) -> None:  # noqa: ANN401
        self._engine, self._module = engine, module
        self._stage, self._name = stage, name

    @property
    def _optimizer(self) -> Any:  # noqa: ANN401
        return self._engine.optimizer

    def _place(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        """Return the sub-group of a parameter at stage 3, and start and count within it."""
        return self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]

    @contextlib.contextmanager
    def _resident(self, group: int, *, writes: bool) -> Iterator[None]:
        """Have a group in memory, with its moments: at stage 3 it may lie on NVMe."""
        optimizer = self._optimizer
        if self._stage < 3 or not optimizer._swappable_optimizer_subgroup(group):
            yield
            return
        optimizer._optimizer_states_and_gradient_swap_in(group)
        yield
        if writes:
            optimizer._optimizer_states_and_gradient_swap_out(group)
        else:
            optimizer._release_swap_buffers(group)

    def _pieces(self, *, writes: bool = False) -> Iterator[tuple[str, nn.Parameter, int, int]]:
        """Yield (name, parameter, start, count): the numbers whose masters lie on this rank."""
        rank, group = dist.get_rank(), None
        with contextlib.ExitStack() as resident:
            for name, parameter in learning(self._module):
                sharded: Any = parameter
                if self._stage == 3:
                    if self._place(parameter)[0] != group:
                        group = self._place(parameter)[0]
                        resident.close()
                        resident.enter_context(self._resident(group, writes=writes))
                    start = rank * sharded.ds_tensor.ds_numel  # padded: the last rank may have less
                    count = min(sharded.ds_tensor.ds_numel, max(sharded.ds_numel - start, 0))
                elif self._stage == 0:
                    start, count = 0, parameter.numel()
                else:
                    place = sharded._hp_mapping and sharded._hp_mapping.lp_fragment_address
                    start, count = (place.start, place.numel) if place else (0, 0)
                if count:
                    yield name, parameter, start, count

    def _held(self, parameter: Any, kind: str | None) -> Tensor:  # noqa: ANN401
        """Return the flat master [n], or a moment, that is held of a parameter [...]; no copy."""
        if self._stage == 3:
            group, start, count = self._place(parameter)
            master = self._masters()[group]
            whole = master if kind is None else self._optimizer.optimizer.state[master][kind]
            return whole.detach().narrow(0, start, count)
        if self._stage == 0:
            state = self._optimizer.state
            return (parameter.data if kind is None else state[parameter][kind]).view(-1)
        return parameter._hp_mapping.get_hp_fragment(kind)

    def read(self, steps: int) -> dict[str, Any]:
        """Return a copy of the pieces on the CPU, after so many `steps` of the optimizer."""
        moments: dict[str, dict[str, Tensor]] = {kind: {} for kind in ADAM_STATE}
        weights: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        is_copy = self._stage == 0 and dist.get_rank() != 0  # of what rank 0 holds
        for name, parameter, start, count in () if is_copy else self._pieces():
            starts[name] = start
            weights[name] = _copied(self._held(parameter, None)[:count])
            if not steps:  # moments come with the first step
                continue
            moments["step"][name] = torch.tensor(float(steps))
            for kind in ADAM_STATE[1:]:
                moments[kind][name] = _copied(self._held(parameter, kind)[:count])
        return {"weights": weights, "optimizer": moments, "starts": starts}

    @torch.no_grad()
    def write(self, states: Sequence[Mapping[str, Any]]) -> int:
        """Set the pieces from what engines of any kind read on every rank; return their steps."""
        check_names(states, (name for name, _ in learning(self._module)), self._name)
        counts = [int(step) for state in states for step in state["optimizer"]["step"].values()]
        steps = max(counts, default=0)
        self._start_moments(steps)
        for name, parameter, start, count in self._pieces(writes=True):
            for kind in (None, *(ADAM_STATE[1:] if steps else ())):
                table = ["weights"] if kind is None else ["optimizer", kind]
                piece = torch.empty(count)
                copy_pieces(piece, start, name, pieces_of(states, table, name))
                self._held(parameter, kind)[:count].copy_(piece)
        self._refresh()
        return steps

    def _masters(self) -> list[Tensor]:
        """Return the flat tensors that the optimizer steps."""
        if self._stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [
            parameter for group in self._optimizer.param_groups for parameter in group["params"]
        ]

    def _start_moments(self, steps: int) -> None:
        """Give the optimizer moments to write into, or take away those it has."""
        basic = self._engine.basic_optimizer
        is_torch = isinstance(basic, torch.optim.AdamW)
        count = torch.tensor(float(steps)) if is_torch else steps
        basic.state.clear()
        if self._stage == 3 and self._optimizer.swap_optimizer:
            self._optimizer.optimizer_swapper.purge_state()  # it keeps the old ones' names
        for number, master in enumerate(self._masters() if steps else ()):
            with self._resident(number, writes=True):
                empty = {kind: torch.zeros_like(master) for kind in ADAM_STATE[1:]}
                basic.state[master] = {"step": deepcopy(count), **empty}
        if not is_torch:
            for group in basic.param_groups:
                group["step"] = steps
        if steps:
            self.link_moments()

    def link_moments(self) -> None:
        """Let parameters find their pieces of moments that are new tensors, at stages 1 and 2."""
        if self._stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _refresh(self) -> None:
        """Make the weights that are computed with anew from the masters."""
        optimizer = self._optimizer
        if self._stage in (1, 2):
            optimizer.update_lp_params()
        elif self._stage == 3:
            for number in range(len(self._masters())):
                with self._resident(number, writes=False):
                    optimizer._reassign_or_swap_out_partitioned_parameters(number)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
