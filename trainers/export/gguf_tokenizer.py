"""What a GGUF file says of a tokenizer: byte-level BPE, as llama.cpp splits and merges text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from transformers import PreTrainedTokenizerFast

from trainers.errors import ConfigError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens."""
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}": "qwen2",
    rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}": "llama-bpe",
}
"""Names that llama.cpp has for expressions that split text."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTokens:
    """A tokenizer as a GGUF file holds it.

    Attributes:
        pre: name of what splits text into words.
        tokens: of every id.
        kinds: NORMAL, CONTROL, USER_DEFINED or UNUSED, of every id.
        merges: pairs, in their order.
        ends: ids that end a response, at most three.
        bos: id that begins a text, or None.
        adds_bos: whether it is put before a text.
        pad: id of padding, or None.
        template: chat template, or None.
    """

    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    ends: tuple[int, ...]
    bos: int | None
    adds_bos: bool
    pad: int | None
    template: str | None


def pre_tokenizer_name(described: dict[str, Any]) -> str | None:
    """Return the name that llama.cpp has for a pre-tokenizer of tokenizer.json, if it has one."""
    parts = described.get("pretokenizers", [described])
    kinds = [part.get("type") for part in parts]
    if any(part.get("add_prefix_space") for part in parts):
        return None
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm" if parts[1].get("use_regex", True) else None
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        is_plain = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
        return SPLITS.get(parts[0].get("pattern", {}).get("Regex", "")) if is_plain else None
    return None


def gguf_tokens(
    tokenizer: PreTrainedTokenizerFast, *, size: int, ends: Sequence[int], name: str
) -> GgufTokens:
    """Return what a GGUF file says of a tokenizer.

    Args:
        tokenizer: byte-level BPE.
        size: tokens that the model embeds.
        ends: ids that end a response, the one that the template writes first.
        name: of the model, for messages.

    Raises:
        ConfigError: llama.cpp would split or merge text otherwise, or there are too many ends.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pre_tokenizer_name(described.get("pre_tokenizer") or {})
    model, normalizer = described["model"], described.get("normalizer")
    is_known = model["type"] == "BPE" and not model.get("byte_fallback") and pre is not None
    if not is_known or (normalizer or {}).get("type", "NFC") != "NFC":
        raise ConfigError(
            f"the tokenizer of {name} is not a byte-level BPE that llama.cpp splits text like: "
            "GPT-2's, SmolLM's, Qwen2's and Llama 3's are. Serve it with --engine vllm."
        )
    if len(ends) > 3:
        raise ConfigError(
            f"{name} has {len(ends)} end tokens, and a GGUF file names 3. Leave some out: "
            "generation_config.json lists them."
        )
    vocabulary = tokenizer.get_vocab()
    tokens = [f"[UNUSED{number}]" for number in range(size)]
    kinds = [UNUSED] * size
    for token, number in vocabulary.items():
        tokens[number], kinds[number] = token, NORMAL
    for added in described["added_tokens"]:
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    bos, pad, template = tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.chat_template
    begun = tokenizer("a")["input_ids"]
    return GgufTokens(
        pre=str(pre),
        tokens=tokens,
        kinds=kinds,
        merges=merges,
        ends=tuple(ends),
        bos=bos if isinstance(bos, int) else None,
        adds_bos=bos is not None and begun[0] == bos,
        pad=pad if isinstance(pad, int) else None,
        template=template if isinstance(template, str) else None,
    )


def add_tokenizer(writer: Any, tokens: GgufTokens) -> None:  # noqa: ANN401 - gguf's
    """Write a tokenizer into the header of a file."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.tokens)
    writer.add_token_types(tokens.kinds)
    writer.add_token_merges(tokens.merges)
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, number in zip(adders, tokens.ends, strict=False):
        add(number)
    if tokens.bos is not None:
        writer.add_bos_token_id(tokens.bos)
    writer.add_add_bos_token(tokens.adds_bos)
    if tokens.pad is not None:
        writer.add_pad_token_id(tokens.pad)
    if tokens.template is not None:
        writer.add_chat_template(tokens.template)
