"""Rows of other libraries, read as the columns prompt, response, answer, chosen and rejected.

Each function takes a row, its place and what a last assistant turn is, and returns the columns of
the row or rows that it becomes. `formats.py` says which function reads a file.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmgym.content import LastAssistant, content_of
from llmgym.errors import TaskSourceError

Cells = Mapping[str, Any]
Convert = Callable[[Cells, str, LastAssistant], list[dict[str, Any]]]
Turns = list[dict[str, Any]]

HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Roles of ShareGPT; the others are named as ours are."""


def is_hh(value: object) -> bool:
    """Return whether a cell is a dialogue in one text, as Anthropic's HH writes it."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "Assistant:" in value


def split_turns(turns: Turns, where: str, last: LastAssistant) -> dict[str, Any]:
    """Return the prompt and the response that a dialogue is."""
    ends = bool(turns) and turns[-1].get("role") == "assistant" and bool(turns[-1].get("content"))
    if last != "raise" or not ends:
        return {"prompt": turns}
    if len(turns) == 1:
        raise TaskSourceError(
            f"{where} has no message before the assistant's answer. Leave such rows out."
        )
    return {"prompt": turns[:-1], "response": content_of(turns[-1], where)}


def of_trl(row: Cells, where: str, last: LastAssistant) -> list[dict[str, Any]]:
    """Read messages, a prompt with its completion, or a preference of messages."""
    if "chosen" in row and not isinstance(row["chosen"], str):
        return [pair(row.get("prompt"), _turns(row["chosen"]), _turns(row["rejected"]), where)]
    if "prompt" not in row:
        return [split_turns(_turns(row["messages"]), where, last)]
    completion = row["completion"]
    if isinstance(completion, str):
        return [{"response": completion}]
    turns = _turns([completion] if isinstance(completion, Mapping) else completion or [])
    if not turns:
        raise TaskSourceError(f"{where} has an empty completion. Leave such rows out.")
    response = content_of(turns[-1], f"{where}, completion")
    if len(turns) == 1:
        return [{"response": response}]
    return [{"prompt": [*_dialogue(row["prompt"]), *turns[:-1]], "response": response}]


def of_sharegpt(row: Cells, where: str, last: LastAssistant) -> list[dict[str, Any]]:
    """Read conversations of {"from", "value"}, with a system column and preferences."""
    turns = [_sharegpt_turn(turn, where) for turn in row["conversations"]]
    if row.get("system"):
        turns = [{"role": "system", "content": row["system"]}, *turns]
    if row.get("chosen") is None or row.get("rejected") is None:
        return [split_turns(turns, where, last)]
    sides = (row["chosen"], row["rejected"])
    if all(isinstance(side, str) for side in sides):
        return [{"prompt": turns}]
    better, worse = (
        [_sharegpt_turn(side, where)] if isinstance(side, Mapping) else _turns(side)
        for side in sides
    )
    return [pair(turns, better, worse, where)]


def of_verl(row: Cells, where: str, last: LastAssistant) -> list[dict[str, Any]]:
    """Read a prompt and its ground truth."""
    del where, last
    return [{} if "answer" in row else {"answer": row["reward_model"]["ground_truth"]}]


def of_openrlhf(row: Cells, where: str, last: LastAssistant) -> list[dict[str, Any]]:
    """Read input, output and label."""
    if "context_messages" in row:
        return [split_turns(_turns(row["context_messages"]), where, last)]
    cells = {"prompt": row["input"]}
    for column, source in (("response", "output"), ("answer", "label")):
        if row.get(source) is not None and column not in row:
            cells[column] = row[source]
    return [cells]


def of_nemo_rl(row: Cells, where: str, last: LastAssistant) -> list[dict[str, Any]]:
    """Read a context with ranked completions: the least rank against each other one."""
    del last
    ranked = sorted(row["completions"], key=lambda completion: completion["rank"])
    best, others = ranked[0], [other for other in ranked if other["rank"] > ranked[0]["rank"]]
    if not others:
        raise TaskSourceError(f"{where} has no two completions of different rank. Leave it out.")
    context = _dialogue(row["context"])
    better = _turns(best["completion"])
    return [pair(context, better, _turns(other["completion"]), where) for other in others]


def of_nemo_gym(row: Cells, where: str, last: LastAssistant) -> list[dict[str, Any]]:
    """Read the input of a request for a response, and the answer that is expected."""
    request = row["responses_create_params"]
    turns = [
        turn
        for item in _dialogue(request["input"])
        if (turn := _response_item(item, where)) is not None
    ]
    if request.get("instructions"):
        turns = [{"role": "system", "content": request["instructions"]}, *turns]
    cells = split_turns(turns, where, last)
    metadata = row.get("verifier_metadata") or {}
    for answer in (row.get("expected_answer"), metadata.get("expected_answer")):
        if answer is not None and "answer" not in row:
            return [cells | {"answer": answer}]
    return [cells]


def of_hh(row: Cells, where: str, last: LastAssistant) -> list[dict[str, Any]]:
    """Read dialogues that are one text each."""
    if is_hh(row.get("chosen")) and is_hh(row.get("rejected")):
        return [pair(None, hh_turns(row["chosen"]), hh_turns(row["rejected"]), where)]
    turns = hh_turns(row["prompt"])
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns = turns[:-1]
    return [split_turns(turns, where, last)]


def of_rewardbench(row: Cells, where: str, last: LastAssistant) -> list[dict[str, Any]]:
    """Read a prompt with one better response, and one or several that are worse."""
    del last
    sides = {
        name: [row[name]] if isinstance(row[name], str) else [*(row[name] or [])]
        for name in ("chosen", "rejected")
    }
    if not all(sides.values()):
        raise TaskSourceError(f"{where} lacks a chosen or a rejected response. Leave it out.")
    return [
        {"chosen": chosen, "rejected": rejected}
        for chosen in sides["chosen"]
        for rejected in sides["rejected"]
    ]


def hh_turns(text: str) -> Turns:
    r"""Return the turns of a text "\n\nHuman: ...\n\nAssistant: ..."."""
    _, *parts = HH_TURN.split(text)
    names, contents = parts[::2], parts[1::2]
    return [
        {"role": HH_ROLES[name], "content": content.strip()}
        for name, content in zip(names, contents, strict=True)
    ]


def pair(prompt: Any, better: Turns, worse: Turns, where: str) -> dict[str, Any]:  # noqa: ANN401
    """Return a preference: the dialogue that both share, and how each ends.

    Args:
        prompt: text or messages; None where the prompt is what both sides begin with.
        better: the better dialogue, with the prompt or without.
        worse: the other.
        where: names the row.

    Raises:
        TaskSourceError: the two differ before their last turn, or do not end with the assistant.
    """
    count = 0
    while count < min(len(better), len(worse)) - 1 and better[count] == worse[count]:
        count += 1
    shared = better[:count]
    ends = (better[count:], worse[count:])
    if any(len(end) != 1 or end[0].get("role") != "assistant" for end in ends):
        lengths = " and ".join(str(len(end)) for end in ends)
        raise TaskSourceError(
            f"{where}: chosen and rejected share {count} messages, and {lengths} follow. A pair is "
            "two answers of the assistant to one prompt. Leave such rows out."
        )
    before = [] if prompt is None else _dialogue(prompt)
    dialogue = shared if _begins(shared, before) else [*before, *shared]
    if not dialogue:
        raise TaskSourceError(f"{where} has no prompt, and both sides share no message before.")
    chosen, rejected = (content_of(end[0], where) for end in ends)
    return {"prompt": dialogue, "chosen": chosen, "rejected": rejected}


def _begins(shared: Turns, before: Turns) -> bool:
    """Return whether a dialogue begins with another, a system message aside."""
    spoken = [turn for turn in shared if turn.get("role") != "system"]
    return shared[: len(before)] == before or spoken[: len(before)] == before


def _dialogue(prompt: Any) -> Turns:  # noqa: ANN401 - any cell
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _turns(prompt)


def _turns(messages: Sequence[Cells]) -> Turns:
    """Return messages without the empty fields that Parquet adds, so that equal ones compare so."""
    return [
        {name: value for name, value in message.items() if value is not None or name == "content"}
        for message in messages
    ]


def _sharegpt_turn(turn: Cells, where: str) -> dict[str, Any]:
    if "role" in turn:
        return _turns([turn])[0]
    speaker, value = turn.get("from"), turn.get("value")
    if speaker == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(value, where)]}
    return {"role": SHAREGPT_ROLES.get(str(speaker), speaker), "content": value}


def _call(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401 - any cell
    try:
        function = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise TaskSourceError(f"{where}: a function_call is JSON, got {value!r:.60}") from error
    return {"type": "function", "function": function}


def _response_item(item: Cells, where: str) -> dict[str, Any] | None:
    """Return an item of OpenAI's Responses API as a message; None of what no model reads."""
    kind = item.get("type") or "message"
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"type": "function", "id": item.get("call_id") or "", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item["output"], "tool_call_id": item.get("call_id")}
    if kind != "message":
        raise TaskSourceError(f'{where}: an item of type "{kind}" of the input is not read.')
    content = item.get("content")
    if isinstance(content, list):
        content = [
            {"type": "text", "text": part.get("text")}
            if part.get("type") in ("input_text", "output_text")
            else part
            for part in content
        ]
    return {"role": item.get("role"), "content": content}
