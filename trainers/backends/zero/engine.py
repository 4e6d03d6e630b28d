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
import gc
import io
import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.backends.base import Engine, learning
from trainers.backends.torch import OptimizerSettings
from trainers.backends.zero.json import can_leave
from trainers.backends.zero.state import ZeroState
from trainers.distributed.collectives import name_accelerator
from trainers.errors import LOWER_RATES, BackendError, ConfigError, NonFiniteError
from trainers.models.shards import Shard, full_weight, trim_heap

TESTED = "0.19"
NVME_PREFIX = "llmgym-"
"""How the folders begin that engines make on NVMe, and remove at their end; a kill leaves them."""
_log = logging.getLogger(__name__)


def import_deepspeed() -> Any:  # noqa: ANN401 - the module
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
        ConfigError: the folder; says what to do.
        BackendError: the library; names its package.
    """
    if not os.access(path, os.W_OK | os.X_OK) or not path.is_dir():
        raise ConfigError(
            f"backend.zero.nvme_path {path} is no folder that can be written. Make it, or drop the "
            "setting to offload to host memory."
        )
    import_deepspeed()
    from deepspeed.ops import op_builder

    builders: Any = op_builder
    with contextlib.redirect_stdout(io.StringIO()):
        works = builders.AsyncIOBuilder().is_compatible(verbose=False)
    if not works:
        raise BackendError(
            "backend.zero.nvme_path needs libaio, which is not found here. Install it (Debian: "
            "apt-get install libaio-dev), or drop the setting to offload to host memory."
        )
    if os.environ.get("LOCAL_RANK", "0") == "0" and any(path.glob(f"{NVME_PREFIX}*")):
        _log.warning(
            "%s holds folders of runs under way, or killed. If none is under way:\nrm -r %s",
            path,
            path / f"{NVME_PREFIX}*",
        )


def needs_torch_adam(offload: str) -> bool:
    """Tell whether DeepSpeed's own Adam cannot be built here, so that torch's takes its place."""
    if not torch.cuda.is_available():
        return True
    tools = ("ninja", "g++", *(["nvcc"] if offload == "none" else []))
    missing = [tool for tool in tools if shutil.which(tool) is None]
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
    config, folder = _on_nvme(module, settings)
    if any(isinstance(parameter, Shard) for parameter in module.parameters()):
        _take_shards(module, config)
    trained = [parameter for _, parameter in learning(module)]
    engine = import_deepspeed().initialize(
        model=module,
        model_parameters=trained or None,
        config=deepcopy(config),  # it writes into what it is given
    )[0]
    if folder is not None:
        weakref.finalize(engine, shutil.rmtree, folder, ignore_errors=True)
        if trained:
            _cut_at_bounds(engine.optimizer.optimizer_swapper)
    return engine


def _on_nvme(module: nn.Module, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the JSON with a new folder of this engine's own for what is on NVMe, and the folder.

    In a folder of two engines the second would delete the weights of the first, and a buffer has to
    hold the largest weight's part.
    """
    config = deepcopy(dict(settings))
    parts = [config["zero_optimization"].get(f"offload_{part}") for part in ("optimizer", "param")]
    swapped = [part for part in parts if part is not None and part["device"] == "nvme"]
    folder = None
    for part in swapped:
        folder = folder or tempfile.mkdtemp(prefix=NVME_PREFIX, dir=part["nvme_path"])
        part["nvme_path"] = folder
        if part is parts[1]:
            largest = max(parameter.numel() for parameter in module.parameters())
            part.setdefault("buffer_size", -(-largest // dist.get_world_size()))
    return config, folder


def _cut_at_bounds(swapper: Any) -> None:  # noqa: ANN401
    """Cut gradients so that files are read back to addresses that any disk can read to.

    A gradient is read to its place among those of its sub-group. Some disks, virtio's for one, read
    to multiples of 512 bytes alone, and DeepSpeed 0.19 takes what lies in memory for what it read.
    """
    cut, unit = swapper._adjust_for_misaligned_lengths, swapper.numel_alignment

    def at_bounds(tensors: list[Tensor], offsets: list[int]) -> tuple[list[Tensor], list[int]]:
        parts: list[Tensor] = []
        places: list[int] = []
        for tensor, offset in zip(tensors, offsets, strict=True):
            head = min(-offset % unit, tensor.numel())
            if head:  # too small for a file: it stays in memory
                parts.append(tensor[:head].clone())
                places.append(offset)
            if head < tensor.numel():
                parts.append(tensor[head:])
                places.append(offset + head)
        return cut(tensors=parts, offsets=places)

    swapper._adjust_for_misaligned_lengths = at_bounds


def _take_shards(module: nn.Module, settings: Mapping[str, Any]) -> None:
    """Make weights DeepSpeed's own, one whole tensor at a time, as it would cut a module itself."""
    dtype = torch.bfloat16 if "bf16" in settings else torch.float32
    taken: dict[nn.Parameter, Any] = {}
    for layer in module.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            if weight not in taken:
                made: Any = nn.Parameter(full_weight(weight).to(dtype), weight.requires_grad)
                if taken:
                    next(iter(taken.values())).convert_to_zero_parameters(param_list=[made])
                else:
                    holder = nn.ParameterList([made])
                    config = deepcopy(dict(settings))  # it writes into what it is given
                    import_deepspeed().zero.Init(holder, config_dict_or_path=config, dtype=dtype)
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
        self._can_offload = device.type == "cuda" and can_leave(json)
        self._steps = 0
        self._engine = _initialized(module, json)
        self._state = ZeroState(self._engine, module, stage=self._stage, name=name)
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
        zero = import_deepspeed().zero
        for name, parameter in learning(self._module, trained=trained):
            sharded = (
                zero.GatheredParameters([parameter])
                if self._stage == 3
                else contextlib.nullcontext()
            )
            with sharded:
                yield name, parameter.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the pieces of masters and moments that this rank holds, copied to the CPU."""
        return self._state.read(self._steps)

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore what an engine of any kind returned on every rank, bit for bit."""
        self._steps = self._state.write(states)

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
            if self._steps:  # moments come with the first step
                self._state.link_moments()  # it links masters alone

    def close(self) -> None:
        """Give all its memory back; at stage 3 the bare model's weights are gone for good."""
        self._engine.destroy()  # what hangs on the gradients' accumulators, which nobody sees
        for parameter in self._module.parameters():
            vars(parameter).clear()  # its piece, and ways to the optimizer
        for layer in self._module.modules():
            layer._forward_hooks.clear()
            layer._forward_pre_hooks.clear()
        del self._engine, self._state
        gc.collect()  # the rest are circles
