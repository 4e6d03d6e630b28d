"""`llmgym eval`: a held-out score with its interval, and the difference to another model."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import tyro

from llmgym.plural import counted
from trainers.cli.envs import arguments
from trainers.cli.options import RunArgument, parse_options
from trainers.config import Config, EnvConfig, EvalConfig
from trainers.config.secrets import with_secrets
from trainers.errors import ConfigError
from trainers.loggers.formatting import LINE_WIDTH, answer, cut, mean_and_interval, short_number

if TYPE_CHECKING:
    from trainers.batch import Evaluation

MAX_SAMPLE_ROWS = 6


@dataclass(frozen=True)
class Options:
    """Score a model on held-out tasks, with its 95 % interval."""

    target: RunArgument = None
    """A run folder, a model folder or a hub id; the newest run without one. With --endpoint, the id
    of an environment."""
    env: str | None = None
    """Another environment than the run's."""
    against: str | None = None
    """A run, a model, or `base`: the model PPO started from."""
    n: int | None = None
    """Held-out tasks; the run's eval.num_tasks without one."""
    temperature: float | None = None
    """Draw at this temperature; greedy without one."""
    top_p: float = 1.0
    """Nucleus, with a temperature."""
    top_k: int = 0
    """Most likely tokens, with a temperature; 0 is all."""
    json: bool = False
    """Print the figures as JSON, one object a model."""
    trust: bool = False
    """Let the code run that the run's settings name; asked for once."""
    plugins: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module that registers environments or rewards; repeat it."""
    endpoint: str | None = None
    """Address of a served model that speaks OpenAI's chat completions, up to /v1."""
    model: str | None = None
    """With --endpoint: the name that the server knows the model by."""
    kwargs: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """With --endpoint: NAME=VALUE, an argument of the environment; repeat it."""
    max_tokens: int = 512
    """With --endpoint: longest response."""
    workers: int = 16
    """With --endpoint: requests at a time."""


def looked_at(config: Config, options: Options) -> Config:
    """Return the settings with the environment and the number of tasks that were asked for.

    Raises:
        ConfigError: no task is asked for.
    """
    number = config.eval.num_tasks if options.n is None else options.n
    if number < 1:
        raise ConfigError(f"an evaluation needs tasks, got {number}.\nllmgym eval --n 512")
    held_out = replace(config.eval, num_tasks=number)
    if options.env is None:
        return replace(config, eval=held_out)
    return replace(config, eval=held_out, envs=[EnvConfig(id=options.env)])


