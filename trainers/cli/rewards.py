"""`llmgym rewards check`: what a reward says of a few rows, before a model is trained on it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from llmgym.addresses import load
from llmgym.content import LastAssistant
from llmgym.data.files import read_table
from llmgym.data.formats import FormatSetting, formatted
from llmgym.data.rows import Columns
from llmgym.data.tasks import TaskList, from_file, from_list
from llmgym.errors import RewardError
from llmgym.registry import load_plugins
from llmgym.rewards.answers import check_answers
from llmgym.rewards.base import Reward, resolve
from llmgym.rewards.dialects import DialectSetting, Understood, understood
from llmgym.rewards.trial import GOLD, WORST, Answer, Trial, spread, tried, written_at
from trainers.cli.envs import arguments
from trainers.cli.options import parse_options
from trainers.errors import ConfigError

MAX_RESPONSE_CHARACTERS = 48
MAX_TRIAL_ROWS = 2
SUM_ROWS = [
    {"prompt": f"{a} + {b} =", "answer": str(a + b)} for a, b in ((12, 30), (7, 8), (40, 2), (5, 5))
]
"""What a reward is tried on without a file; any file of your own says more."""


@dataclass(frozen=True)
class Options:
    """Try a reward on a few rows: values, parts, time, failures; exit code 1 if any."""

    action: tyro.conf.Positional[Literal["check"]]
    """What to do: check."""
    reward: tyro.conf.Positional[str]
    """FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION, a reward model's folder, or a reward's name."""
    data: Path | None = None
    """A file of prompts (JSONL, Parquet, CSV, TSV); a few sums without one."""
    prompt_column: str = "prompt"
    """The column of prompts."""
    answer_column: str | None = None
    """The column to compare with; `answer` where there is one."""
    solution_column: str | None = None
    """The column of perfect responses; the answer without one."""
    last_assistant: LastAssistant = "raise"
    """What messages are that end with the assistant: an error, a prompt and its answer (split), or
    a prompt whose response has begun (prefill)."""
    columns: str | None = None
    """The column names of a CSV or TSV file without a header line: text,labels,id."""
    format: FormatSetting = "auto"
    """What the rows were written for, as in data.format; auto: told by the first row."""
    n: int = 20
    """Rows to try, from the first."""
    kwargs: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the reward; repeat it."""
    isolated: bool = True
    """A function runs in a process of its own, as in training."""
    timeout_seconds: float = 10.0
    """How long a call of such a process may take."""
    dialect: DialectSetting = "auto"
    """How the function is called: as this trainer or library calls it; told by its parameters."""
    json: bool = False
    """Print one JSON object instead of the table."""
    plugins: tyro.conf.UseAppendAction[tuple[str, ...]] = field(default=())
    """A module that registers rewards; repeat it."""


def specification(options: Options) -> dict[str, Any]:
    """Return what the options mean as an entry of the setting `rewards`."""
    kwargs = arguments(options.kwargs)
    if Path(options.reward).is_dir():
        return {"model": options.reward, "kwargs": kwargs}
    if ":" not in options.reward:
        return {"name": options.reward, "kwargs": kwargs}
    return {
        "function": options.reward,
        "kwargs": kwargs,
        "dialect": options.dialect,
        "isolated": options.isolated,
        "timeout_seconds": options.timeout_seconds,
    }


def rows(options: Options) -> TaskList:
    """Return the rows of the file, with the answers and solutions that it has."""
    if options.data is None:
        return from_list(SUM_ROWS, Columns(answer="answer"), source="sums")
    if options.n < 1:
        raise ConfigError(f"--n is 1 or more, got {options.n}.")
    names_given = None if options.columns is None else tuple(options.columns.split(","))
    table = formatted(
        read_table(options.data, names_given),
        str(options.data),
        options.format,
        prompt_column=options.prompt_column,
        last_assistant=options.last_assistant,
    )
    names = table.rows[0][1]
    columns = Columns(
        prompt=options.prompt_column,
        answer=options.answer_column or ("answer" if "answer" in names else None),
        solution=options.solution_column or ("solution" if "solution" in names else None),
        names=names_given,
        last_assistant=options.last_assistant,
        format=options.format,
    )
    return from_file(options.data, columns)


def run_trial(reward: Reward, tasks: TaskList, n: int, place: str) -> Trial:
    """Return the trial on the first rows, or what is wrong with the gold answers of the file."""
    try:
        check_answers(reward, tasks)
    except RewardError as error:
        return Trial(answers=(), errors=(str(error),), warnings=())
    return tried(reward, tasks.tasks[:n], place)


def dialect_of(spec: Mapping[str, Any]) -> Understood | None:
    """Return the dialect of the function that a specification names; None where it names none."""
    made = load(spec["function"]) if "function" in spec else None
    if not callable(made) or isinstance(made, Reward | type):
        return None
    return understood(made, spec["dialect"], spec["kwargs"])


