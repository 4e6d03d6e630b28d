"""Generation with the training weights themselves: the policy's own forward, and a cache.

Exact: what is drawn and its log-probability are those of the trainer's forward, up to rounding.
The model's generation settings are never read: what is not said here does not happen.

B rows, P prompt, T actions, V vocabulary.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

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
from trainers.generation.sampling import sample, token_logprobs, uniforms
from trainers.models.causal_lm import CausalPolicy, hides_left_padding
from trainers.models.critic import SharedActorCritic

# Below this share of rows still being written, the finished ones leave the batch and its cache.
# Removing copies the cache, so not at every end.
_COMPACT_BELOW = 0.875


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
        rows: [b] which requests are left.
        live: [b] False where a row has ended and not yet left.
        logits: [b, V] of the next token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        requests: Sequence[Request],
        pad_token_id: int,
        room: int,
        *,
        cached: bool,
    ) -> None:
        self._model = model
        device = next(model.parameters()).device
        width = max(len(request.token_ids) for request in requests)
        gaps = [width - len(request.token_ids) for request in requests]
        padded = [
            [pad_token_id] * gap + list(request.token_ids)
            for gap, request in zip(gaps, requests, strict=True)
        ]
        tokens = torch.tensor(padded, device=device)
        columns = torch.arange(width + room, device=device)
        self._used = width
        self._mask = (columns >= torch.tensor(gaps, device=device)[:, None]).long()
        self._cache = roomy_cache(model.config) if cached else None
        self.rows = torch.arange(len(requests), device=device)
        self.live = torch.ones_like(self.rows, dtype=torch.bool)
        # Padding on the left: a row's first token is at position 0, wherever it stands.
        self._position = (self._mask[:, :width].cumsum(1) - 1).clamp(min=0)
        self.logits = self._forward(tokens)

    def _forward(self, tokens: Tensor) -> Tensor:
        self._written = tokens
        mask = self._mask[:, : self._used]
        return next_logits(self._model, tokens, mask, self._position, self._cache)

    def advance(self, tokens: Tensor) -> None:
        """Append one token [b] to every row; a row that has ended stays at its position."""
        position, tokens = self._position[:, -1:] + self.live[:, None], tokens[:, None]
        self._used += 1
        if self._cache is None:
            position = torch.cat([self._position, position], dim=1)
            tokens = torch.cat([self._written, tokens], dim=1)
        self._position = position
        self.logits = self._forward(tokens)

    def compact(self, tokens: Tensor) -> Tensor:
        """Drop the rows that have ended, here and from `tokens` [b], which is returned."""
        keep = self.live.nonzero().flatten()
        self.rows, self.live = self.rows[keep], self.live[keep]
        self._mask, self._position = self._mask[keep], self._position[keep]
        if self._cache is None:
            self._written = self._written[keep]
        else:
            keep_rows(self._cache, keep)
        return tokens[keep]


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
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].token_ids))
        responses: dict[int, Response] = {}
        model = self._policy.model
        device = next(model.parameters()).device.type
        with (
            caching(model),
            torch.autocast(device, self._autocast, enabled=self._autocast is not None),
        ):
            batches = self._batches(order, requests)
            for number in range(self._most(len(batches))):
                chosen = batches[number] if number < len(batches) else []
                batch = [requests[i] for i in chosen]
                written = self._write(batch or [self._idle()], sampling)
                responses.update(zip(chosen, written, strict=False))
        return [responses[i] for i in range(len(requests))]

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

    def _write(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        room = self._most(max(request.max_new_tokens for request in requests))
        batch = _Batch(self._policy.model, requests, self._pad_token_id, room, cached=self._cached)
        bad = int((~batch.logits.isfinite()).any(1).sum())
        _check_finite(self._most(bad), len(requests))
        rows = batch.rows
        steps = torch.arange(room, device=rows.device)
        limits = torch.tensor([request.max_new_tokens for request in requests], device=rows.device)
        eos = torch.tensor(sorted(self._eos_token_ids), device=rows.device)
        draws = _draws(requests, steps, sampling)
        tokens = torch.zeros(len(requests), room, dtype=torch.long, device=rows.device)
        logprobs = torch.zeros(len(requests), room, device=rows.device)
        for step in range(room):
            logits = without(batch.logits, self._policy.scorer.absent)
            drawn = sample(logits, draws[batch.rows, step], sampling)
            tokens[batch.rows, step] = drawn
            logprobs[batch.rows, step] = token_logprobs(logits, drawn, sampling.temperature)
            ended = torch.isin(drawn, eos) | (limits[batch.rows] <= step + 1)
            batch.live &= ~ended
            left = int(batch.live.sum())
            if self._most(left) == 0:
                break
            if 0 < left < _COMPACT_BELOW * len(batch.rows):
                drawn = batch.compact(drawn)
            batch.advance(drawn)
        return self._responses(requests, tokens.tolist(), logprobs.tolist())

    def _responses(
        self,
        requests: Sequence[Request],
        tokens: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float]],
    ) -> list[Response]:
        """Cut each row behind its first end token, or at its limit."""
        responses = []
        for request, ids, figures in zip(requests, tokens, logprobs, strict=True):
            limit = request.max_new_tokens
            ends = (i for i, token in enumerate(ids[:limit]) if token in self._eos_token_ids)
            end = next(ends, None)
            length = limit if end is None else end + 1
            responses.append(
                Response(
                    token_ids=tuple(ids[:length]),
                    logprobs=tuple(figures[:length]),
                    finish_reason="length" if end is None else "stop",
                    policy_version=self._policy_version,
                )
            )
        return responses


def _draws(requests: Sequence[Request], steps: Tensor, sampling: Sampling) -> Tensor:
    """Return the uniforms [B, T] of every token that may be drawn."""
    index = torch.tensor([request.index for request in requests], device=steps.device)
    first = torch.tensor([request.position for request in requests], device=steps.device)
    return uniforms(sampling.seed, sampling.iteration, index[:, None], first[:, None] + steps)


def _check_finite(bad: int, count: int) -> None:
    if bad:
        raise GenerationError(
            f"the policy's logits are not finite for {bad} of {count} prompts, before a token was "
            "sampled: the weights are broken.\n"
            "Continue from an earlier checkpoint, often at a lower rate: --ppo.learning-rate 1e-6"
        )


def make_generator(parts: GeneratorParts) -> Generator:
    """Return the generator of `generation.engine transformers`."""
    return TransformersGenerator(parts)
