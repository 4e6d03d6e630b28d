"""`llmgym data`: what a data file holds, what to set for it, and its rows in another format."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from llmgym.content import LastAssistant
from llmgym.data.convert import converted, write_table
from llmgym.data.files import place_of, read_table
from llmgym.data.formats import Format, FormatSetting, formatted
from llmgym.data.survey import MAX_COLUMNS, Survey, percentiles, shown, sibling_of, surveyed
from llmgym.errors import TaskSourceError
from llmgym.messages import Message
from llmgym.plural import counted
from trainers.cli.options import parse_options
from trainers.config import Config, GenerationConfig, ModelConfig, TokenizerConfig
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from trainers.models.chat import ChatFormat

MAX_PROMPT_ROWS = 3
SHOWN_TOKENS = 12
STEP = 32
"""Suggested limits are multiples of this."""


@dataclass(frozen=True)
class Options:
    """Look at a data file before training on it; exit code 1 if a run would stop on it.

    Or write its rows in another format: data convert IN OUT --to FORMAT.
    """

    action: tyro.conf.Positional[Literal["check", "convert"]]
    """What to do: check or convert."""
    file: tyro.conf.Positional[Path]
    """A .jsonl, .parquet, .csv or .tsv file."""
    out: tyro.conf.Positional[Path | None] = None
    """Where convert writes: a .jsonl or .parquet file that is not there yet."""
    to: Format | None = None
    """The format that convert writes."""
    format: FormatSetting = "auto"
    """What the rows were written for, as in data.format; auto: told by the first row."""
    prompt_column: str = "prompt"
    """The column of prompts; a dotted name reaches into mappings."""
    answer_column: str | None = None
    """The column of answers or responses; answer, response, completion or solution by itself."""
    last_assistant: LastAssistant = "raise"
    """What messages are that end with the assistant: an error, a prompt and its answer (split), or
    a prompt whose response has begun (prefill)."""
    columns: str | None = None
    """The column names of a CSV or TSV file without a header line: text,labels,id."""
    model: Annotated[str | None, tyro.conf.arg(name="model.path")] = None
    """A model's folder or hub id: lengths in its tokens, its chat template, its end token."""
    template: Annotated[str | None, tyro.conf.arg(name="tokenizer.chat-template")] = None
    """The chat template of a model without one: plain, chatml or a file."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The rows as a model reads them.

    Attributes:
        prompts: least, median, 95th percentile and most tokens of a prompt.
        answers: those of an answer, its end token included; None without answers.
        examples: the first rows, each as the tokens of its prompt.
        errors: what the tokenizer or the template refuses.
        warnings: what is lost or cut.
    """

    prompts: tuple[int, ...] = ()
    answers: tuple[int, ...] | None = None
    end_token: str = ""
    examples: tuple[tuple[str, ...], ...] = ()
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def tokens_of(survey: Survey, model: str, template: str | None = None) -> Tokens:
    """Return the rows as a model reads them; its tokenizer is loaded, its weights are not."""
    from llmgym.rewards.context import longest_sequence
    from trainers.models.hf_logging import without_progress_bars
    from trainers.models.loading import load_chat, load_config, load_tokenizer

    without_progress_bars()
    tokenizer = TokenizerConfig(chat_template=template)
    config = Config(model=ModelConfig(path=model), tokenizer=tokenizer)
    try:
        chat = load_chat(config, load_tokenizer(config), env=str(survey.path))
        prompts = {
            number: chat.prompt_ids(_messages(prompt)) for number, prompt in survey.prompts.items()
        }
    except ConfigError as error:
        return Tokens(errors=(str(error),))
    dialogues = {number: _messages(prompt) for number, prompt in survey.prompts.items()}
    answers = {
        number: chat.response_ids(text, dialogues.get(number, ()))
        for number, text in survey.answers.items()
    }
    if not prompts:
        return Tokens()
    together = {number: len(ids) + len(answers.get(number, ())) for number, ids in prompts.items()}
    context = longest_sequence(load_config(model))
    first = list(prompts.values())[:MAX_PROMPT_ROWS]
    return Tokens(
        prompts=percentiles([len(ids) for ids in prompts.values()]),
        answers=percentiles([len(ids) for ids in answers.values()]) if answers else None,
        end_token=str(chat.tokenizer.convert_ids_to_tokens(chat.end_token_id)),
        examples=tuple(tuple(chat.tokenizer.convert_ids_to_tokens(ids)) for ids in first),
        errors=tuple(_too_long(together, context, model)),
        warnings=tuple(_changed(survey, chat, answers)),
    )