def evaluation_lines(evaluations: "Sequence[tuple[str, Evaluation]]", how: str) -> list[str]:
    """Return the lines that compare evaluations: scores, paired difference, samples."""
    first = evaluations[0][1]
    lines = [f"Held-out {first.env}: {counted(len(first.scores), 'task')}, {how}, 95 % interval"]
    width = max(len(name) for name, _ in evaluations)
    lines += [
        f"  {name:<{width}}  {mean_and_interval(evaluation)}" for name, evaluation in evaluations
    ]
    if len(evaluations) == 1:
        return [*lines, *_samples(first)]
    from trainers.evaluation.statistics import paired, paired_rows

    other = evaluations[1][1]
    mean, low, high = paired(first.scores, other.scores)
    lines.append(f"  paired difference {mean:+.3g} [{low:+.3g}, {high:+.3g}]")
    rows = paired_rows(other, first) if first.rows and other.rows else []
    rows = [row for row in rows if math.isfinite(row["reward_before"] - row["reward_after"])]
    rows.sort(key=lambda row: row["reward_before"] - row["reward_after"])
    shown = (
        rows
        if len(rows) <= MAX_SAMPLE_ROWS
        else [*rows[: MAX_SAMPLE_ROWS // 2], *rows[-(MAX_SAMPLE_ROWS // 2) :]]
    )
    for row in shown:
        lines.append(f"  prompt   {cut(str(row['prompt']), LINE_WIDTH - 11)}")
        lines.append(_answer("before", row["before"], row["reward_before"]))
        lines.append(_answer("after", row["after"], row["reward_after"]))
    return lines


def as_json(evaluations: "Sequence[tuple[str, Evaluation]]") -> str:
    """Return name, environment, mean, interval, and a row a task, of each model.

    A reward that failed is null, and so are the ends of an interval that is not known.
    """
    figures = ("env", "mean", "ci_low", "ci_high")
    objects = [
        {
            "model": name,
            **{key: _known(getattr(evaluation, key)) for key in figures},
            "rows": _rows(evaluation),
        }
        for name, evaluation in evaluations
    ]
    return json.dumps(objects, allow_nan=False)


def _rows(evaluation: "Evaluation") -> list[dict[str, object]]:
    return [{key: _known(value) for key, value in row.items()} for row in evaluation.rows]


def _known(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _samples(evaluation: "Evaluation") -> list[str]:
    lines = []
    for row in evaluation.rows[:MAX_SAMPLE_ROWS]:
        lines.append(f"  prompt   {cut(str(row['prompt']), LINE_WIDTH - 11)}")
        lines.append(_answer("answer", row["completion"], row["reward"]))
    return lines


def _answer(word: str, completion: object, reward: float) -> str:
    earned = f"  reward {'failed' if math.isnan(reward) else short_number(reward)}"
    return f"  {word:<8} {cut(answer(str(completion)), LINE_WIDTH - 11 - len(earned))}{earned}"


def check_endpoint_options(options: Options) -> None:
    """Refuse options that have no effect without --endpoint.

    Raises:
        ConfigError: one of them is given.
    """
    plain = Options()
    for name in ("model", "kwargs", "max_tokens", "workers"):
        if getattr(options, name) != getattr(plain, name):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} belongs to a served model: give its --endpoint URL too.")


def score_endpoint(options: Options) -> int:
    """Print the score of a served model.

    Raises:
        ConfigError: an option is missing, or has no effect on a served model.
    """
    from trainers.evaluation.endpoint import ServedModel, evaluate_endpoint

    if options.target is None or options.model is None:
        raise ConfigError(
            "a served model needs an environment and its name:\n"
            "llmgym eval ID --endpoint URL --model NAME"
        )
    for name in ("env", "against", "trust", "top_k"):
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} has no effect on a served model: leave it out.")
    if options.temperature is None and options.top_p != 1.0:
        raise ConfigError("--top-p narrows what is drawn: give a --temperature too.")
    count = EvalConfig().num_tasks if options.n is None else options.n
    if count < 1 or options.workers < 1 or options.max_tokens < 1:
        raise ConfigError("--n, --workers and --max-tokens are 1 or more.")
    kwargs = {**EvalConfig().kwargs, **arguments(options.kwargs)}
    endpoint = ServedModel(
        url=options.endpoint or "",
        model=options.model,
        max_tokens=options.max_tokens,
        temperature=options.temperature or 0.0,
        top_p=options.top_p,
    )
    evaluation = evaluate_endpoint(
        options.target, endpoint, count=count, kwargs=kwargs, workers=options.workers
    )
    drawn = options.temperature
    how = "greedy" if not drawn else f"temperature {drawn:g}"
    pairs = [(options.model, evaluation)]
    print(as_json(pairs) if options.json else "\n".join(evaluation_lines(pairs, how)))
    return 0


def main(argv: Sequence[str]) -> int:
    """Print scores."""
    options: Options = parse_options(Options, argv, "eval")
    from llmgym.registry import load_plugins
    from trainers.cli.folders import check_target
    from trainers.inference.targets import target_of

    load_plugins(options.plugins)
    if options.endpoint is not None:
        return score_endpoint(options)
    check_endpoint_options(options)
    target = target_of(options.target)
    config = looked_at(target.config, options)
    typed = [*options.plugins, *filter(None, [options.env])]
    check_target(target, config, typed=typed, command=["eval", *argv], trust=options.trust)
    config = with_secrets(config)
    if options.temperature is None and (options.top_p != 1.0 or options.top_k):
        raise ConfigError("--top-p and --top-k narrow what is drawn: give a --temperature too.")
    targets = [target]
    if options.against == "base":
        run = None if target.run_dir is None else str(target.run_dir)
        if run is None:
            raise ConfigError("only a run has a base. Name the other model: --against MODEL")
        targets.append(target_of(run, "base"))
    elif options.against is not None:
        targets.append(target_of(options.against))
    from trainers.generation.base import Sampling
    from trainers.inference.loading import held_out_score
    from trainers.models.hf_logging import without_progress_bars

    without_progress_bars()
    sampling, how = Sampling(greedy=True), "greedy"
    if options.temperature is not None:
        how = f"temperature {options.temperature:g}"
        sampling = Sampling(
            temperature=options.temperature, top_p=options.top_p, top_k=options.top_k
        )
    by_env = [
        [
            (target.name, held_out_score(replace(target, config=alone), sampling))
            for target in targets
        ]
        for alone in config.alone
    ]
    if options.json:
        print(as_json([evaluation for evaluations in by_env for evaluation in evaluations]))
    else:
        lines = [line for evaluations in by_env for line in evaluation_lines(evaluations, how)]
        print("\n".join(lines))
    return 0
