"""What a reward model reads: a dialogue and the response to it, in the ids of its own tokenizer.

The one place that decides it, for learning a reward model and for asking it:

| there is                       | it reads                                                  |
| ------------------------------ | --------------------------------------------------------- |
| no dialogue                    | the response, encoded as the tokenizer does by itself     |
| a dialogue and a chat template | both in the template, the response as the assistant's     |
| a dialogue, no chat template   | all texts, a space between, encoded in the same plain way |

A model that learned from responses alone is exported without a chat template, so that its
tokenizer says by itself which row of the table holds.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import Any, Protocol

from jinja2 import TemplateError

from llmgym import chat_templates
from llmgym.chat_templates import ControlTokens, bounded, control_tokens, dated, with_known_roles
from llmgym.content import content_of


class Tokenizer(chat_templates.Tokenizer, Protocol):
    """What is needed of a transformers tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:  # noqa: ANN401
        """Return the ids of a text as `input_ids`."""
        ...

    def apply_chat_template(
        self,
        conversation: Any,  # noqa: ANN401
        *,
        chat_template: str | None,
        tokenize: bool,
    ) -> Any:  # noqa: ANN401
        """Return a dialogue as text."""
        ...


def judged_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    response: str,
    *,
    control: ControlTokens | None = None,
    day: date | None = None,
) -> list[int]:
    """Return the ids that a reward model scores.

    A control token that a message or the response spells is broken by a space: what a policy
    writes can end no turn and open none.

    Args:
        tokenizer: the reward model's own.
        messages: the dialogue before the response: role and content of each; may be empty.
        response: what is judged.
        control: the tokenizer's, where many texts are read; None: found here.
        day: what a template prints that prints the day; None: today.

    Raises:
        TaskSourceError: a content is no text; see `llmgym/content.py`.
    """
    tokens = control or control_tokens(tokenizer)
    contents = [content_of(message, f"message {i}") for i, message in enumerate(messages, start=1)]
    dialogue = [
        {**message, "content": _plain(text, tokens.spelled(message["role"]))}
        for message, text in zip(messages, contents, strict=True)
    ]
    answer = _plain(response, tokens.spelled("assistant"))
    if dialogue and tokenizer.chat_template:
        dialogue.append({"role": "assistant", "content": answer})
        template = dated(tokenizer, day)
        dialogue = with_known_roles(dialogue, tokenizer.chat_template)
        text = tokenizer.apply_chat_template(dialogue, chat_template=template, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    text = joined([*(message["content"] for message in dialogue), answer])
    return list(tokenizer(text, add_special_tokens=True).input_ids)


def check_ends(tokenizer: Tokenizer) -> None:
    """Render a short dialogue, to find a chat template that does not end.

    Raises:
        EndlessTemplateError: it took too long.
    """
    with suppress(TemplateError), bounded():  # one that wants other roles says so when it is used
        judged_ids(tokenizer, [{"role": "user", "content": "a"}], "b")


def joined(texts: Sequence[str]) -> str:
    """Return texts one after the other, a space between two that bring none."""
    whole = ""
    for text in texts:
        is_parted = not whole or not text or whole[-1].isspace() or text[0].isspace()
        whole += text if is_parted else f" {text}"
    return whole


def _plain(text: str, spelled: re.Pattern[str]) -> str:
    return spelled.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)
