"""Reads what a cell or a message says: text, a prompt of messages, a gold answer, by column name.

The one reader: environments, `llmgym data check`, the supervised stages and reward models all call
it, so that what one takes the others take, and what it refuses none of them reads otherwise.

| a cell or a content is       | it is read as                                                   |
| ---------------------------- | --------------------------------------------------------------- |
| text                         | itself                                                          |
| a list of text parts         | their texts, joined: [{"type": "text", "text": "..."}]          |
| null beside `tool_calls`     | empty text                                                      |
| null, a number, an image ... | refused; of these a gold answer may be a number                 |
"""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from numbers import Number, Real
from typing import Any, Literal, get_args

from llmgym.errors import TaskSourceError
from llmgym.messages import Message, Role, ToolCall

LastAssistant = Literal["raise", "split", "prefill"]
"""What a dialogue is that ends with the assistant: an error, a prompt and its answer, or a prompt
whose response has begun."""
Prompt = str | tuple[Message, ...]

SHAPE = '[{"role": "user", "content": "..."}]'
UNSAID = ("reasoning_content", "reasoning", "thinking")
"""Text of a message that no chat template here is given."""
MAX_NAMES = 12
NO_NUMBERS = ("nan", "inf", "-inf")
"""Of type float, and no number: NaN stands for one that is missing."""
GOLD_NAMES = ("ground_truth", "answer", "solution", "gold", "target", "label", "text", "value")
"""What the part of a mapping that is the gold answer is usually called."""


def cell_of(row: Mapping[str, Any], column: str) -> Any:  # noqa: ANN401 - any cell
    """Return a cell by its column: a name, or a dotted one into mappings and lists.

    `reward_model.ground_truth` is that key of the column `reward_model`, `answers.text.0` the first
    of a list. A column that has the dotted name itself comes first.

    Raises:
        KeyError: there is none.
    """
    if column in row:
        return row[column]
    for place in (i for i, letter in enumerate(column) if letter == "."):
        inner, rest = row.get(column[:place]), column[place + 1 :]
        if isinstance(inner, list | tuple):
            inner = {str(i): item for i, item in enumerate(inner)}
        if isinstance(inner, Mapping):
            try:
                return cell_of(inner, rest)
            except KeyError:
                continue
    raise KeyError(column)


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Tell whether a row has a column, dotted or not."""
    try:
        cell_of(row, column)
    except KeyError:
        return False
    return True


def no_column(place: str, column: str, row: Mapping[str, Any]) -> str:
    """Return the sentence that says which columns a row has instead of `column`."""
    last = column.rpartition(".")[2]
    inner = (name for name, cell in row.items() if isinstance(cell, Mapping) and last in cell)
    outer = next(inner, None)
    hint = "" if outer is None else f" Did you mean {outer}.{last}?"
    return f'{place} has no column "{column}"; it has {names_of(row)}.{hint}'


def names_of(row: Mapping[str, Any]) -> str:
    """Return the names of a row's columns, the first ones of many."""
    names = [name if len(name) <= 40 else f"{name[:37]}..." for name in list(row)[:MAX_NAMES]]
    return ", ".join(names) + (f", ... ({len(row)} in all)" if len(row) > MAX_NAMES else "")


def text_of(value: object, where: str, what: str = "a text") -> str:
    """Return what a cell or a content says.

    Args:
        value: text, or a list of text parts.
        where: names it: "p.jsonl, line 3, column "response"".
        what: what it should be, for the message.

    Raises:
        TaskSourceError: it is neither, or holds half a character.
    """
    if isinstance(value, str):
        return whole_text(value, where)
    if isinstance(value, list | tuple) and value:
        if any(isinstance(message, Mapping) and "role" in message for message in value):
            raise TaskSourceError(
                f"{where}: {what} is text, got a list of messages. Write the text of its last "
                "message alone, and the messages before it as the prompt."
            )
        return "".join(_part(part, f"{where}, part {i}") for i, part in enumerate(value, start=1))
    hint = " A number is written as text: in quotes." if _is_number(value) else ""
    raise TaskSourceError(f"{where}: {what} is text, got {_shown(value)}.{hint}")