def _messages(prompt: str | tuple[Message, ...]) -> list[dict[str, Any]]:
    listed = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return [message.as_dict() for message in listed]


def _too_long(lengths: Mapping[int, int], context: int, model: str) -> list[str]:
    long = [number for number, length in lengths.items() if length > context]
    if not long:
        return []
    return [
        f"{len(long)} of {len(lengths)} rows are longer than the {context} tokens that {model} "
        f"takes (first: line {long[0]}, {lengths[long[0]]}). Shorten them, take another model, or "
        "leave them out: --data.too-long drop"
    ]


def _changed(survey: Survey, chat: "ChatFormat", answers: Mapping[int, Sequence[int]]) -> list[str]:
    lost = [
        number
        for number, ids in answers.items()  # a template may take off the space around an answer
        if survey.answers[number].strip() not in chat.decode(ids)
    ]
    if not lost:
        return []
    before = survey.answers[lost[0]]
    after = chat.decode(answers[lost[0]])
    return [
        f"{len(lost)} of {len(answers)} answers do not come back from their tokens (first: line "
        f"{lost[0]}, {shown(before, 30)!r} comes back as {shown(after, 30)!r}): a model cannot "
        "write them exactly."
    ]


def _rounded(length: int) -> int:
    return -(-length // STEP) * STEP


def settings(survey: Survey, tokens: Tokens | None, options: Options) -> list[str]:
    """Return the commands that train on this file."""
    model, is_split = options.model, options.last_assistant == "split"
    path, prompt, answer = str(survey.path), survey.prompt_column, survey.answer_column
    ppo = ["llmgym", "train", "prompts", "--model.path", model or "MODEL"]
    ppo += ["--envs.0.kwargs.path", path]
    sft = ["llmgym", "sft", "--model.preset", "tiny", "--data", path]
    if prompt != "prompt":
        ppo += ["--envs.0.kwargs.prompt_column", prompt]
        sft += ["--data.prompt-column", prompt]
    if options.format != "auto":
        ppo += ["--envs.0.kwargs.format", options.format]
        sft += ["--data.format", options.format]
    if options.last_assistant != "raise":
        ppo += ["--envs.0.kwargs.last_assistant", options.last_assistant]
        sft += ["--data.last-assistant", options.last_assistant]
    if answer is not None:
        ppo += ["--envs.0.kwargs.answer_column", answer]
    elif not is_split:
        ppo += ["--reward", "my_reward.py:score"]
    limits = GenerationConfig()
    if tokens is not None and tokens.prompts and tokens.prompts[-1] > limits.max_prompt_tokens:
        ppo += ["--generation.max-prompt-tokens", str(_rounded(tokens.prompts[-1]))]
    if tokens is not None and tokens.answers and tokens.answers[-2] > limits.max_new_tokens:
        ppo += ["--generation.max-new-tokens", str(_rounded(tokens.answers[-2]))]
    if {"chosen", "rejected"} <= {*survey.columns}:
        judge = ["llmgym", "reward-model", "--model.preset", "tiny", "--data", path]
        judge += [] if prompt == "prompt" else ["--data.prompt-column", prompt]
        judge += [] if options.format == "auto" else ["--data.format", options.format]
        return [shlex.join(judge)]
    if not survey.is_text:
        return [shlex.join(ppo)]
    sft += (
        []
        if is_split or "response" in (answer, *survey.columns)
        else ["--data.response-column", str(answer)]
    )
    return [shlex.join(sft), shlex.join(ppo)]


def survey_lines(survey: Survey, tokens: Tokens | None) -> list[str]:
    """Return what is shown: columns with their lengths, the first rows, tokens."""
    beside = sibling_of(survey.path)
    lines = [
        f"file      {survey.path}: {counted(survey.num_rows, 'row')}",
        f"format    {survey.format}",
        f"held out  {beside or 'a tenth of the prompts, chosen by their content'}",
        f"{'column':<20}{'characters: least':>18}{'median':>9}{'95 %':>9}{'most':>9}",
    ]
    for name, lengths in survey.lengths.items():
        least, *rest = lengths
        lines.append(
            f"{shown(name, 19):<20}{least:>18}" + "".join(f"{length:>9}" for length in rest)
        )
    if len(survey.columns) > MAX_COLUMNS:
        lines.append(f"... and {len(survey.columns) - MAX_COLUMNS} more columns")
    if tokens is not None and tokens.prompts:
        for name, lengths in (("prompt", tokens.prompts), ("answer", tokens.answers)):
            if lengths:
                least, *rest = lengths
                told = "".join(f"{length:>9}" for length in rest)
                lines.append(f"{name + ' in tokens':<20}{least:>18}{told}")
        lines.append(f"end token {tokens.end_token}, put after every answer")
    for place, (number, prompt) in enumerate(list(survey.prompts.items())[:MAX_PROMPT_ROWS]):
        text = (
            prompt if isinstance(prompt, str) else " / ".join(message.content for message in prompt)
        )
        answer = f"  ->  {shown(survey.answers[number])}" if number in survey.answers else ""
        lines.append(f"line {number}  {shown(text)}{answer}")
        if tokens is not None and place < len(tokens.examples):
            every = tokens.examples[place]
            cut = every
            if len(every) > SHOWN_TOKENS:
                cut = (*every[: SHOWN_TOKENS - 4], "...", *every[-4:])
            lines.append(f"  {counted(len(every), 'token')}: {' '.join(cut)}")
    return lines


def again(argv: Sequence[str]) -> str:
    """Return what to do about an error: the same command, after it is corrected."""
    return f"Next      correct it, then: {shlex.join(['llmgym', 'data', *argv])}"


def convert(options: Options, argv: Sequence[str]) -> int:
    """Write the rows of a file in another format; 1 if it cannot be done.

    Raises:
        ConfigError: no file or no format to write.
    """
    if options.out is None or options.to is None:
        raise ConfigError(
            "convert takes two files and a format: llmgym data convert IN OUT --to trl"
        )
    try:
        read = formatted(
            read_table(options.file, options.columns.split(",") if options.columns else None),
            str(options.file),
            options.format,
            prompt_column=options.prompt_column,
            last_assistant=options.last_assistant,
        )
        rows = [
            converted(row, options.to, place_of(options.file, number)) for number, row in read.rows
        ]
        write_table(options.out, rows)
    except TaskSourceError as error:
        print(f"error: {error}\n{again(argv)}")
        return 1
    print(f"read      {options.file}: {counted(len(rows), 'row')}, {read.told}")
    print(f"wrote     {options.out}: {options.to}, {', '.join(rows[0])}")
    print(f"Next      llmgym data check {shlex.quote(str(options.out))}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Look at a file, or write its rows in another format; 1 if it cannot be done."""
    options: Options = parse_options(Options, argv, "data")
    if not options.file.is_file():
        raise ConfigError(
            f"there is no file {options.file}. Give a .jsonl, .parquet, .csv or .tsv."
        )
    if options.action == "convert":
        return convert(options, argv)
    if options.out is not None or options.to is not None:
        raise ConfigError("check writes nothing. llmgym data convert IN OUT --to FORMAT does.")
    return check(options, argv)


def check(options: Options, argv: Sequence[str]) -> int:
    """Show what a file holds; 1 if a run would stop on it."""
    try:
        survey = surveyed(
            options.file,
            prompt_column=options.prompt_column,
            answer_column=options.answer_column,
            names=options.columns.split(",") if options.columns else None,
            last_assistant=options.last_assistant,
            format=options.format,
        )
    except TaskSourceError as error:
        print(json.dumps({"errors": [str(error)]}) if options.json else f"error: {error}")
        if not options.json:
            print(again(argv))
        return 1
    tokens = None if options.model is None else tokens_of(survey, options.model, options.template)
    errors = [*survey.errors, *(tokens.errors if tokens else ())]
    warnings = [*survey.warnings, *(tokens.warnings if tokens else ())]
    if options.json:
        facts = {"file": str(survey.path), "rows": survey.num_rows, "columns": survey.columns}
        facts["format"] = survey.format
        facts |= {"characters": survey.lengths, "errors": errors, "warnings": warnings}
        if tokens is not None:
            facts["tokens"] = {"prompt": tokens.prompts, "answer": tokens.answers}
        print(json.dumps(facts))
        return 1 if errors else 0
    print("\n".join(survey_lines(survey, tokens)))
    for line in errors:
        print(f"error: {line}")
    for line in warnings:
        print(f"warning: {line}")
    if errors:
        print(again(argv))
    else:
        for line in settings(survey, tokens, options):
            takes = bool(options.template) and "--model.path" in line
            end = (
                f" --tokenizer.chat-template {shlex.quote(str(options.template))}" if takes else ""
            )
            print(f"Next      {line}{end}")
    return 1 if errors else 0
