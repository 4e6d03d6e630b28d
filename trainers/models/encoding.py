"""Rendered text to token ids: what a template writes controls, what messages spell is letters.

A message's control tokens are replaced by stand-ins before the template is rendered. Then the whole
text is encoded at once, in one of two ways that give the same ids where nothing was spelled:

    no stand-ins    by the tokenizer as it is
    stand-ins       by a copy whose control tokens have secret names: those that the template wrote
                    are given these names, those that messages spelled are text like any other

Text is cut by the places of its tokens, never encoded in pieces: SentencePiece-like tokenizers put
a space before the first one.
"""

import json
import re
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmgym.chat_templates import control_tokens

CONTEXTS = ("\n", ".", "a")
"""What text is encoded behind where its first token would also take characters before it."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Ids, and the first character of each and the one behind its last."""

    ids: list[int]
    places: list[tuple[int, int]]

    def behind(self, cut: int, before: Sequence[int]) -> list[int] | None:
        """Return the ids from character `cut` on; None where the first ones are not `before`."""
        count = len(before)
        is_clean = self.ids[:count] == before and all(end <= cut for _, end in self.places[:count])
        rest = self.places[count:]
        return self.ids[count:] if is_clean and all(start >= cut for start, _ in rest) else None


@final
class TextEncoder:
    """Encodes rendered dialogues.

    Args:
        tokenizer: a fast one; it is not changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        # Digits that nobody can guess: a text that holds a stand-in or a name was written by us.
        secret = secrets.randbelow(10**18)
        self.mark = f"\ue004{secret}\ue005"
        """Text that no message holds."""
        self._stand_in = f"\ue000{secret}.{{}}\ue001"
        self._stand_ins = re.compile(f"\ue000{secret}\\.([0-9]+)\ue001")
        self._names = {
            token: f"\ue002{secret}.{number}\ue003"
            for number, token in enumerate(self._control.every)
        }

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids of the tokens that messages cannot write."""
        known = self._tokenizer.get_vocab()
        return frozenset(known[token] for token in self._control.every if token in known)

    def guarded(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message with stand-ins for the control tokens that its texts spell."""
        spelled = self._control.spelled(message.get("role"))
        return {key: self._replaced(value, spelled) for key, value in message.items()}

    def ids(self, text: str) -> list[int]:
        """Return the ids of rendered text."""
        has_letters = self._stand_ins.search(text) is not None
        return self._encoded(self._named(text) if has_letters else text, has_letters).ids

    def ids_after(self, context: str, text: str) -> list[int]:
        """Return the ids of rendered text that follows `context`.

        Where a token would reach over the border, as one of two line breaks does, the text begins
        with a token of its own: what was there before it is not encoded anew.
        """
        if not text:
            return []
        last = deque(self._control.spelled(None).finditer(context), maxlen=1)
        context = context[last[0].start() :] if last else context
        has_letters = self._stand_ins.search(context + text) is not None
        for before in (context, *CONTEXTS):
            start, rest = (self._named(x) if has_letters else x for x in (before, text))
            known = self._encoded(start, has_letters).ids
            ids = self._encoded(start + rest, has_letters).behind(len(start), known)
            if ids is not None:
                return ids
        return self.ids(text)

    def _replaced(self, value: Any, spelled: re.Pattern[str]) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(value, str):
            order = self._control.every
            return spelled.sub(lambda match: self._stand_in.format(order.index(match[0])), value)
        if isinstance(value, Mapping):
            return {key: self._replaced(item, spelled) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._replaced(item, spelled) for item in value]
        return value

    def _named(self, text: str) -> str:
        """Return text with secret names for the template's control tokens, letters for others."""
        written = self._control.spelled(None)
        return "".join(
            self._control.every[int(piece)]
            if place % 2
            else written.sub(lambda match: self._names[match[0]], piece)
            for place, piece in enumerate(self._stand_ins.split(text))
        )

    def _encoded(self, text: str, has_letters: bool) -> _Encoded:
        if has_letters:
            encoding = self._by_letters.encode(text, add_special_tokens=False)
            return _Encoded(encoding.ids, encoding.offsets)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return _Encoded(encoded.input_ids, encoded.offset_mapping)

    @cached_property
    def _by_letters(self) -> Tokenizer:
        """The tokenizer with secret names for its control tokens, which keep their ids."""
        parts = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in parts["added_tokens"]:
            token["content"] = self._renamed(token["content"])
        parts |= {"post_processor": None, "truncation": None, "padding": None}
        model, vocab = parts["model"], parts["model"]["vocab"]
        model["vocab"] = (
            {self._renamed(token): number for token, number in vocab.items()}
            if isinstance(vocab, dict)
            else [[self._renamed(token), score] for token, score in vocab]
        )
        if model.get("unk_token") is not None:
            model["unk_token"] = self._renamed(model["unk_token"])
        if "merges" in model:  # none may lead to a control token, or from one
            merges = [pair for pair in model["merges"] if "".join(pair) not in self._names]
            model["merges"] = [pair for pair in merges if not self._names.keys() & set(pair)]
        made = Tokenizer.from_str(json.dumps(parts))
        known = self._tokenizer.get_vocab()
        moved = [
            name for name in self._names if made.token_to_id(self._renamed(name)) != known.get(name)
        ]
        assert not moved, f"{moved[0]} has another id in the copy"
        return made

    def _renamed(self, token: str) -> str:
        return self._names.get(token, token)
