"""How many tokens a model takes, read off its configuration."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

NO_LIMIT = sys.maxsize


def longest_sequence(config: Any) -> int:  # noqa: ANN401 - a PretrainedConfig of transformers
    """Return the tokens a model takes; `sys.maxsize` where its positions have no end.

    The end is where positions end, or where a row's RoPE begins to depend on the rows beside it.
    """
    return min(_positions(config), rope_limit(config) or NO_LIMIT)


def rope_limit(config: Any) -> int | None:  # noqa: ANN401
    """Return the longest row whose RoPE does not depend on its own length, or None for any.

    Beyond it "longrope" (Phi-3, Phi-4) and "dynamic" (NTK) turn every token by the length of the
    longest row of a batch: a row's log-probabilities would depend on the rows beside it, and those
    of its first tokens on how long it becomes, so that none could be sampled with them.
    """
    limits = [_limit(config, parameters) for parameters in _rope_parameters(config)]
    return min((limit for limit in limits if limit is not None), default=None)


def _positions(config: Any) -> int:  # noqa: ANN401
    text = config.get_text_config()
    for name in ("max_position_embeddings", "max_seq_len"):  # the first finds `n_positions` too
        number = getattr(text, name, None)
        if isinstance(number, int) and number > 0:
            return number
    return NO_LIMIT


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401
    """Yield the parameters of RoPE: one set, or one for each type of layer."""
    held = getattr(config.get_text_config(), "rope_parameters", None) or {}
    for parameters in [held, *held.values()]:
        if isinstance(parameters, Mapping) and "rope_type" in parameters:
            yield parameters


def _limit(config: Any, rope: Mapping[str, Any]) -> int | None:  # noqa: ANN401
    kind = str(rope["rope_type"])
    if kind == "longrope":
        return int(rope.get("original_max_position_embeddings") or _positions(config))
    return _positions(config) if "dynamic" in kind else None
