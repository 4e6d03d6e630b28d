"""Writes rows that were read in one format in another: the reverse of `conversions.py`.

What is read of both files is the same prompt, response, answer and preference. Columns that belong
to no format stay as they are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmgym.content import content_of
from llmgym.errors import MissingExtraError, TaskSourceError

Cells = Mapping[str, Any]
READ = ("prompt", "response", "answer", "chosen", "rejected")
OF_FORMATS = frozenset(
    {
        *READ,
        *("messages", "completion", "conversations", "system", "reward_model", "data_source"),
        *("input", "output", "label", "context", "context_messages", "completions"),
        *("responses_create_params", "expected_answer"),
    }
)
"""Columns that a format gives a meaning; they are written anew, or left out."""
SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation"}
HH_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


def converted(row: Cells, to: str, where: str) -> dict[str, Any]:
    """Return a row that was read, in the columns of another format.

    Args:
        row: with the columns that `formats.formatted` gives.
        to: the format.
        where: names the row.

    Raises:
        TaskSourceError: the row lacks what the format holds, or the format cannot hold it.
    """
    if to not in WRITERS:
        raise TaskSourceError(f"{to} is only read. Write one of {', '.join(WRITERS)}.")
    if row.get("prompt") is None:
        raise TaskSourceError(f"{where} has no prompt; it has {', '.join(map(str, row))}.")
    others = {name: cell for name, cell in row.items() if name not in OF_FORMATS}
    return {**WRITERS[to](row, where), **others}


def write_table(path: Path, rows: Sequence[Cells]) -> None:
    """Write rows to a new .jsonl or .parquet file.

    Raises:
        TaskSourceError: another suffix, a file that is there already, or rows of different types.
        MissingExtraError: Parquet needs pyarrow.
    """
    if path.exists():
        raise TaskSourceError(f"{path} is there already. Name a new file, or remove it.")
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    if path.suffix != ".parquet":
        raise TaskSourceError(f"{path} is written as .jsonl or .parquet, by its suffix.")
    try:
        import pyarrow  # noqa: PLC0415 - only Parquet files need it
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        message = f'writing {path} needs pyarrow: pip install "llmgym-rl[data]"'
        raise MissingExtraError(message) from error
    try:
        table = pyarrow.Table.from_pylist([*rows])
    except pyarrow.ArrowException as error:
        raise TaskSourceError(
            f"the rows do not fit into the columns of a Parquet file: {error}. Write a .jsonl file."
        ) from error
    pyarrow.parquet.write_table(table, path)


def _columns(row: Cells, where: str) -> dict[str, Any]:
    del where
    return {name: row[name] for name in READ if row.get(name) is not None}


def _trl(row: Cells, where: str) -> dict[str, Any]:
    kept = _answer(row)
    if _is_pair(row):
        sides = {side: [_spoken(row[side])] for side in ("chosen", "rejected")}
        return {"prompt": _messages(row), **sides, **kept}
    if row.get("response") is None:
        return {"prompt": row["prompt"], **kept}
    if isinstance(row["prompt"], str):
        return {"prompt": row["prompt"], "completion": row["response"], **kept}
    return {"prompt": _messages(row), "completion": [_spoken(_response(row, where))], **kept}


def _sharegpt(row: Cells, where: str) -> dict[str, Any]:
    turns = [_sharegpt_turn(message, where) for message in _messages(row)]
    if _is_pair(row):
        sides = {side: {"from": "gpt", "value": row[side]} for side in ("chosen", "rejected")}
        return {"conversations": turns, **sides, **_answer(row)}
    if row.get("response") is not None:
        turns.append({"from": "gpt", "value": row["response"]})
    return {"conversations": turns, **_answer(row)}


def _sharegpt_turn(message: Cells, where: str) -> dict[str, Any]:
    calls = message.get("tool_calls") or ()
    if not calls:
        role = message["role"]
        return {"from": SPEAKERS.get(role, role), "value": content_of(message, where)}
    if len(calls) > 1 or message.get("content"):
        raise TaskSourceError(f"{where}: ShareGPT holds one tool call in a message, and no text.")
    return {"from": "function_call", "value": json.dumps(calls[0].get("function", calls[0]))}


def _verl(row: Cells, where: str) -> dict[str, Any]:
    answer = row.get("answer", row.get("response"))
    if answer is None:
        raise TaskSourceError(f"{where} has no answer, which verl's reward_model.ground_truth is.")
    return {
        "data_source": row.get("data_source") or "llmgym",
        "prompt": _messages(row),
        "reward_model": {"style": "rule", "ground_truth": answer},
    }


def _openrlhf(row: Cells, where: str) -> dict[str, Any]:
    if _is_pair(row):
        return _trl(row, where)
    named = {"output": row.get("response"), "label": row.get("answer")}
    cells = {name: cell for name, cell in named.items() if cell is not None}
    if not cells:
        raise TaskSourceError(
            f"{where} has no response and no answer: output or label of OpenRLHF."
        )
    return {"input": row["prompt"], **cells}


def _nemo_rl(row: Cells, where: str) -> dict[str, Any]:
    if not _is_pair(row):
        response = _response(row, where)
        return {"messages": [*_messages(row), _spoken(response)], **_answer(row)}
    completions = [
        {"rank": rank, "completion": [_spoken(row[side])]}
        for rank, side in enumerate(("chosen", "rejected"))
    ]
    return {"context": _messages(row), "completions": completions, **_answer(row)}


def _nemo_gym(row: Cells, where: str) -> dict[str, Any]:
    if _is_pair(row):
        raise TaskSourceError(f"{where} is a preference, which NeMo-Gym has none of.")
    answer = row.get("answer", row.get("response"))
    expected = {} if answer is None else {"expected_answer": answer}
    return {"responses_create_params": {"input": _messages(row)}, **expected}


def _hh(row: Cells, where: str) -> dict[str, Any]:
    if not _is_pair(row):
        raise TaskSourceError(
            f"{where} is no preference, which HH's rows are: chosen and rejected."
        )
    begun = "".join(_hh_turn(message, where) for message in _messages(row))
    return {side: f"{begun}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}


def _hh_turn(message: Cells, where: str) -> str:
    if message["role"] not in HH_SPEAKERS:
        raise TaskSourceError(f"{where} has a message of the role {message['role']}; HH has none.")
    return f"\n\n{HH_SPEAKERS[message['role']]}: {content_of(message, where)}"


WRITERS: Mapping[str, Callable[[Cells, str], dict[str, Any]]] = {
    "columns": _columns,
    "trl": _trl,
    "sharegpt": _sharegpt,
    "verl": _verl,
    "openrlhf": _openrlhf,
    "nemo_rl": _nemo_rl,
    "nemo_gym": _nemo_gym,
    "hh": _hh,
}


def _is_pair(row: Cells) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


def _answer(row: Cells) -> dict[str, Any]:
    return {} if row.get("answer") is None else {"answer": row["answer"]}


def _response(row: Cells, where: str) -> str:
    if row.get("response") is None:
        raise TaskSourceError(f"{where} has no response; it has {', '.join(map(str, row))}.")
    return str(row["response"])


def _messages(row: Cells) -> list[dict[str, Any]]:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def _spoken(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
