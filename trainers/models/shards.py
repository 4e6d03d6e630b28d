"""Weights that are shared out over the ranks while they load: no rank ever holds a model whole.

transformers reads a folder as it always does, tensor by tensor, with its own renaming, tying and
initialization. Each tensor is cut as it is put into the model, before the next one is read:

    file -> whole tensor, for a moment -> Shard: rank r keeps numbers [r n, (r + 1) n)

What computes with a shard by mistake gets NaN; an engine at stage 3 takes shards, and no other.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedModel

from trainers.distributed.collectives import World, gather, gather_runs
from trainers.errors import ConfigError

LOADED = "_is_hf_initialized"
"""By which transformers marks what came from a file, before it puts it into the model."""
IN_TURN = "HF_DEACTIVATE_ASYNC_LOAD"
"""By which transformers reads a tensor when its turn comes, rather than many ahead of it."""


@final
class Shard(nn.Parameter):
    """A weight of which each rank holds a run of numbers.

    It has the shape and type of the weight, takes no memory for them, and is NaN everywhere.

    Attributes:
        run: [n] this rank's numbers, padded with zeros to the same n on every rank.
    """

    run: Tensor

    @classmethod
    def _of(cls, weight: Tensor, run: Tensor) -> "Shard":
        """Return the shard of something like `weight` [...] that holds `run` [n]."""
        shard = cls(run.new_full((), float("nan")).expand(weight.shape), weight.requires_grad)
        vars(shard).update(vars(weight), run=run)
        return shard

    @classmethod
    def cut(cls, weight: nn.Parameter, world: World) -> "Shard":
        """Keep this rank's numbers of `weight` [...], which is the same on every rank."""
        count = -(-weight.numel() // world.size)
        mine = weight.detach().reshape(-1)[world.rank * count : (world.rank + 1) * count]
        run = mine.new_zeros(count)
        run[: mine.numel()] = mine
        return cls._of(weight, run)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shard":
        """Copy this rank's numbers, so that a copy of a model is shared out as well."""
        if id(self) not in memo:
            memo[id(self)] = self._of(self, self.run.clone())
        return memo[id(self)]

    def whole(self) -> Tensor:
        """Return the weight [...] on every rank; a collective."""
        return gather_runs(self.run)[: self.numel()].view(self.shape)


def trim_heap() -> None:
    """Give back what the heap keeps of whole weights that are gone; glibc's would keep them all."""
    trim = getattr(CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def full_weight(weight: Tensor) -> Tensor:
    """Return a weight [...] with its numbers; a collective where it is shared out."""
    return weight.whole() if isinstance(weight, Shard) else weight.detach()


def gather_layer(layer: nn.Module) -> None:
    """Put whole weights into a layer, not into those inside it, for good; a collective."""
    for name, weight in list(layer.named_parameters(recurse=False)):
        if isinstance(weight, Shard):
            setattr(layer, name, nn.Parameter(weight.whole(), requires_grad=weight.requires_grad))


@contextmanager
def shared_out() -> Iterator[None]:
    """Share out what transformers loads inside.

    Raises:
        ConfigError: ranks read different weights.
    """
    world, seen = World.from_launcher(), list[int]()

    def cut(_layer: nn.Module, _name: str, weight: nn.Parameter) -> Shard | None:
        is_read = vars(weight).get(LOADED, False) and not weight.is_meta
        if not is_read or weight.dtype != torch.float32 or isinstance(weight, Shard):
            return None
        trim_heap()
        seen.append(int(weight.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)))
        return Shard.cut(weight, world)

    before = os.environ.get(IN_TURN)
    os.environ[IN_TURN] = "1"
    hook: Any = cut  # torch's annotation leaves out that it may return a parameter
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        if before is None:
            del os.environ[IN_TURN]
        else:
            os.environ[IN_TURN] = before
    for rank, other in enumerate(gather(seen)):
        if other != seen:
            raise ConfigError(
                f"rank {rank} reads other weights than rank {world.rank}, though each holds a part "
                "of one model. Give every host the same folder, or the same revision in its cache."
            )


@contextmanager
def layer_by_layer(module: nn.Module) -> Iterator[None]:
    """Let a module that is shared out compute: a layer's weights are whole while it runs.

    The head over the vocabulary is whole all the time, for it is read beside its layer as well.
    """
    held: dict[nn.Module, dict[str, nn.Parameter]] = {}

    def gathered(layer: nn.Module, *_: Any) -> None:
        held[layer] = dict(layer.named_parameters(recurse=False))
        gather_layer(layer)

    def released(layer: nn.Module, *_: Any) -> None:
        for name, weight in held.pop(layer, {}).items():
            setattr(layer, name, weight)

    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    heads = {model.get_output_embeddings() for model in models} - {None}
    handles = []
    for layer in module.modules():
        if any(isinstance(weight, Shard) for weight in layer.parameters(recurse=False)):
            if layer in heads:
                gathered(layer)
                continue
            handles.append(layer.register_forward_pre_hook(gathered))
            handles.append(layer.register_forward_hook(released, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in list(held):
            released(layer)


def tie_head(model: PreTrainedModel, source: str) -> None:
    """Make one weight of head and embedding where the configuration says so and files hold both.

    Raises:
        ConfigError: they differ.
    """
    head = cast(nn.Linear | None, model.get_output_embeddings())
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    is_tied = model.config.get_text_config().to_dict().get("tie_word_embeddings")
    if head is None or not is_tied or head.weight is embedding.weight:
        return
    of_head, of_embedding = (
        weight.run if isinstance(weight, Shard) else weight
        for weight in (head.weight, embedding.weight)
    )
    if not all(
        gather(torch.equal(of_head, of_embedding)) if isinstance(head.weight, Shard) else [False]
    ):
        raise ConfigError(
            f"config.json of {source} ties the head to the embedding (tie_word_embeddings), but "
            "its files hold two that differ. Set it to false there."
        )
    head.weight = embedding.weight