def _cut(text: str) -> str:
    return repr(
        text
        if len(text) <= MAX_RESPONSE_CHARACTERS
        else f"{text[: MAX_RESPONSE_CHARACTERS - 3]}..."
    )


def _line(scored: Answer) -> str:
    parts = ", ".join(f"{name} {value:.4g}" for name, value in scored.score.parts.items())
    value = f"{scored.score.value:.4g}" if scored.score.status == "ok" else scored.score.status
    return f"  {scored.kind:<9}{value:>8}  {_cut(scored.response)}{f'  {parts}' if parts else ''}"


def trial_lines(trial: Trial) -> list[str]:
    """Return the table: each kind of response, the first rows in full, spread and time."""
    lines = [
        f"{'response':<10}{'rows':>5}{'least':>11}{'mean':>11}{'most':>11}{'failed':>8}{'ms':>9}"
    ]
    for kind in (GOLD, *WORST):
        asked = [scored for scored in trial.answers if scored.kind == kind]
        fine = [scored.score.value for scored in trial.of(kind)]
        if asked:
            told = "".join(f"{figure:>11.4g}" for figure in spread(fine)[:3]) if fine else " " * 33
            ms = sum(scored.ms for scored in asked) / len(asked)
            lines.append(f"{kind:<10}{len(asked):>5}{told}{len(asked) - len(fine):>8}{ms:>9.3g}")
    for row in sorted({scored.row for scored in trial.answers})[:MAX_TRIAL_ROWS]:
        those = [scored for scored in trial.answers if scored.row == row]
        lines += [f"row {row}  {_cut(those[0].prompt)}", *map(_line, those)]
    fine = [scored for scored in trial.answers if scored.score.status == "ok"]
    if fine:
        low, mean, high, deviation = spread([scored.score.value for scored in fine])
        lines.append(
            f"spread    {low:.4g} to {high:.4g}, mean {mean:.4g}, deviation {deviation:.4g}"
        )
        slowest = max(trial.answers, key=lambda scored: scored.ms)
        average = sum(scored.ms for scored in trial.answers) / len(trial.answers)
        lines.append(
            f"time      {average:.3g} ms a call, the slowest {slowest.ms:.3g} ({slowest.kind})"
        )
    return lines


def following(options: Options, tasks: TaskList) -> str:
    """Return the command that trains with this reward on these rows."""
    path = "FILE" if options.data is None else str(options.data)
    words = ["llmgym", "train", "prompts", "--model.path", "MODEL", "--envs.0.kwargs.path", path]
    if options.prompt_column != "prompt":
        words += ["--envs.0.kwargs.prompt_column", options.prompt_column]
    if options.format != "auto":
        words += ["--envs.0.kwargs.format", options.format]
    if options.last_assistant != "raise":
        words += ["--envs.0.kwargs.last_assistant", options.last_assistant]
    if ":" in options.reward or Path(options.reward).is_dir():
        words += ["--reward", options.reward]
    else:
        if tasks.tasks[0].answer is not None:
            words += ["--envs.0.kwargs.answer_column", options.answer_column or "answer"]
        words += ["--rewards.0.name", options.reward]
    if options.dialect != "auto":
        words += ["--rewards.0.dialect", options.dialect]
    for pair in options.kwargs:
        name, _, value = pair.partition("=")
        words += [f"--rewards.0.kwargs.{name}", value]
    return shlex.join(words)


def main(argv: Sequence[str]) -> int:
    """Try a reward; 1 if a run would stop on it."""
    options: Options = parse_options(Options, argv, "rewards")
    load_plugins(options.plugins)
    spec = specification(options)
    if "model" in spec:
        from trainers.models.hf_logging import without_progress_bars

        without_progress_bars()
    reward = resolve(spec)
    tasks = rows(options)
    place, dialect = written_at(spec), dialect_of(spec)
    trial = run_trial(reward, tasks, options.n, place)
    if options.json:
        told = None if dialect is None else asdict(dialect)
        facts = {"reward": options.reward, "place": place, "dialect": told, **asdict(trial)}
        print(json.dumps(facts))
        return 1 if trial.errors else 0
    print(f"reward    {options.reward}{f'  ({place})' if place else ''}")
    if dialect is not None:
        print(f"dialect   {dialect.dialect}: {dialect.reason}")
    print(f"rows      {min(options.n, len(tasks))} of {options.data or 'sums written here'}")
    if options.data is not None:
        print(f"format    {tasks.read_as}")
    print("\n".join(trial_lines(trial)) if trial.answers else "nothing was scored")
    if not trial.errors:
        print("the same again, and in a batch: yes")
    for line in trial.errors:
        print(f"error: {line}")
    for line in trial.warnings:
        print(f"warning: {line}")
    if trial.errors:
        columns = "" if options.data else " (its columns come from --data FILE)"
        print(f"Next      correct it{columns}, then: {shlex.join(['llmgym', 'rewards', *argv])}")
    else:
        print(f"Next      {following(options, tasks)}")
    return 1 if trial.errors else 0
