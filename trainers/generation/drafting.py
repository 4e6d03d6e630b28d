"""Speculative decoding of one row: a small model drafts, the large one verifies all of it.

Lossless (Leviathan et al. 2023, arXiv:2211.17192): a drafted token x is kept with probability
min(1, p(x) / q(x)), else the row continues with a token of (p - q)+ normalised, and behind a draft
that was kept as a whole with one of p. A rule may stop drafting whenever it likes, for every
drafted token is verified. Greedy, a token is kept where it is the target's own.

Every uniform is a function of (seed, iteration, sequence index, position) and of what it is for,
so a row does not depend on others. Without drafts the row is what `transformers` draws.

V vocabulary, k drafted tokens, F features.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from llmgym.speculative.observing import DraftView
from trainers.errors import ConfigError
from trainers.functional.logprobs import Absent, without
from trainers.generation.base import Request, Sampling
from trainers.generation.sampling import draw_tokens, mix, stream_keys, uniforms_of

DraftRule = Callable[[DraftView], bool]
"""Tells whether to draft one more token."""
DRAFT, ACCEPT, REDRAW = 1, 2, 3
"""Streams of uniforms, besides that of plain decoding."""


def fixed_length(length: int) -> DraftRule:
    """Draft as many tokens in every cycle."""
    return lambda view: view.depth < length


def entropy_rule(threshold: float) -> DraftRule:
    """Draft until the drafter's entropy is not below a threshold, in nats."""
    return lambda view: not view.drafted or view.drafted[-1][1] < threshold


def logit_features(logits: Tensor) -> list[float]:
    """Return the numbers of `llmgym.speculative.traces.FEATURES` of logits [V]."""
    logprobs = torch.log_softmax(logits.double(), -1)
    best = logprobs.topk(2).values.tolist()
    return [best[0], float(-(logprobs.exp() * logprobs).nansum()), best[0] - best[1]]


