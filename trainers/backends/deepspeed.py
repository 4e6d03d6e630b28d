"""The engine on DeepSpeed: ZeRO 0 to 3, optimizer and weights offloaded, any number of ranks.

The only file that imports deepspeed. Four things DeepSpeed 0.19 does another way, and what is done:

- it averages gradients over ranks: the loss is multiplied by their number;
- it reduces after every backward: the boundary is set before each one, so that micro-batches add up
  and the last one reduces (open-instruct#1498);
- it checks, clips and steps in one call: the norm is taken before it, so that no weight of another
  engine has moved when this one's gradient is not finite;
- its checkpoints are pickles that fit one number of ranks: state is taken and set piece by piece.
"""

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.backends.base import Engine, check_names, fill, learning, pieces_of
from trainers.backends.torch import MOMENTS, OptimizerSettings
from trainers.distributed import name_accelerator
from trainers.errors import LOWER_RATES, BackendError, NonFiniteError
from trainers.models.shards import Shard, trim_heap, whole

TESTED = "0.19"
_log = logging.getLogger(__name__)


def library() -> Any:  # noqa: ANN401 - the module
    """Import deepspeed, on the CPU where there is no GPU, and without compiling anything there.

    Raises:
        BackendError: it is not installed.
    """
    name_accelerator()  # read at the import
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import deepspeed as imported
    except ImportError as error:
        raise BackendError(
            f"backend.name deepspeed needs the package deepspeed ({error}).\n"
            'Install it with pip install "llmgym-rl[train,deepspeed]", or set --backend.name torch'
        ) from error
    deepspeed: Any = imported
    # It calls torch by names that newer versions warn of, in every layer of every pass.
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)
    if not torch.cuda.is_available():  # it serves tensor-parallel inference alone, and takes g++
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.__version__.startswith(TESTED):
        _log.warning(
            "deepspeed %s is not of the tested %s: run tests/distributed before trusting it",
            deepspeed.__version__,
            TESTED,
        )
    return deepspeed


def check_nvme(path: Path) -> None:
    """Refuse a folder that cannot be written, or a machine without libaio.

    Raises:
        BackendError: says which, and what to do.
    """
    if not os.access(path, os.W_OK | os.X_OK) or not path.is_dir():
        raise BackendError(
            f"backend.zero.nvme_path {path} is no folder that can be written. Make it, or drop the "
            "setting to offload to host memory."
        )
    library()
    from deepspeed.ops import op_builder

    builders: Any = op_builder
    with contextlib.redirect_stdout(io.StringIO()):
        works = builders.AsyncIOBuilder().is_compatible(verbose=False)
    if not works:
        raise BackendError(
            "backend.zero.nvme_path needs libaio, which is not found here. Install it (Debian: "
            "apt-get install libaio-dev), or drop the setting to offload to host memory."
        )


def needs_torch_adam(offload: str) -> bool:
    """Tell whether DeepSpeed's own Adam cannot be built here, so that torch's takes its place."""
    if not torch.cuda.is_available():
        return True
    compiler = "nvcc" if offload == "none" else "g++"
    missing = [tool for tool in ("ninja", compiler) if shutil.which(tool) is None]
    if missing:
        _log.warning("no %s: torch's Adam takes the place of DeepSpeed's", " and no ".join(missing))
    return bool(missing)


