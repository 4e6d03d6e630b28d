"""Messages to token ids and back: a tokenizer with its chat template, and how to train one.

What a message says is always text: where it spells a control token (`<|end|>`), it is encoded
letter by letter. Ids that were sampled are never made again from text.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, final

from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from trainers.errors import ConfigError

PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (PAD, END, "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Stands in for a control token that a message spells, from rendering to encoding. Private-use
# characters: a message that holds them can only stand for spelled-out text, never for control.
STAND_IN = "\ue000{}\ue001"

Messages = Sequence[Mapping[str, Any]]

# Dialogues that new messages are rendered behind, where their own is rendered anew each time.
BASES = (
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": "a"}],
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text round-trips, digits stand alone.

    Args:
        texts: what it learns from; with little of it the vocabulary comes out smaller.
        vocab_size: most tokens, at least the 256 bytes and the 6 control tokens.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


def end_every_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a tokenizer of `train_tokenizer` put its end token after any plain text.

    A classifier that reads its answer at the last token finds the same token there each time.
    """
    ids = [(END, tokenizer.convert_tokens_to_ids(END))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=ids
    )


def _rest(text: str, start: str) -> str | None:
    return text[len(start) :] if text.startswith(start) else None


def _replaced(value: Any, pattern: re.Pattern[str], tokens: Sequence[str]) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, str):
        return pattern.sub(lambda found: STAND_IN.format(tokens.index(found[0])), value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, pattern, tokens) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, pattern, tokens) for item in value]
    return value


@final
class ChatFormat:
    """A fast tokenizer with its chat template.

    Args:
        tokenizer: with a chat template.
        eos_token_ids: every id that ends a response; not empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, eos_token_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self._eos_token_ids = tuple(eos_token_ids)
        self._control = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, self._control)))
        self._stand_ins = re.compile("\ue000([0-9]+)\ue001")

    @cached_property
    def end_token_id(self) -> int:
        """The end token that the template puts after a response; the first one if it puts none."""
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            closed = self._encoded(self._rendered(turn, generate=False))
            opened = self._encoded(self._rendered(turn[:1], generate=True))
        except ConfigError:  # a template that wants other roles says so when it is used
            return self._eos_token_ids[0]
        ends = (token for token in closed[len(opened) :] if token in self._eos_token_ids)
        return next(ends, self._eos_token_ids[0])

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a response."""
        return self._eos_token_ids

    @property
    def pad_token_id(self) -> int:
        """What padding is filled with: the tokenizer's pad token, or else the first end token.

        Masks are made from lengths, never from this id, so it may also be an end token.
        """
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else self._eos_token_ids[0]

    @cached_property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of vocabulary, template and end tokens."""
        parts = (self.tokenizer.backend_tokenizer.to_str(), self.tokenizer.chat_template)
        text = "\n".join(map(str, (*parts, self._eos_token_ids)))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Return the ids of a dialogue, up to where the assistant answers.

        Of no messages at all, they are what the template puts before an answer, and nothing else:
        transformers renders no empty dialogue. A dialogue that ends with the assistant is an answer
        that has begun, and the response goes on with it.

        Raises:
            ConfigError: the template refuses the messages.
        """
        if not messages:
            said = [{"role": "user", "content": "a"}]
            before = self._rendered(said, generate=False)
            after = self._rendered(said, generate=True)
            return self._encoded(after[len(before) :]) if after.startswith(before) else []
        if messages[-1]["role"] == "assistant":
            return [*self.prompt_ids(messages[:-1]), *self._plain(messages[-1]["content"])]
        return self._encoded(self._rendered(self._guarded(messages), generate=True))

    def response_ids(self, text: str) -> list[int]:
        """Return the ids of a demonstrated response, its end token included."""
        return [*self._plain(text), self.end_token_id]

    def suffix_ids(self, old_messages: Messages, new_messages: Messages) -> list[int] | None:
        """Return what follows a sampled response (its end token included) in the next prompt.

        A template that renders earlier turns anew (Qwen3's strips their thinking) shows what it
        makes of the new messages behind a fixed dialogue instead. The policy then goes on seeing
        its earlier turns as it wrote them.

        Args:
            old_messages: the dialogue so far, the assistant's response last.
            new_messages: what the environment said since.

        Returns:
            Ids, or None where the template appends to no dialogue.

        Raises:
            ConfigError: the template refuses the roles of the new messages.
        """
        guarded = self._guarded([*old_messages, *new_messages])
        closed = self._rendered(guarded[: len(old_messages)], generate=False)
        suffix = _rest(self._rendered(guarded, generate=True), closed)
        for base in BASES:
            suffix = self._behind(base, guarded[len(old_messages) :]) if suffix is None else suffix
        if suffix is None:
            return None
        end = str(self.tokenizer.convert_ids_to_tokens(self.end_token_id))
        return self._encoded((closed.rpartition(end)[2] if end in closed else "") + suffix)

    def _behind(self, base: Messages, messages: Messages) -> str | None:
        """Return what the template puts behind `base`; None where it rewrites or refuses it."""
        try:
            before = self._rendered(base, generate=False)
            return _rest(self._rendered([*base, *messages], generate=True), before)
        except ConfigError:
            return None

    def way_on(self, opening: Messages) -> str:
        """Return how a dialogue of several turns goes on, tried on one with thinking in it.

        Raises:
            ConfigError: the template refuses the roles of the messages.
        """
        thought = {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}
        old, new = [*opening, thought], [{"role": "user", "content": "c"}]
        if self.suffix_ids(old, new) is None:
            return "each turn is a row of its own: the chat template rewrites earlier turns"
        before, after = (
            self._rendered(self._guarded(one), generate=len(one) > len(old))
            for one in (old, [*old, *new])
        )
        kept = "" if after.startswith(before) else ", also what the chat template would rewrite"
        return f"new messages are appended to the sampled tokens{kept}"

    def token_of(self, ids: Sequence[int], end: int) -> int:
        """Return the place in `ids` [N] of the token that spells the `end`-th character."""
        text = self.decode(ids)

        def spelled(count: int) -> int:
            # A character of several tokens is there with the last of them, and until then "\ufffd".
            return len(self.decode(ids[:count]).rstrip("\ufffd"))

        place = bisect_left(range(1, len(ids) + 1), min(end, len(text)), key=spelled)
        return min(place, len(ids) - 1)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a response up to its first end token, without control tokens."""
        kept: list[int] = []
        for token in ids:
            if token in self._eos_token_ids:
                break
            kept.append(int(token))
        return str(
            self.tokenizer.decode(
                kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _guarded(self, messages: Messages) -> Messages:
        if not self._control:
            return list(messages)
        return [_replaced(message, self._spelled, self._control) for message in messages]

    def _rendered(self, messages: Messages, *, generate: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    add_generation_prompt=generate,
                    tokenize=False,
                )
            )
        except TemplateError as error:
            raise ConfigError(
                f"the chat template refuses the messages of the environment: {error}. Give one "
                "that knows their roles: --tokenizer.chat-template FILE."
            ) from error

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, piece in enumerate(self._stand_ins.split(text)):
            if place % 2 == 0:
                ids += self.tokenizer(piece, add_special_tokens=False).input_ids
            elif int(piece) < len(self._control):
                ids += self._plain(self._control[int(piece)])
        return ids

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
