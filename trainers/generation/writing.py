"""What has been written so far: tokens of many rows, recorded step by step.

N requests, B rows of a step.
"""

from collections.abc import Collection, Sequence
from typing import final

import torch
from torch import Tensor

from trainers.generation.base import Request, Response, Sampling
from trainers.generation.sampling import draw_tokens, stream_keys, uniforms_of


@final
class Writing:
    """Draws the tokens of rows, and cuts what was drawn into responses.

    Args:
        requests: N of them.
        sampling: how to draw.
        eos_token_ids: each of them ends a response, and is its last token.
        device: of the logits.

    Attributes:
        requests: as given.
        device: as given.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        eos_token_ids: Collection[int],
        device: torch.device,
    ) -> None:
        self.requests, self.device = requests, device
        self._sampling, self._ends = sampling, eos_token_ids

        def numbers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        self._eos = numbers(sorted(eos_token_ids))
        index = numbers([request.index for request in requests])
        self._keys = stream_keys(sampling.seed, sampling.iteration, index)
        self._position = numbers([request.position for request in requests])
        limits = numbers([request.max_new_tokens for request in requests])
        self._last = self._position + limits - 1
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def draw_tokens(
        self, members: Tensor, logits: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Draw and record a token of each row.

        Args:
            members: [B] the number of each row's request.
            logits: [B, V].
            memory: as `sampling.draw_tokens` takes it.

        Returns:
            [B] tokens, and [B] True where the row continues after it.
        """
        position = self._position[members]
        u = uniforms_of(self._keys[members], position)
        tokens, logprobs = draw_tokens(logits, u, self._sampling, memory)
        self._steps.append((members, tokens, logprobs))
        self._position[members] = position + 1
        ended = position >= self._last[members]
        for end in self._eos:
            ended |= tokens == end
        return tokens, ~ended

    def responses(self, policy_version: int) -> list[Response]:
        """Return what was drawn, each row cut behind its first end token or at its limit."""
        written: list[tuple[list[int], list[float]]] = [([], []) for _ in self.requests]
        for members, tokens, logprobs in self._steps:
            rows = zip(members.tolist(), tokens.tolist(), logprobs.tolist(), strict=True)
            for member, token, logprob in rows:
                written[member][0].append(token)
                written[member][1].append(logprob)
        return [
            self._response(request, *row, policy_version)
            for request, row in zip(self.requests, written, strict=True)
        ]

    def _response(
        self, request: Request, ids: list[int], logprobs: list[float], policy_version: int
    ) -> Response:
        limit = request.max_new_tokens
        ends = (i for i, token in enumerate(ids[:limit]) if token in self._ends)
        end = next(ends, None)
        length = limit if end is None else end + 1
        return Response(
            token_ids=tuple(ids[:length]),
            logprobs=tuple(logprobs[:length]),
            finish_reason="length" if end is None else "stop",
            policy_version=policy_version,
        )
