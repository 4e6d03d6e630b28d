"""The passes of a run on fake tensors: the real code of the models, counted and not computed.

`counting.py` counts them. B rows, P prompt, T response tokens, L = P + T.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from trainers.batch import TextInputs
from trainers.config import Config
from trainers.generation.base import Sampling
from trainers.generation.kv_cache import ROOM, roomy_cache
from trainers.generation.sampling import draw_tokens
from trainers.generation.transformers import caching, next_logits
from trainers.models.causal_lm import ActionScorer, body_of, hidden_states, position_ids
from trainers.models.critic import ValueHead, read_values, value_width
from trainers.models.loading import enable_checkpointing
from trainers.plan.counting import Usage, counted
from trainers.plan.shapes import Shapes


class Rehearsal:
    """The passes of a text run.

    Args:
        shapes: the fake models.
        config: of the run.
        dtype: of the matrix products.
    """

    def __init__(self, shapes: Shapes, config: Config, dtype: torch.dtype) -> None:
        self._shapes, self._config, self._dtype = shapes, config, dtype
        with shapes.mode:
            self._value_head = ValueHead(value_width(shapes.policy), torch.device("cpu"))
        self._scorer = ActionScorer.of(
            shapes.policy.config,
            temperature=config.generation.temperature,
            chunk=config.backend.logprob_chunk,
        )
        critic = shapes.critic
        self._modules = [shapes.policy, self._value_head, *([critic] if critic else [])]

    @contextmanager
    def _casting(self) -> Iterator[None]:
        with torch.autocast("cpu", self._dtype, enabled=self._dtype != self._shapes.policy.dtype):
            yield

    def _inputs(self, rows: int) -> TextInputs:
        """Return [B, L] rows without padding."""
        generation = self._config.generation
        width = generation.max_prompt_tokens + generation.max_new_tokens
        return TextInputs(
            tokens=torch.zeros(rows, width, dtype=torch.long),
            attention_mask=torch.ones(rows, width, dtype=torch.bool),
            num_prompt=generation.max_prompt_tokens,
        )

    def generation(self, rows: int) -> tuple[Usage, Usage, int]:
        """Read full prompts, write full responses; return the work of each, and cache bytes."""
        room = self._config.generation.max_new_tokens
        model = self._shapes.policy
        with self._shapes.mode, torch.no_grad(), self._casting(), caching(model):
            width = self._config.generation.max_prompt_tokens
            prompts = torch.zeros(rows, width, dtype=torch.long)
            if not self._shapes.cached:  # each token reads its row again, at last the longest
                rest = torch.zeros(rows, width + room - 1, dtype=torch.long)
                begin = counted(lambda: self._decode(None, prompts), self._modules)
                last = counted(lambda: self._decode(None, rest), self._modules)
                return begin, last.times(room), 0
            cache = roomy_cache(model.config)
            begin = counted(lambda: self._decode(cache, prompts), self._modules)
            cache = roomy_cache(model.config)

            def grow() -> None:  # to where it is longest but for one token
                self._decode(cache, prompts)
                extend_cache(cache, room - 1)

            seen = width + room - 1
            last = counted(lambda: self._decode(cache, prompts[:, :1], seen), self._modules, grow)
            held = cache_bytes(cache)
        return begin, last.times(room), held

    def _decode(self, cache: DynamicCache | None, tokens: Tensor, seen: int = 0) -> None:
        rows, width = tokens.shape
        mask = torch.ones(rows, seen + width, dtype=torch.long)
        positions = position_ids(mask)[:, seen:]
        logits = next_logits(self._shapes.policy, tokens, mask, positions, cache)
        draw_tokens(logits, torch.zeros(rows, dtype=torch.float64), Sampling())

    def logprobs(self, rows: int) -> Usage:
        """Score responses without gradients."""
        with self._shapes.mode, torch.no_grad():
            return counted(lambda: self._policy_pass(rows), self._modules)

    def values(self, rows: int) -> Usage:
        """Read values without gradients."""
        with self._shapes.mode, torch.no_grad():
            return counted(lambda: self._critic_pass(rows), self._modules)

    def learning(
        self, rows: int, *, micro_batches: int, with_critic: bool = True, keeps: bool = True
    ) -> Usage:
        """Take the forward and backward pass of a micro-batch; of the second, where there is one.

        From the second on gradients are there when the forward pass begins. Where ranks share them
        out (`keeps` false), none is counted.
        """
        shapes = self._shapes
        models = [shapes.policy] if shapes.critic is None else [shapes.policy, shapes.critic.trunk]
        for model in models if self._config.backend.gradient_checkpointing else ():
            enable_checkpointing(model)

        def work() -> None:
            hidden, figures = self._policy_pass(rows)
            if not (with_critic and shapes.has_critic):
                figures.backward()
                return
            values = self._critic_pass(rows, hidden if shapes.critic is None else None)
            if shapes.critic is None:
                (figures + values).backward()
            else:
                values.backward()
                figures.backward()

        with shapes.mode:
            usage = counted(work, self._modules, keeps_gradients=keeps)
            if micro_batches > 1 and keeps:
                again = counted(work, self._modules)
                usage = Usage(
                    peak=again.peak, gradients=again.gradients, flops=usage.flops,
                    written=usage.written, calls=usage.calls,
                )  # fmt: skip
            for module in self._modules:
                module.zero_grad(set_to_none=True)
        return usage

    def _policy_pass(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return hidden states [B, T + 1, D] and a sum [] over the responses' log-probabilities."""
        inputs = self._inputs(rows)
        model = self._shapes.policy
        with self._casting():
            hidden = hidden_states(body_of(model), inputs)
            before = hidden[:, :-1].flatten(0, 1)
            head = cast(nn.Linear, model.get_output_embeddings())
            targets = inputs.actions.flatten()
            figures, _ = self._scorer(head, before, targets, entropy="metric")
        return hidden, figures.sum()

    def _critic_pass(self, rows: int, hidden: Tensor | None = None) -> Tensor:
        """Return a sum [] over values; of the policy's hidden states [B, T + 1, D] if given."""
        inputs = self._inputs(rows)
        critic = self._shapes.critic
        trunk = body_of(self._shapes.policy) if critic is None else critic.trunk
        head = self._value_head if critic is None else critic.head
        with self._casting():
            if hidden is None:
                hidden = hidden_states(trunk, inputs)
            return read_values(head, hidden, inputs).sum()


def extend_cache(cache: DynamicCache, num_tokens: int) -> None:
    """Append tokens without computing them, in steps that ask for memory as single ones do."""
    for layer in attention(cache):
        assert layer.keys is not None
        left = num_tokens
        while left > 0:
            for size in (min(ROOM, left), min(1, left - ROOM)):
                if size > 0:
                    states = layer.keys[..., :1, :].expand(-1, -1, size, -1)
                    layer.update(states, states)
            left -= ROOM + 1


def cache_bytes(cache: DynamicCache) -> int:
    """Return what keys and values of a cache take, with the room behind them."""
    pairs = ((layer.keys, layer.values) for layer in attention(cache))
    return sum(
        state.untyped_storage().nbytes() for pair in pairs for state in pair if state is not None
    )


def attention(cache: DynamicCache) -> list[DynamicLayer]:
    """Return the layers of a cache that grow with its tokens."""
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