def acceptance(p: Tensor, q: Tensor, token: int) -> float:
    """Return the probability with which a token drafted from q [V] is kept, where p [V] is due."""
    return min(1.0, float(p[token]) / float(q[token]))


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return (p - q)+ [V], not normalised; p where nothing is left but rounding."""
    rest = (p - q).clamp(min=0)
    return rest if float(rest.sum()) > 0 else p


@final
class RowReader:
    """A model that reads one row, each token once, and can forget the newest.

    Args:
        model: any with a cache of full attention.
        absent: ids that have no probability.

    Raises:
        ConfigError: its cache cannot forget.
    """

    def __init__(self, model: PreTrainedModel, absent: Absent = ()) -> None:
        self._model, self._absent = model, absent
        self._cache = DynamicCache(config=model.config)
        if any(type(layer) is not DynamicLayer for layer in self._cache.layers):
            raise ConfigError(
                f"{type(model).__name__} keeps a window or a state of what it has read, so a "
                "drafted token cannot be taken back. Set --generation.engine transformers."
            )
        self.length = 0

    def read(self, row: Sequence[int]) -> Tensor:
        """Read what of a row is not known yet; return logits [n, V] of what follows each token."""
        tokens = torch.tensor([row[self.length :]], device=self._model.device)
        output = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True)
        self.length = len(row)
        return without(output.logits[0], self._absent)

    def keep(self, length: int) -> None:
        """Forget all but the first tokens."""
        if length < self.length:
            self._cache.crop(length - self.length)
            self.length = length


@final
@dataclass
class Drafted:
    """A row that was written, and what that took.

    Attributes:
        token_ids: an end token included.
        logprobs: natural, in the target's tempered distribution.
        cycles: passes of the target.
        drafts: tokens that were drafted.
        kept: those of them that were kept.
    """

    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    cycles: int = 0
    drafts: int = 0
    kept: int = 0


@final
class RowDrawing:
    """The draws of one row.

    Args:
        sampling: temperature, greedy, seed and iteration count; top_p and top_k do not.
        request: which row.
    """

    def __init__(self, sampling: Sampling, request: Request) -> None:
        if sampling.top_k or sampling.top_p < 1.0:
            raise ConfigError(
                "speculative decoding draws from the complete distribution: leave top_p and top_k "
                "out, or set --generation.engine transformers."
            )
        self._sampling = sampling
        self._key = stream_keys(sampling.seed, sampling.iteration, torch.tensor([request.index]))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the tempered distribution [..., V] as float64."""
        return torch.softmax(logits.double() / self._sampling.temperature, -1)

    def token(self, logits: Tensor, position: int, stream: int = 0) -> tuple[int, float]:
        """Draw a token of logits [V]; return it and its log-probability."""
        drawn = draw_tokens(logits[None], self._uniform(position, stream), self._sampling)
        return int(drawn.tokens), float(drawn.logprobs)

    def keeps(self, token: int, p: Tensor, q: Tensor, position: int) -> bool:
        """Tell whether a drafted token is kept, of distributions p and q [V]."""
        if self._sampling.greedy:
            return token == int(p.argmax())
        return float(self._uniform(position, ACCEPT)) < acceptance(p, q, token)

    def redrawn(self, p: Tensor, q: Tensor, position: int) -> int:
        """Draw the token in the place of one that was not kept, of distributions p and q [V]."""
        if self._sampling.greedy:
            return int(p.argmax())
        rest = residual(p, q).cumsum(-1)
        threshold = self._uniform(position, REDRAW) * rest[-1]
        return int(torch.searchsorted(rest, threshold.to(rest.device), right=True))

    def logprob(self, token: int, logits: Tensor) -> float:
        """Return the log-probability of a token in logits [V]."""
        return float(torch.log_softmax(logits.double() / self._sampling.temperature, -1)[token])

    def _uniform(self, position: int, stream: int) -> Tensor:
        key = self._key if not stream else mix(self._key ^ -stream)
        return uniforms_of(key, position)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RowPair:
    """Two models at one row, both of which have read nothing yet.

    Attributes:
        target: whose distribution the response is drawn from.
        drafter: of the same vocabulary.
        rule: how far to draft.
        ends: tokens that end a response.
        drawing: of the row.
        view: what the rule sees.
    """

    target: RowReader
    drafter: RowReader
    rule: DraftRule
    ends: Collection[int]
    drawing: RowDrawing
    view: DraftView

    @torch.no_grad()
    def write(self, request: Request) -> Drafted:
        """Write the response to a request."""
        done, row = Drafted(), list(request.token_ids)
        while True:
            begin, room = len(row), request.max_new_tokens - len(done.token_ids)
            position = request.position + len(done.token_ids)
            drafts, guesses = self._draft(row, room - 1, position)
            logits = self.target.read([*row, *drafts])[-len(drafts) - 1 :]
            new = _verified(drafts, guesses, logits, self.drawing, position)
            new = self._cut(new[:room])
            self._note(done, new, drafts, logits)
            if new[-1] in self.ends or len(done.token_ids) == request.max_new_tokens:
                return done
            row += new
            self.view.end_cycle(len(new), logit_features(logits[len(new) - 1]))
            for reader in (self.target, self.drafter):
                reader.keep(begin + len(new) - 1)

    def _draft(self, row: list[int], most: int, position: int) -> tuple[list[int], list[Tensor]]:
        """Return drafted tokens and the distributions [V] they were drawn from."""
        drafts: list[int] = []
        guesses: list[Tensor] = []
        while len(drafts) < min(most, self.view.longest) and self.rule(self.view):
            logits = self.drafter.read([*row, *drafts])[-1]
            token, _ = self.drawing.token(logits, position + len(drafts), DRAFT)
            drafts.append(token)
            guesses.append(self.drawing.probabilities(logits))
            self.view.drafted.append(logit_features(logits))
            if token in self.ends:
                break
        return drafts, guesses

    def _cut(self, tokens: list[int]) -> list[int]:
        """Return the tokens up to the first that ends a response."""
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: end + 1]

    def _note(self, done: Drafted, new: list[int], drafts: list[int], logits: Tensor) -> None:
        done.token_ids += new
        done.logprobs += [
            self.drawing.logprob(token, at) for token, at in zip(new, logits, strict=False)
        ]
        done.cycles, done.drafts = done.cycles + 1, done.drafts + len(drafts)
        same = (i for i, (a, b) in enumerate(zip(new, drafts, strict=False)) if a != b)
        done.kept += next(same, min(len(new), len(drafts)))


def _verified(
    drafts: Sequence[int],
    guesses: Sequence[Tensor],
    logits: Tensor,
    drawing: RowDrawing,
    position: int,
) -> list[int]:
    """Return the drafts that are kept and one token more; logits [k + 1, V] are the target's."""
    due = drawing.probabilities(logits)
    for number, (token, q) in enumerate(zip(drafts, guesses, strict=True)):
        if not drawing.keeps(token, due[number], q, position + number):
            new = drawing.redrawn(due[number], q, position + number)
            return [*drafts[:number], new]
    return [*drafts, drawing.token(logits[-1], position + len(drafts))[0]]


def controller_rule(act: Callable[[np.ndarray], int], form: str) -> DraftRule:
    """Return the rule of a policy of `llmgym/Speculative-v0`.

    Args:
        act: returns the action of an observation.
        form: that of the environment: "cycle" or "token".
    """
    if form == "token":
        return lambda view: bool(act(view.observation()))
    lengths: dict[str, int] = {}

    def rule(view: DraftView) -> bool:
        if view.depth == 0:
            lengths["now"] = act(view.observation())
        return view.depth < lengths["now"]

    return rule
