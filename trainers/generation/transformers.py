"""Generation with the training weights themselves: the policy's own forward, and a cache.

Exact: what is drawn and its log-probability are those of the trainer's forward, up to rounding.
The model's generation settings are never read: what is not said here does not happen.

B rows, P prompt, T actions, V vocabulary.
"""

import inspect
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from trainers.config import Config
from trainers.distributed.collectives import global_max
from trainers.errors import GenerationError
from trainers.functional.logprobs import without
from trainers.generation.base import (
    Generator,
    GeneratorParts,
    Request,
    Response,
    Sampling,
    WeightSource,
)
from trainers.generation.kv_cache import keep_rows, roomy_cache
from trainers.generation.llama import LlamaRows, agrees, has_layout, longest_exact
from trainers.generation.writing import Writing
from trainers.models.causal_lm import CausalPolicy, hides_left_padding
from trainers.models.critic import SharedActorCritic

_log = logging.getLogger(__name__)

# Below this share of rows still being written, the finished ones leave the batch and its cache.
# Removing copies the cache, so not at every end.
_COMPACT_BELOW = 0.875
# Above this share of places that are free, waiting requests take them.
_REFILL_ABOVE = 0.125


@contextmanager
def caching(model: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off, under which a model that trains keeps no cache."""
    layers = [module for module in model.modules() if vars(module).get("gradient_checkpointing")]
    for layer in layers:
        vars(layer)["gradient_checkpointing"] = False
    try:
        yield
    finally:
        for layer in layers:
            vars(layer)["gradient_checkpointing"] = True


def next_logits(
    model: PreTrainedModel,
    tokens: Tensor,
    mask: Tensor,
    positions: Tensor,
    past: DynamicCache | None,
) -> Tensor:
    """Return logits [B, V] of what follows `tokens` [B, n].

    Args:
        model: that of a policy.
        tokens: those that are not in the cache yet; without one, whole rows.
        mask: [B, all tokens so far] 1 on real ones; not given where padding would be read, for
            there is none.
        positions: [B, n] of `tokens`.
        past: keeps what the model has read; None: nothing does.
    """
    known = _parameters(type(model))
    arguments: dict[str, object] = {}
    if "position_ids" in known:  # ALiBi families count by the mask themselves
        arguments["position_ids"] = positions
    if hides_left_padding(model):
        arguments["attention_mask"] = mask
    if "logits_to_keep" in known:
        arguments["logits_to_keep"] = 1
    if past is not None:
        arguments["cache_params" if "cache_params" in known else "past_key_values"] = past
    return model(input_ids=tokens, use_cache=past is not None, **arguments).logits[:, -1]


@cache
def _parameters(kind: type[PreTrainedModel]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


@final
class _Batch:
    """The rows being written at one time: what their next forward needs.

    Where padding would be read, prompts are of one length and there is none.

    Attributes:
        logits: [b, V] of the next token.
    """

    refills = False

    def __init__(
        self, model: PreTrainedModel, pad_token_id: int, room: int, *, cached: bool
    ) -> None:
        self._model = model
        self._pad_token_id = pad_token_id
        self._room = room
        self._cache = roomy_cache(model.config) if cached else None

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read prompts, equal ones side by side: each of them once."""
        device = next(self._model.parameters()).device
        groups = [(prompt, len(list(same))) for prompt, same in groupby(map(tuple, prompts))]
        width = max(len(prompt) for prompt, _ in groups)
        gaps = torch.tensor([width - len(prompt) for prompt, _ in groups], device=device)
        padded = [[self._pad_token_id] * (width - len(p)) + list(p) for p, _ in groups]
        columns = torch.arange(width + self._room, device=device)
        self._used = width
        self._mask = (columns >= gaps[:, None]).long()
        # Padding on the left: a row's first token is at position 0, wherever it stands.
        self._position = (self._mask[:, :width].cumsum(1) - 1).clamp(min=0)
        self.logits = self._forward(torch.tensor(padded, device=device))
        if len(groups) < len(prompts):
            counts = torch.tensor([count for _, count in groups], device=device)
            rows = torch.arange(len(groups), device=device).repeat_interleave(counts)
            self._take(rows)
            self.logits = self.logits[rows]

    def _forward(self, tokens: Tensor) -> Tensor:
        self._written = tokens
        mask = self._mask[:, : self._used]
        return next_logits(self._model, tokens, mask, self._position, self._cache)

    def advance(self, tokens: Tensor, live: Tensor) -> None:
        """Append one token [b] to every row; one that is not live [b] stays at its position."""
        position, tokens = self._position[:, -1:] + live[:, None], tokens[:, None]
        self._used += 1
        if self._cache is None:
            position = torch.cat([self._position, position], dim=1)
            tokens = torch.cat([self._written, tokens], dim=1)
        self._position = position
        self.logits = self._forward(tokens)

    def keep(self, live: Tensor) -> Tensor:
        """Drop the rows that are not live [b] when they are enough; return those that are left.

        Dropping copies the cache, and where ranks take steps together, one may have none left.
        """
        left = int(live.sum())
        if not 0 < left < _COMPACT_BELOW * len(live):
            return torch.arange(len(live), device=live.device)
        rows = live.nonzero().flatten()
        self._take(rows)
        return rows

    def _take(self, rows: Tensor) -> None:
        self._mask, self._position = self._mask[rows], self._position[rows]
        if self._cache is None:
            self._written = self._written[rows]
        else:
            keep_rows(self._cache, rows)


@final
class TransformersGenerator(Generator):
    """Writes with the policy that is being trained, row by row exact."""

    exact = True

    def __init__(self, parts: GeneratorParts) -> None:
        """Take a policy that is a `CausalPolicy` or a `SharedActorCritic`."""
        self._policy: CausalPolicy | SharedActorCritic = parts.policy
        self._eos_token_ids = frozenset(parts.eos_token_ids)
        self._pad_token_id = parts.pad_token_id
        self._batch_size = parts.batch_size
        self._autocast = parts.autocast
        self._weights: WeightSource = parts.weights
        self._cached = parts.cached
        self._pads = hides_left_padding(self._policy.model) and parts.cached
        self._policy_version = -1 if parts.weights == "copied" else 0
        self._agrees: bool | None = None
        self._is_stopping = False

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._policy_version

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Write one response to each request, in the order of the requests.

        Raises:
            GenerationError: the logits of the first step are not finite.
        """
        order = _order(requests)
        model = self._policy.model
        written = Writing(requests, sampling, self._eos_token_ids, model.device)
        device = next(model.parameters()).device.type
        with (
            caching(model),
            torch.autocast(device, self._autocast, enabled=self._autocast is not None),
        ):
            if order and self._is_llama(requests):
                self._write(self._llama_rows(requests), order, written)
                return written.responses(self._policy_version)
            batches = self._batches(order, requests)
            for number in range(self._most(len(batches))):
                if number < len(batches):
                    self._write_batch(batches[number], written)
                else:
                    idle = Writing([self._idle()], sampling, self._eos_token_ids, model.device)
                    self._write_batch([0], idle)
        return written.responses(self._policy_version)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take the weights as `weights` asks: in place, by copying them, or not at all."""
        if self._weights == "copied":
            mine = dict(self._policy.named_parameters())
            for name, tensor in weights:
                target = mine.pop(name)
                target.data = tensor.detach().to(target.device, copy=True)
            assert not mine, f"no weights came for {next(iter(mine))}"
        elif self._weights == "shared":
            self._check_shared(weights)
        self._policy_version = version

    def _check_shared(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        addresses = {tensor.data_ptr() for _, tensor in weights}
        named = self._policy.model.named_parameters()
        absent = [name for name, tensor in named if tensor.data_ptr() not in addresses]
        assert not absent, f"{absent[0]} is not shared with the policy that is trained"

    def sleep(self) -> None:
        """Drop weights that are a copy; `load_weights` brings the next."""
        if self._weights == "copied":
            for parameter in self._policy.parameters():
                parameter.data = parameter.data.new_empty(0)
            self._policy_version = -1

    def stop(self) -> None:
        """Let `generate`, which runs in another thread, end with the token that it writes."""
        self._is_stopping = True

    def _most(self, count: int) -> int:
        """Return how often the rank with most to do does it, where ranks take steps together."""
        return int(global_max(torch.tensor(count))) if self._weights == "sharded" else count

    def _idle(self) -> Request:
        """Return a prompt for a rank that has none left while others write."""
        return Request(token_ids=[self._pad_token_id], index=0, max_new_tokens=1)

    def _batches(self, order: Sequence[int], requests: Sequence[Request]) -> list[list[int]]:
        """Cut an order of requests into batches; of one length each where nothing is padded."""
        runs: list[list[int]] = [[*order]]
        if not self._pads:
            runs = [[*run] for _, run in groupby(order, lambda i: len(requests[i].token_ids))]
        size = self._batch_size
        return [run[at : at + size] for run in runs for at in range(0, len(run), size)]

    def _is_llama(self, requests: Sequence[Request]) -> bool:
        """Tell whether `llama.py` computes this model, as it is and for rows of these lengths."""
        if self._weights == "sharded" or not self._pads:  # a layer's own forward gathers it
            return False
        model = self._policy.model
        if not has_layout(model) or _longest(requests) > longest_exact(model):
            return False
        if self._agrees is None:
            self._agrees = agrees(model)
            if not self._agrees:
                _log.warning(
                    "%s computes other logits than llama.py; its own forward writes, more slowly",
                    type(model).__name__,
                )
        return self._agrees

    def _llama_rows(self, requests: Sequence[Request]) -> LlamaRows:
        model = self._policy.model
        return LlamaRows(
            model,
            rows=min(self._batch_size, len(requests)),
            tokens=_longest(requests),
            dtype=self._autocast or model.dtype,
        )

    def _write_batch(self, batch: Sequence[int], written: Writing) -> None:
        room = self._most(max(written.requests[i].max_new_tokens for i in batch))
        model = self._policy.model
        self._write(_Batch(model, self._pad_token_id, room, cached=self._cached), batch, written)

    def _write(self, rows: _Batch | LlamaRows, waiting: Sequence[int], written: Writing) -> None:
        """Write the responses of `waiting`; new rows take the places of those that end."""
        members = torch.zeros(0, dtype=torch.long, device=written.device)
        memory: Tensor | None = None
        while not self._is_stopping:
            free = self._batch_size - len(members)
            if waiting and (len(members) == 0 or free >= _REFILL_ABOVE * self._batch_size):
                new, waiting = waiting[:free], waiting[free:]
                rows.add([written.requests[i].token_ids for i in new])
                self._check_finite(rows.logits[len(members) :])
                members = torch.cat([members, torch.tensor(new, device=members.device)])
            if memory is None and members.device.type == "cpu":
                memory = torch.empty(rows.logits.shape, dtype=torch.float32)
            logits = without(rows.logits, self._policy.scorer.absent)
            tokens, live = written.draw_tokens(members, logits, memory)
            left = int(live.sum())
            if self._most(left + len(waiting)) == 0:
                return
            kept = rows.keep(live) if left < len(members) else slice(None)
            members, tokens, live = members[kept], tokens[kept], live[kept]
            if len(members):
                rows.advance(tokens, live)

    def _check_finite(self, logits: Tensor) -> None:
        bad = int((~torch.stack(logits.aminmax(dim=1)).isfinite()).any(0).sum())
        if self._most(bad):
            raise GenerationError(
                f"the policy's logits are not finite for {bad} of {len(logits)} prompts, before a "
                "token was sampled: the weights are broken.\n"
                "Continue from an earlier checkpoint, often at a lower rate: "
                "--ppo.learning-rate 1e-6"
            )


def _longest(requests: Sequence[Request]) -> int:
    return max(len(request.token_ids) + request.max_new_tokens for request in requests)


def _order(requests: Sequence[Request]) -> list[int]:
    """Return numbers of requests: short prompts first, equal ones side by side."""
    first: dict[tuple[int, ...], int] = {}
    for number, request in enumerate(requests):
        first.setdefault(tuple(request.token_ids), number)
    keys = [(len(r.token_ids), first[tuple(r.token_ids)]) for r in requests]
    return sorted(range(len(requests)), key=lambda number: keys[number])


def check_engine(config: Config) -> None:
    """Refuse nothing: this engine writes with any model that trains."""


def make_generator(parts: GeneratorParts) -> Generator:
    """Return the generator of `generation.engine transformers`."""
    return TransformersGenerator(parts)
