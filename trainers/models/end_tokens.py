"""Which tokens end a response: those that model and tokenizer name, and the template's own."""

from collections.abc import Sequence
from datetime import date

from transformers import PreTrainedTokenizerFast

from llmgym.chat_templates import EndlessTemplateError, bounded
from trainers.errors import ConfigError
from trainers.models.chat import ChatFormat


def chat_that_ends(
    tokenizer: PreTrainedTokenizerFast,
    *,
    named: Sequence[int],
    ids: Sequence[int] | None,
    name: str,
    day: date | None,
) -> ChatFormat:
    """Return the chat format with all its end tokens, that of its template among them.

    Args:
        tokenizer: with a chat template, which is used here for the first time and so bounded.
        named: ids that model and tokenizer name.
        ids: `generation.eos_token_ids`, instead of those.
        name: of the model, for messages.
        day: as of `ChatFormat`.

    Raises:
        ConfigError: the template does not end, there is no end token, or the ids that are given
            are none of the tokenizer's or lack the one by which the template ends a turn.
    """
    ends = list(named if ids is None else ids)
    largest = max(tokenizer.get_vocab().values())
    if ids is not None and max(ids, default=0) > largest:
        raise ConfigError(
            f"generation.eos_token_ids {ids} must be ids of the tokenizer, which end at {largest}."
        )
    try:
        with bounded():
            end = ChatFormat(tokenizer, eos_token_ids=ends, day=day).turn_end_id
    except EndlessTemplateError as error:
        raise ConfigError(
            f"{error}, that of {name}. Give one that ends: --tokenizer.chat-template FILE."
        ) from error
    if end is not None and end not in ends:
        if ids is not None:
            token = tokenizer.convert_ids_to_tokens(end)
            raise ConfigError(
                f"generation.eos_token_ids {ids} leaves out {end}, {token}, by which the chat "
                f"template of {name} ends a turn. Add it: --generation.eos-token-ids "
                f"{','.join(map(str, [*ids, end]))}"
            )
        ends.append(end)
    if not ends:
        raise ConfigError(
            f"{name} names no end token (and so no padding to fall back on): a response would "
            "never end. Set --generation.eos-token-ids."
        )
    return ChatFormat(tokenizer, eos_token_ids=ends, day=day)
