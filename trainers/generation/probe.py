"""Is every row of a batch what the model computes of that row alone? Tried before weights load.

What is tried, on a miniature: the scoring pass, on rows padded on both sides, and generation of
rows of several lengths, of which some end early and others grow beyond windows. The right value is
transformers' plain forward of one row, without padding and without a cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from llmgym.rewards.context import longest_sequence
from trainers.batch import TextInputs
from trainers.errors import ConfigError
from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.transformers import TransformersGenerator
from trainers.models.causal_lm import PROBE_TOLERANCE, CausalPolicy
from trainers.models.loading import load_config
from trainers.models.miniature import ATTENTION_WINDOW, MINIATURE_ERRORS, miniature

LENGTHS = (
    (3, 2 * ATTENTION_WINDOW),
    (3, 2),
    (ATTENTION_WINDOW - 1, ATTENTION_WINDOW),
    (ATTENTION_WINDOW + 3, 3),
)
"""Tokens of prompts and of responses: two prompts of one length, two rows that end early, two that
grow beyond a window, and one that begins beyond it."""

NO_CACHE = (
    "every token reads its whole row again, which is slow: this architecture keeps no cache that "
    "rows can share and leave"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as a batch computed it.

    Attributes:
        logprobs: of the response, natural.
    """

    prompt: Sequence[int]
    response: Sequence[int]
    logprobs: Sequence[float]


def check_rows(source: str | None) -> bool | None:
    """Tell whether a model generates with a cache, by its configuration; it loads no weights.

    Args:
        source: a folder or a hub id; None: a fresh Llama.

    Returns:
        False where every token must read its whole row again; None where no miniature can be
        built, and `keeps_cache` has to try the model itself.

    Raises:
        ConfigError: they are exact in no way known here, or there is no such model.
    """
    if source is None:
        return True
    file = Path(source) / "config.json"
    return _checked(source, file.read_bytes() if file.is_file() else b"")


@cache
def _checked(source: str, content: bytes) -> bool | None:
    """Try once for each content of a folder's config.json."""
    del content
    return check_described(load_config(source), source)


def check_described(config: PretrainedConfig, source: str) -> bool | None:
    """Tell whether a model generates with a cache, as `check_rows`; `source` names it."""
    try:
        model = miniature(config)
        _alone(model, range(3, 8))
    except MINIATURE_ERRORS:  # sizes that do not fit one another, which says nothing of the model
        return None
    return keeps_cache(model, source)


@torch.no_grad()
def keeps_cache(model: PreTrainedModel, source: str) -> bool:
    """Tell whether a model generates with a cache; each row must be that of the row alone.

    Args:
        model: of any size; a few dozen tokens are computed.
        source: what it is called in a message.

    Raises:
        ConfigError: they are exact in no way known here.
    """
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    wrong = _fault(model, lambda: _scored(policy))
    if wrong:
        raise ConfigError(_refusal(model, source, f"scored in a padded batch, {wrong}"))
    wrong = _fault(model, lambda: _generated(policy, cached=True))
    if not wrong:
        return True
    if _fault(model, lambda: _generated(policy, cached=False)):
        raise ConfigError(_refusal(model, source, f"generated in a batch, {wrong}"))
    return False


def _refusal(model: PreTrainedModel, source: str, wrong: str) -> str:
    return (
        f"{source} ({type(model).__name__}) is not supported: {wrong}. Choose a model of a family "
        "that docs/results/families.md lists as exact."
    )


def _fault(model: PreTrainedModel, attempt: Callable[[], Sequence[_Row]]) -> str:
    """Return what is wrong with rows that a batch computed, or "" where nothing is."""
    try:
        rows = attempt()
    except MINIATURE_ERRORS as error:
        first = str(error).strip().partition("\n")[0]
        return f"transformers raises {type(error).__name__}: {first}"
    off = [
        (
            torch.tensor(row.logprobs)
            - _alone(model, [*row.prompt, *row.response])[len(row.prompt) :]
        )
        for row in rows
    ]
    worst = float(torch.cat(off).abs().max())
    if worst <= PROBE_TOLERANCE:
        return ""
    return f"log-probabilities differ by {worst:.2g} from those of a row alone"


def _alone(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Return [L] log-probabilities of a row by transformers' plain forward; the first is 0."""
    ids = torch.tensor([list(tokens)], device=model.device)
    logprobs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    chosen = logprobs[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1).cpu()
    return torch.nn.functional.pad(chosen, (1, 0))


def _lengths(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Return `LENGTHS`, cut where the model takes less."""
    longest = longest_sequence(model.config)
    return [(p, min(r, longest - p)) for p, r in LENGTHS if p < longest]


def _tokens(model: PreTrainedModel, count: int, salt: int) -> list[int]:
    """Return tokens that no special meaning is likely for."""
    size = model.config.get_text_config().vocab_size
    return [8 + (5 * i + 3 * salt + i * i) % max(size - 16, 1) for i in range(count)]


def _scored(policy: CausalPolicy) -> list[_Row]:
    lengths = _lengths(policy.model)
    width, room = (max(sizes) for sizes in zip(*lengths, strict=True))
    tokens = torch.zeros(len(lengths), width + room, dtype=torch.long, device=policy.model.device)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    pairs = []
    for row, (prompt, response) in enumerate(lengths):
        ids = _tokens(policy.model, prompt + response, row)
        place = slice(width - prompt, width + response)
        tokens[row, place] = torch.tensor(ids, device=tokens.device)
        mask[row, place] = True
        pairs.append((ids[:prompt], ids[prompt:]))
    inputs = TextInputs(tokens=tokens, attention_mask=mask, num_prompt=width)
    logprobs = policy(inputs, mask[:, width:]).logprobs.tolist()
    return [_Row(p, r, row[: len(r)]) for (p, r), row in zip(pairs, logprobs, strict=True)]


def _generated(policy: CausalPolicy, *, cached: bool) -> list[_Row]:
    generator = TransformersGenerator(
        GeneratorParts(
            policy=policy, eos_token_ids=(), pad_token_id=0, batch_size=len(LENGTHS), cached=cached
        )
    )
    requests = [
        Request(token_ids=_tokens(policy.model, prompt, row), index=row, max_new_tokens=response)
        for row, (prompt, response) in enumerate(_lengths(policy.model))
    ]
    responses = generator.generate(requests, Sampling())
    return [
        _Row(request.token_ids, got.token_ids, got.logprobs)
        for request, got in zip(requests, responses, strict=True)
    ]
