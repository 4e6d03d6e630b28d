"""Messages to token ids and back: a tokenizer with its chat template, and how to train one.

What a message says is always text: where it spells a control token (`<|end|>`), it is encoded
letter by letter. Ids that were sampled are never made again from text. Whatever else is encoded has
the ids that the whole rendered dialogue has there.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any, final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from llmgym.chat_templates import dated
from trainers.errors import ConfigError
from trainers.functional.logprobs import Absent
from trainers.models.corpus import with_short_words
from trainers.models.encoding import TextEncoder
from trainers.models.rendering import ASKED, Messages, TemplateRenderer

PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (PAD, END, "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
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
    backend.train_from_iterator(with_short_words(texts, backend.pre_tokenizer), trainer)
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


@final
class ChatFormat:
    """A fast tokenizer with its chat template.

    Args:
        tokenizer: with a chat template.
        eos_token_ids: every id that ends a response; not empty.
        day: what a template prints that prints the day; None: today.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        eos_token_ids: Sequence[int],
        day: date | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._eos_token_ids = tuple(eos_token_ids)
        self._encoder = TextEncoder(tokenizer)
        self._dated = dated(tokenizer, day)
        self.template = TemplateRenderer(tokenizer, self._dated)
        """What renders dialogues to text."""

    @cached_property
    def turn_end_id(self) -> int | None:
        """The token that the template puts after a response; None where it puts none.

        It is the first control token before the next message that also closes a dialogue, or that
        is an end token.
        """
        answer = {"role": "assistant", "content": "b"}
        closing = self._tokens_behind(ASKED, answer, [])
        between = self._tokens_behind(ASKED, answer, ASKED)
        control = self._encoder.control_ids
        first = next((token for token in between if token in control), None)
        if first is not None and (first in closing or first in self._eos_token_ids):
            return first
        known = [token for token in closing if token in self._eos_token_ids]
        return next((token for token in (*known, *closing) if known or token in control), None)

    @property
    def end_token_id(self) -> int:
        """The end token that the template puts after a response; the first one if it puts none."""
        end = self.turn_end_id
        return end if end in self._eos_token_ids else self._eos_token_ids[0]

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
        day = () if self._dated is None else (self._dated,)
        text = "\n".join(map(str, (*parts, self._eos_token_ids, *day)))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def num_unknown(self, ids: Iterable[int]) -> int:
        """Return how many of `ids` the tokenizer does not hold; they are no text."""
        return sum(token not in self._known for token in ids)

    def unknown_ids(self, vocab_size: int) -> Absent:
        """Return the ranges of ids below `vocab_size` that the tokenizer does not hold."""
        known = sorted(token for token in self._known if token < vocab_size)
        borders = zip([-1, *known], [*known, vocab_size], strict=True)
        return tuple((low + 1, high) for low, high in borders if high > low + 1)

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_vocab().values())

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Return the ids of a dialogue, up to where the assistant answers.

        Of no messages at all, they are what the template puts before an answer, and nothing else:
        transformers renders no empty dialogue. A dialogue that ends with the assistant is an answer
        that has begun, and the response goes on with it.

        Raises:
            ConfigError: the template refuses the messages.
        """
        before, prompt = self._prompt(self._guarded(messages))
        return self._encoder.ids_after(before, prompt) if before else self._encoder.ids(prompt)

    def response_ids(self, text: str, messages: Messages = ()) -> list[int]:
        """Return the ids of a demonstrated response: what the template shows of it, and its end.

        A template that leaves a part of it out (a thought) is not asked: it is learned as written.

        Args:
            text: the response; it goes on with an answer that has begun.
            messages: the dialogue before it; without one, no space around the text is taken off.

        Raises:
            ConfigError: the template refuses the messages.
        """
        guarded = self._guarded(messages)
        before = "".join(self._prompt(guarded))
        is_begun = bool(guarded) and guarded[-1]["role"] == "assistant"
        dialogue = (guarded[:-1] if is_begun else guarded) or ASKED
        begun = guarded[-1]["content"] if is_begun else ""
        written = self._encoder.guarded({"role": "assistant", "content": text})["content"]
        answer = {"role": "assistant", "content": f"{begun}{written}"}
        shown = _rest(self.template.text([*dialogue, answer], generate=False), before)
        if shown is not None and (written.strip() if messages else written) in shown:
            begun = self._begun(dialogue, answer)
            ids = [] if begun is None else self._encoder.ids_after(before, shown)
            ends = (place for place, token in enumerate(ids) if token in self._eos_token_ids)
            if (end := next(ends, None)) is not None:
                return ids[: end + 1]
            written = _rest(begun or "", before) or written  # closed by nothing
        return [*self._encoder.ids_after(before, written), self.end_token_id]

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
        *dialogue, answer = self._guarded(old_messages)
        new = self._guarded(new_messages)
        refusal: ConfigError | None = None
        try:
            suffix = self._appended(dialogue, answer, new)
        except ConfigError as error:  # perhaps of two answers in a row, between which a tool was
            suffix, refusal = None, error
        if suffix is None:
            suffix = self._behind(ASKED, {"role": "assistant", "content": "b"}, new)
        if suffix is None and refusal is not None:
            raise refusal
        if suffix is None:
            return None
        end = str(self.tokenizer.convert_ids_to_tokens(self.end_token_id))
        before, is_marked, behind = suffix.partition(end)
        return self._encoder.ids_after(end, behind if is_marked else before)

    def _prompt(self, messages: Messages) -> tuple[str, str]:
        """Return a prompt as text, and before it the text that is only there to render it."""
        is_begun = bool(messages) and messages[-1]["role"] == "assistant"
        dialogue = (messages[:-1] if is_begun else messages) or ASKED
        begun = self._begun(dialogue, messages[-1]) if is_begun else None
        written = str(messages[-1]["content"]) if is_begun else ""
        prompt = self.template.text(dialogue, generate=True) + written if begun is None else begun
        if dialogue is not ASKED:
            return "", prompt
        before = self.template.text(ASKED, generate=False)
        rest = _rest(prompt, before)
        return (prompt, "") if rest is None else (before, rest)

    def _begun(self, dialogue: Messages, answer: Mapping[str, Any]) -> str | None:
        """Return the text of a dialogue up to the end of an answer's own text.

        None where the template shows another answer or prompt, or a role's name between them.
        """
        opened = self.template.text(dialogue, generate=True)
        marked = self.template.text([*dialogue, self._marked(answer)], generate=False)
        begun, is_marked, _ = marked.partition(self._encoder.mark)
        rest, text = _rest(begun, opened), str(answer["content"])
        if not is_marked or rest is None:
            return None
        is_named = bool(rest.removesuffix(text.lstrip()).strip()) and not self._opens_answers
        return None if is_named else begun

    @cached_property
    def _opens_answers(self) -> bool:
        """Whether the template heeds `add_generation_prompt`."""
        return self.template.text(ASKED, generate=True) != self.template.text(ASKED, generate=False)

    def _behind(self, dialogue: Messages, answer: Mapping[str, Any], new: Messages) -> str | None:
        """Return what the template puts behind an answer's text; None where it drops that."""
        try:
            marked = self.template.text([*dialogue, self._marked(answer), *new], generate=bool(new))
        except ConfigError:
            return None
        _, is_marked, behind = marked.rpartition(self._encoder.mark)
        return behind if is_marked else None

    def _appended(self, dialogue: Messages, answer: Mapping[str, Any], new: Messages) -> str | None:
        """Return what follows an answer where new messages change nothing before its end."""
        answer = {**answer, "content": str(answer["content"]).rstrip()}
        before, _, _ = self.template.text(
            [*dialogue, self._marked(answer)], generate=False
        ).partition(self._encoder.mark)
        after = self.template.text([*dialogue, self._marked(answer), *new], generate=True)
        return _rest(after, f"{before}{self._encoder.mark}")

    def _marked(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer with a mark behind its text, which shows where the template has it."""
        return {**answer, "content": f"{answer['content']}{self._encoder.mark}"}

    def _tokens_behind(
        self, dialogue: Messages, answer: Mapping[str, Any], new: Messages
    ) -> list[int]:
        """Return the ids of what follows an answer's text; none where the template refuses."""
        return self._encoder.ids(self._behind(dialogue, answer, new) or "")

    def way_on(self, opening: Messages) -> str:
        """Return how a dialogue of several turns goes on, tried on one with thinking in it.

        Raises:
            ConfigError: the template refuses the roles of the messages.
        """
        thought = {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}
        calls = any(message.get("tools") for message in opening)
        role = "tool" if calls else "user"
        new = [{"role": role, "content": "c", **({"tool_call_id": "call00000"} if calls else {})}]
        if self.suffix_ids([*opening, thought], new) is None:
            return "each turn is a row of its own: the chat template rewrites earlier turns"
        try:
            is_kept = self._appended(self._guarded(opening), thought, new) is not None
        except ConfigError:
            is_kept = False
        kept = "" if is_kept else ", also what the chat template would rewrite"
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

    def _guarded(self, messages: Messages) -> list[dict[str, Any]]:
        return [self._encoder.guarded(message) for message in messages]