def frozen(module: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """Share a model that does not train out over the ranks; call it as the model.

    Args:
        module: taken for good.
        settings: as `frozen_json` returned them.
    """
    return _initialized(module.requires_grad_(False), settings)


def _initialized(module: nn.Module, settings: Mapping[str, Any]) -> Any:  # noqa: ANN401
    if any(isinstance(one, Shard) for one in module.parameters()):
        _take_shards(module, settings)
    trained = [parameter for _, parameter in learning(module)]
    return library().initialize(
        model=module,
        model_parameters=trained or None,
        config=deepcopy(dict(settings)),  # it writes into what it is given
    )[0]


def _take_shards(module: nn.Module, settings: Mapping[str, Any]) -> None:
    """Make weights DeepSpeed's own, one whole tensor at a time, as it would cut a module itself."""
    dtype = torch.bfloat16 if "bf16" in settings else torch.float32
    taken: dict[nn.Parameter, Any] = {}
    for layer in module.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            if weight not in taken:
                made: Any = nn.Parameter(whole(weight).to(dtype), weight.requires_grad)
                if taken:
                    next(iter(taken.values())).convert_to_zero_parameters(param_list=[made])
                else:
                    holder = nn.ParameterList([made])
                    given = deepcopy(dict(settings))
                    library().zero.Init(holder, config_dict_or_path=given, dtype=dtype)
                taken[weight] = made
                vars(weight).pop("run", None)  # its numbers are in `made` now
                trim_heap()
            setattr(layer, name, taken[weight])
    device = next(iter(taken.values())).device
    for buffer in module.buffers():  # DeepSpeed moves a module only where it cuts it
        buffer.data = buffer.data.to(device)


@final
class DeepSpeedEngine(Engine):
    """One module and its AdamW under ZeRO.

    Args:
        module: the model, on the CPU; DeepSpeed moves and shares it out.
        settings: the first rate; the rest is in `json`.
        name: for messages.
        device: where inputs must be.
        dtype: bfloat16: weights are, with float32 masters; at stage 0 products alone (autocast).
        json: as `engine_json` returned it.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: OptimizerSettings,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        json: Mapping[str, Any],
    ) -> None:
        self._name, self._module, self._device = name, module, device
        self._stage = int(json["zero_optimization"]["stage"])
        self._mixed = dtype != torch.float32 and "bf16" not in json
        self._dtype = dtype
        self._can_offload = (
            device.type == "cuda"
            and self._stage > 1  # stage 1 in bfloat16 cannot
            and "offload_optimizer" not in json["zero_optimization"]
        )
        self._steps = 0
        self._engine = _initialized(module, json)
        self.set_learning_rate(settings.learning_rate)

    @property
    def module(self) -> nn.Module:
        """The bare model; its weights are empty at stage 3."""
        return self._module

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self._device

    @property
    def is_sharded(self) -> bool:
        """True at stage 3."""
        return self._stage == 3

    def forward(self, *args: Any, last: bool = True, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run the model; gradients are reduced by the backward pass of the `last` micro-batch."""
        mixed = torch.autocast(self._device.type, self._dtype, enabled=self._mixed)
        with mixed:
            if torch.is_grad_enabled():
                self._engine.set_gradient_accumulation_boundary(last)
            return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` [], this rank's part of a sum."""
        self._engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)

    def clip(self) -> float:
        """Return the gradient's norm; `step` clips by it."""
        norm = self._norm()
        if not 0.0 <= norm < float("inf"):  # -1 stands for NaN in some of DeepSpeed's norms
            raise NonFiniteError(self._blame())
        return norm

    def _norm(self) -> float:
        """Return the norm of what the last backward reduced; the same on every rank."""
        optimizer = self._engine.optimizer
        if self._stage == 0:
            gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
            return float(nn.utils.get_total_norm(gradients))
        from deepspeed.runtime import utils
        from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

        if isinstance(optimizer, BF16_Optimizer):  # stage 1 in bfloat16, summed up in float32
            gradients, _ = optimizer.get_grads_for_norm()
            return float(utils.get_global_norm_of_tensors(gradients))
        if self._stage == 3:
            return float(utils.combine_grad_norm_groups(optimizer._get_norm_groups()))
        return float(optimizer.scaled_global_norm())

    def _blame(self) -> str:
        return (
            f"the gradient of the {self._name} is not finite; no weight was changed. {LOWER_RATES}"
        )

    def step(self) -> None:
        """Clip and step, and clear the gradient.

        Raises:
            NonFiniteError: on every rank, if DeepSpeed left the step out.
        """
        self._engine.step()
        if not self._engine.was_step_applied():  # a skipped step says nothing (DeepSpeed#8415)
            raise NonFiniteError(self._blame())
        self._steps += 1

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of every parameter group."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def weights(self, *, trained: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full tensor), a tied tensor once; at stage 3 copy it before the next."""
        zero = library().zero
        for name, parameter in learning(self._module, trained=trained):
            sharded = (
                zero.GatheredParameters([parameter])
                if self._stage == 3
                else contextlib.nullcontext()
            )
            with sharded:
                yield name, parameter.detach()

    def _pieces(self) -> Iterator[tuple[str, nn.Parameter, int, int]]:
        """Yield (name, parameter, start, count): the numbers whose masters lie on this rank."""
        rank = dist.get_rank()
        for name, parameter in learning(self._module):
            found: Any = parameter
            if self._stage == 3:
                start = rank * found.ds_tensor.ds_numel  # padded: the last rank may have less
                count = min(found.ds_tensor.ds_numel, max(found.ds_numel - start, 0))
            elif self._stage == 0:
                start, count = 0, parameter.numel()
            else:
                place = found._hp_mapping and found._hp_mapping.lp_fragment_address
                start, count = (place.start, place.numel) if place else (0, 0)
            if count:
                yield name, parameter, start, count

    def _held(self, parameter: Any, kind: str | None) -> Tensor:  # noqa: ANN401
        """Return the flat master [n], or a moment, that is held of a parameter [...]."""
        if self._stage == 3:
            from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

            if kind is None:
                return safe_get_local_fp32_param(parameter)
            return safe_get_local_optimizer_state(parameter, kind)
        if self._stage == 0:
            state = self._engine.optimizer.state
            return (parameter.data if kind is None else state[parameter][kind]).view(-1)
        return parameter._hp_mapping.get_hp_fragment(kind)

    def _put(self, parameter: Any, kind: str | None, piece: Tensor) -> None:  # noqa: ANN401
        """Set what is held of a parameter [...] to `piece` [n]; padding stays."""
        if self._stage < 3:
            self._held(parameter, kind).copy_(piece)
            return
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        whole = self._held(parameter, kind).clone()
        whole[: piece.numel()].copy_(piece)
        if kind is None:
            safe_set_local_fp32_param(parameter, whole)
        else:
            safe_set_local_optimizer_state(parameter, whole, kind)

    def state_dict(self) -> dict[str, Any]:
        """Return the pieces of masters and moments that this rank holds, copied to the CPU."""
        moments: dict[str, dict[str, Tensor]] = {kind: {} for kind in MOMENTS}
        weights: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        is_copy = self._stage == 0 and dist.get_rank() != 0  # of what rank 0 holds
        for name, parameter, start, count in () if is_copy else self._pieces():
            starts[name] = start
            weights[name] = _copied(self._held(parameter, None)[:count])
            if not self._steps:  # moments come with the first step
                continue
            moments["step"][name] = torch.tensor(float(self._steps))
            for kind in MOMENTS[1:]:
                moments[kind][name] = _copied(self._held(parameter, kind)[:count])
        return {"weights": weights, "optimizer": moments, "starts": starts}

    @torch.no_grad()
    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore what an engine of any kind returned on every rank, bit for bit."""
        check_names(states, (name for name, _ in learning(self._module)), self._name)
        steps = [int(step) for state in states for step in state["optimizer"]["step"].values()]
        self._steps = max(steps, default=0)
        self._start_moments()
        for name, parameter, start, count in self._pieces():
            for kind in (None, *(MOMENTS[1:] if self._steps else ())):
                table = ["weights"] if kind is None else ["optimizer", kind]
                piece = torch.empty(count)
                fill(piece, start, name, pieces_of(states, table, name))
                self._put(parameter, kind, piece)
        self._refresh()

    def _masters(self) -> list[Tensor]:
        """Return the flat tensors that the optimizer steps."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [one for group in self._engine.optimizer.param_groups for one in group["params"]]

    def _start_moments(self) -> None:
        """Give the optimizer moments to write into, or take away those it has."""
        basic = self._engine.basic_optimizer
        is_torch = isinstance(basic, torch.optim.AdamW)
        count = torch.tensor(float(self._steps)) if is_torch else self._steps
        basic.state.clear()
        for master in self._masters() if self._steps else ():
            empty = {kind: torch.zeros_like(master) for kind in MOMENTS[1:]}
            basic.state[master] = {"step": deepcopy(count), **empty}
        if not is_torch:
            for group in basic.param_groups:
                group["step"] = self._steps
        if self._steps and self._stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _refresh(self) -> None:
        """Make the weights that are computed with anew from the masters."""
        optimizer = self._engine.optimizer
        if self._stage in (1, 2):
            optimizer.update_lp_params()
        elif self._stage == 3:
            for number in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def offload(self) -> None:
        """Move masters and moments to host memory, unless they lie there already."""
        if self._can_offload:
            from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as Kind

            # By default it takes the weights as well, which others go on computing with.
            self._engine.offload_states(include=[Kind.hp_params, Kind.optim_states])

    def reload(self) -> None:
        """Move them back."""
        if self._can_offload:
            self._engine.reload_states()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
