"""A dialogue as its chat template renders it: known roles, the tools that may be called, one day.

The schemas of tools are those that a message of the dialogue has (`llmgym.messages.Message.tools`).
They are given to the template as `tools`, which templates know them by. A template that shows no
message of the role `tool` gets one of the user instead.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from llmgym.chat_templates import with_known_roles
from trainers.errors import ConfigError

Messages = Sequence[Mapping[str, Any]]

ASKED = [{"role": "user", "content": "a"}]
"""What stands before an answer that has no dialogue before it."""
REFUSALS = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)
"""What a template raises on messages that it was not written for."""
TRIAL_TEXT = "\ue006shown\ue007"
"""Text that no template writes by itself."""
TRIAL_TOOL = {
    "type": "function",
    "function": {
        "name": TRIAL_TEXT,
        "description": "",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


@final
class TemplateRenderer:
    """Renders dialogues with a tokenizer's chat template.

    Args:
        tokenizer: with a chat template.
        dated: source of a template to use instead of its own; None: its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, dated: str | None) -> None:
        self._tokenizer, self._dated = tokenizer, dated

    def text(self, messages: Messages, *, generate: bool) -> str:
        """Return a dialogue as text; with `generate`, up to where the assistant answers.

        Raises:
            ConfigError: the template refuses the messages.
        """
        tools = next((message["tools"] for message in messages if message.get("tools")), None)
        plain = [{k: v for k, v in message.items() if k != "tools"} for message in messages]
        has_results = any(message["role"] == "tool" for message in plain)
        if has_results and self.role_of_results == "user":
            plain = _by_users(plain)
        return self._rendered(plain, tools, generate=generate)

    def tools_note(self, opening: Messages) -> str | None:
        """Return how the policy learns of its tools and their results; None without tools."""
        tools = next((message["tools"] for message in opening if message.get("tools")), None)
        if tools is None:
            return None
        names = ", ".join(tool["function"]["name"] for tool in tools)
        note = f"{names}: their schemas are in the prompt, by the chat template"
        if not self.shows_tools:
            note = (
                f"{names}: the chat template shows no schemas, so the prompt tells of no tool; to "
                "have it told: --envs.0.kwargs.describe system"
            )
        by_user = "; results are messages of the user: the template shows none of the role tool"
        return note + (by_user if self.role_of_results == "user" else "")

    @cached_property
    def role_of_results(self) -> str:
        """`tool`, or `user` where the template shows a tool's result as a user's message alone."""
        answered = [*ASKED, {"role": "assistant", "content": "b"}]
        result = {"role": "tool", "content": TRIAL_TEXT, "name": "f", "tool_call_id": "call00000"}
        for role, message in (("tool", result), ("user", {"role": "user", "content": TRIAL_TEXT})):
            try:
                if TRIAL_TEXT in self._rendered([*answered, message], None, generate=True):
                    return role
            except ConfigError:
                continue
        return "tool"

    @cached_property
    def shows_tools(self) -> bool:
        """True where the template tells the policy which tools there are."""
        try:
            return TRIAL_TEXT in self._rendered(ASKED, [TRIAL_TOOL], generate=True)
        except ConfigError:
            return False

    def _rendered(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None, *, generate: bool
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    with_known_roles(messages, self._tokenizer.chat_template),
                    tools=None if tools is None else [dict(tool) for tool in tools],
                    chat_template=self._dated,
                    add_generation_prompt=generate,
                    tokenize=False,
                )
            )
        except REFUSALS as error:
            raise ConfigError(
                "the chat template refuses the messages of the environment: "
                f"{str(error) or type(error).__name__}. Give one that knows their roles: "
                "--tokenizer.chat-template FILE."
            ) from error


def _by_users(messages: Messages) -> list[dict[str, Any]]:
    """Return messages with those of tools as a user's; neighbours become one."""
    made: list[dict[str, Any]] = []
    joins = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result and joins:
            made[-1]["content"] += f"\n{message['content']}"
        elif is_result:
            made.append({"role": "user", "content": message["content"]})
        else:
            made.append(dict(message))
        joins = is_result
    return made
