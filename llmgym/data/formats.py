r"""Which library's rows a file holds, and how they are read: one reader for all that takes rows.

A row of another format gets the columns that everything here reads, and keeps its own:

| format      | told by                                       | read as                          |
| ----------- | --------------------------------------------- | -------------------------------- |
| columns     | none of the others                            | the columns as they are          |
| trl         | messages; prompt and completion               | the last assistant turn responds |
|             | chosen and rejected, lists of messages        | their common start is the prompt |
| sharegpt    | conversations of {"from", "value"}            | as messages                      |
| verl        | prompt and reward_model.ground_truth          | the ground truth is the answer   |
| openrlhf    | input with output or label; context_messages  | prompt, response, answer         |
| nemo_rl     | context and completions with ranks            | the least rank and each other    |
| nemo_gym    | responses_create_params                       | its input; expected_answer       |
| hh          | chosen, rejected or prompt as "\n\nHuman: ..." | as messages                      |
| rewardbench | prompt, chosen, rejected and subset           | a pair for each rejected one     |

Roles, tool calls and everything else of a message stay; `llmgym/content.py` judges them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from llmgym.content import LastAssistant, has_column
from llmgym.data import conversions
from llmgym.data.files import Row, place_of
from llmgym.errors import TaskSourceError

Format = Literal[
    "columns", "trl", "sharegpt", "verl", "openrlhf", "nemo_rl", "nemo_gym", "hh", "rewardbench"
]
FormatSetting = Literal["auto", Format]
Cells = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of a source, with the columns that everything reads.

    Attributes:
        rows: numbered as in the source; a row that holds several pairs gives several.
        format: what they were written for.
        reason: what shows that.
    """

    rows: list[Row]
    format: str
    reason: str

    def has(self, column: str) -> bool:
        """Return whether the first row has a column."""
        return column in self.rows[0][1]

    @property
    def told(self) -> str:
        """The format and its reason, as a header shows them."""
        return f"{self.format}: {self.reason}"


def _trl(row: Cells) -> str:
    if "prompt" not in row and _are_messages(row.get("messages")):
        return "it has messages"
    if _are_messages(row.get("chosen")) and _are_messages(row.get("rejected")):
        shared = "" if "prompt" in row else ", whose common start is the prompt"
        return f"chosen and rejected are lists of messages{shared}"
    if "prompt" in row and "completion" in row:
        return "it has prompt and completion"
    return ""


def _sharegpt(row: Cells) -> str:
    turns = row.get("conversations")
    is_one = isinstance(turns, list | tuple) and bool(turns) and isinstance(turns[0], Mapping)
    return "it has conversations" if is_one else ""


def _verl(row: Cells) -> str:
    is_one = "prompt" in row and has_column(row, "reward_model.ground_truth")
    return "it has prompt and reward_model.ground_truth" if is_one else ""


def _openrlhf(row: Cells) -> str:
    if _are_messages(row.get("context_messages")):
        return "it has context_messages"
    others = [name for name in ("output", "label") if name in row]
    is_other = "prompt" in row or "instruction" in row  # Alpaca's input is a part of the prompt
    if is_other or not others or row.get("input") is None:
        return ""
    return f"it has input and {' and '.join(others)}"


def _nemo_rl(row: Cells) -> str:
    completions = row.get("completions")
    is_one = (
        "context" in row
        and isinstance(completions, list | tuple)
        and all(isinstance(ranked, Mapping) and "rank" in ranked for ranked in completions)
    )
    return "it has context and completions with ranks" if is_one else ""


def _nemo_gym(row: Cells) -> str:
    is_one = has_column(row, "responses_create_params.input")
    return "it has responses_create_params.input" if is_one else ""


def _hh(row: Cells) -> str:
    names = [name for name in ("chosen", "rejected", "prompt") if conversions.is_hh(row.get(name))]
    is_one = names[:2] == ["chosen", "rejected"] or "prompt" in names
    return f'{" and ".join(names)} begin with "Human:"' if is_one else ""


def _rewardbench(row: Cells) -> str:
    is_one = {"prompt", "chosen", "rejected", "subset"} <= row.keys()
    return "it has prompt, chosen, rejected and subset" if is_one else ""


READERS: dict[str, tuple[Callable[[Cells], str], conversions.Convert]] = {
    "nemo_gym": (_nemo_gym, conversions.of_nemo_gym),
    "nemo_rl": (_nemo_rl, conversions.of_nemo_rl),
    "verl": (_verl, conversions.of_verl),
    "rewardbench": (_rewardbench, conversions.of_rewardbench),
    "sharegpt": (_sharegpt, conversions.of_sharegpt),
    "hh": (_hh, conversions.of_hh),
    "trl": (_trl, conversions.of_trl),
    "openrlhf": (_openrlhf, conversions.of_openrlhf),
}
"""What tells a format, and what reads its rows; the first that fits is taken."""


def format_of(row: Cells) -> tuple[str, str]:
    """Return the format of a row, and what shows it."""
    for name, (tell, _) in READERS.items():
        reason = tell(row)
        if reason:
            return name, reason
    return "columns", "its columns are read as they are"


def formatted(
    rows: list[Row],
    source: str,
    setting: str = "auto",
    *,
    prompt_column: str = "prompt",
    last_assistant: LastAssistant = "raise",
) -> Table:
    """Return the rows of a source with the columns that everything reads.

    Args:
        rows: as they were read; one at least.
        source: names them, for messages.
        setting: "auto" to tell the format by the first row, or its name.
        prompt_column: where it is not "prompt", the columns of the file were named: "auto" then
            reads them as they are.
        last_assistant: "raise" makes the last turn of messages the response, where it is the
            assistant's; the others leave it in the prompt, for `content.prompt_of`.

    Raises:
        TaskSourceError: no such format, or a row is not of it; names the row.
    """
    if setting not in get_args(FormatSetting):
        known = ", ".join(get_args(FormatSetting))
        raise TaskSourceError(f'the format of rows is one of {known}; got "{setting}"')
    if setting == "columns":
        return Table(rows=rows, format="columns", reason="it is set")
    if setting == "auto" and prompt_column != "prompt":
        reason = f'the column of prompts is named: "{prompt_column}"'
        return Table(rows=rows, format="columns", reason=reason)
    chosen, reason = format_of(rows[0][1])
    if setting != "auto":
        chosen, reason = setting, "it is set"
    if chosen == "columns":
        return Table(rows=rows, format=chosen, reason=reason)
    tell, convert = READERS[chosen]
    made: list[Row] = []
    for number, row in rows:
        where = place_of(source, number)
        if not tell(row):
            raise TaskSourceError(
                f"{where} is not of the format {chosen} ({reason}); it has "
                f"{', '.join(map(str, row))}.\nGive every row one format, or read the columns as "
                "they are: --data.format columns"
            )
        made += [(number, {**row, **cells}) for cells in convert(row, where, last_assistant)]
    return Table(rows=made, format=chosen, reason=reason)


def _are_messages(value: object) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(item, Mapping) and "role" in item for item in value)