def whole_text(text: str, where: str) -> str:
    r"""Return a text unless it holds a lone surrogate, such as "\ud83d": half of a character.

    Raises:
        TaskSourceError: it does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = ascii(text[max(0, error.start - 20) : error.start + 1])
        raise TaskSourceError(
            f"{where} holds half of a character (a lone surrogate), at the end of {near}. A text "
            "was cut inside an emoji, for example: write it again from its source, as UTF-8."
        ) from error
    return text


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return whole_text(part, where)
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return whole_text(part["text"], where)
    if isinstance(kind, str) and kind != "text":
        raise TaskSourceError(
            f'{where} is of type "{kind}", and models here read text alone. Leave such rows out, '
            "or say in words what it shows."
        )
    raise TaskSourceError(
        f'{where}: a part of a content is {{"type": "text", "text": "..."}}, got {_shown(part)}.'
    )


def content_of(message: Mapping[str, Any], where: str) -> str:
    """Return the text of a message; empty where it has tool calls instead.

    Raises:
        TaskSourceError: as of `text_of`.
    """
    content = message.get("content")
    if not content and not isinstance(content, str) and message.get("tool_calls"):
        return ""
    return text_of(content, where, "the content of a message")


def prompt_of(
    value: object, where: str, last_assistant: LastAssistant = "prefill"
) -> tuple[Prompt, str | None]:
    """Return the prompt that a cell is, and the answer that was split off its end.

    Args:
        value: text, or a list of messages.
        where: names the cell: 'p.jsonl, line 3, column "prompt"'.
        last_assistant: what messages are that end with the assistant: an error, a prompt and its
            answer, or a prompt whose response has begun.

    Raises:
        TaskSourceError: it is neither, or empty, or a message is none; names `where`.
    """
    if isinstance(value, str) and value.strip():
        prompt: Prompt = whole_text(value, where)
    else:
        items = value if isinstance(value, list | tuple) else ()
        if not items or not all(isinstance(item, Mapping) and "role" in item for item in items):
            raise TaskSourceError(
                f"{where}: a prompt is text that is not empty, or a list of messages such as "
                f"{SHAPE}; got {_shown(value)}"
            )
        prompt = tuple(_message(item, f"{where}, message {i}") for i, item in enumerate(items, 1))
    return _split(prompt, where, last_assistant)


def _message(item: Mapping[str, Any], where: str) -> Message:
    role = item["role"]
    if role not in get_args(Role):
        raise TaskSourceError(
            f"{where}: a role is one of {', '.join(get_args(Role))}; got {_shown(role)}."
        )
    for name in UNSAID:
        if item.get(name):
            raise TaskSourceError(
                f"{where} has {name} beside its content, which no model would read. Write it into "
                "the content as the model shall see it, or leave it out."
            )
    name, call = item.get("name"), item.get("tool_call_id")
    return Message(
        role=role,
        content=content_of(item, where),
        name=None if name is None else text_of(name, f"{where}, name"),
        tool_calls=tuple(_call(call, where) for call in item.get("tool_calls") or ()),
        tool_call_id=None if call is None else text_of(call, f"{where}, tool_call_id"),
    )


def _call(call: object, where: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    name = function.get("name") if isinstance(function, Mapping) else None
    payload = function.get("arguments") if isinstance(function, Mapping) else None
    try:
        arguments = json.loads(payload) if isinstance(payload, str) and payload else payload or {}
    except ValueError:
        arguments = None
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise TaskSourceError(
            f'{where}: a tool call is {{"function": {{"name": "...", "arguments": {{...}}}}}}; got '
            f"{_shown(call)}"
        )
    number = call.get("id") if isinstance(call, Mapping) else None
    return ToolCall(name=name, arguments=arguments, id="" if number is None else str(number))


def _split(prompt: Prompt, where: str, last: LastAssistant) -> tuple[Prompt, str | None]:
    ends = not isinstance(prompt, str) and prompt[-1].role == "assistant"
    if last == "prefill" or (last == "raise" and not ends):
        return prompt, None
    if last == "raise":
        raise TaskSourceError(
            f"{where} ends with the assistant's answer, so the prompt would hold its own answer. "
            "Say what it is: last_assistant split (the last turn is the answer) or prefill (an "
            f"answer that has begun).\n{options('last_assistant', 'split')}"
        )
    if not ends:
        raise TaskSourceError(
            f"{where} does not end with the assistant, and last_assistant split makes the last "
            "turn the answer. Give every row its answer, or leave last_assistant out."
        )
    last_content = prompt[-1].content if isinstance(prompt[-1], Message) else ""
    if len(prompt) == 1 or not last_content.strip():
        lacks = "no message before" if len(prompt) == 1 else "no text in"
        raise TaskSourceError(f"{where} has {lacks} the assistant's answer. Leave such rows out.")
    return prompt[:-1], last_content


def options(setting: str, value: str) -> str:
    """Return how a setting of columns is given to the stages and to an environment."""
    named = setting.replace("_", "-")
    return f"--data.{named} {value}, or for an environment --envs.0.kwargs.{setting} {value}"


def gold_of(value: Any, column: str, where: str) -> str | Number:  # noqa: ANN401 - any cell
    """Return what a response is compared with.

    Args:
        value: text or a number.
        column: its name, dotted or not.
        where: names the row.

    Raises:
        TaskSourceError: it is neither; names the dotted columns of it that are.
    """
    if isinstance(value, str):
        return whole_text(value, f'{where}, column "{column}"')
    if _is_number(value):
        return value
    message = (
        f'{where}, column "{column}": a response is compared with text or a number, got '
        f"{_shown(value)}."
    )
    inner = sorted(_leaves(value, column), key=_likely)
    if inner:
        has = f" It has {', '.join(inner[:MAX_NAMES])}." if len(inner) > 1 else ""
        message += f"{has} Name the column inside it: {inner[0]}"
    else:
        message += " Fill it in, write it as text, or leave the row out."
    raise TaskSourceError(
        f"{message}\nA reward of your own gets every column by its name as it is."
    )


def _leaves(value: object, name: str, depth: int = 3) -> Iterator[str]:
    if isinstance(value, list | tuple):
        value = {str(i): item for i, item in enumerate(value[:MAX_NAMES])}
    if not isinstance(value, Mapping):
        if isinstance(value, str) or _is_number(value):
            yield name
        return
    for key, inner in value.items() if depth else ():
        yield from _leaves(inner, f"{name}.{key}", depth - 1)


def _likely(name: str) -> int:
    last = next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
    return GOLD_NAMES.index(last) if last in GOLD_NAMES else len(GOLD_NAMES)


def _is_number(value: Any) -> bool:  # noqa: ANN401 - any cell
    is_real = isinstance(value, Real | Decimal) and not isinstance(value, bool)
    return is_real and str(value).lower() not in NO_NUMBERS


def _shown(value: object) -> str:
    return "null" if value is None else f"{value!r:.80}"
