"""`llmgym play`: a model and its base answer tasks or your own words, with their rewards."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import tyro

from trainers.cli.options import RunArgument, parse_options
from trainers.config import EnvConfig
from trainers.config.secrets import with_secrets
from trainers.errors import ConfigError
from trainers.loggers.formatting import answer, short_number, visible

HELP = "Enter: the next task. Text: your own prompt. End with Ctrl-D."


@dataclass(frozen=True)
class Options:
    """Watch a model answer held-out tasks, or your own words, with its reward."""

    target: RunArgument = None
    """A run folder, a model folder or a hub id; the newest run without one."""
    env: str | None = None
    """Another environment than the run's."""
    base: bool = False
    """Show the model PPO started from beside it."""
    trust: bool = False
    """Let the code run that the run's settings name; asked for once."""
    plugins: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module that registers environments or rewards; repeat it."""


class Player(Protocol):
    """What is followed: models that answer tasks and words."""

    def task(self, number: int) -> tuple[str, list[tuple[str, str, float, dict[str, float]]]]:
        """Return the prompt of a task; of each model name, answer, reward and its parts."""
        ...

    def answers(self, text: str) -> list[tuple[str, str]]:
        """Return each model's name and answer to words of the user."""
        ...


def typed_lines() -> Iterator[str]:
    """Yield what is typed, line by line, to the end of the input."""
    is_terminal = sys.stdin.isatty()
    while True:
        try:
            yield input("> " if is_terminal else "").strip()
        except EOFError:
            return


def rewarded(reward: float, parts: dict[str, float]) -> str:
    """Return a reward with its parts: reward 0.5 (exact 0, format 1)."""
    named = ", ".join(f"{name} {short_number(value)}" for name, value in parts.items())
    return f"reward {short_number(reward)}" + (f" ({named})" if len(parts) > 1 else "")


def main(argv: Sequence[str]) -> int:
    """Show the first task, then follow what is typed."""
    options: Options = parse_options(Options, argv, "play")
    from llmgym.registry import load_plugins
    from trainers.cli.folders import check_target
    from trainers.inference.targets import target_of

    load_plugins(options.plugins)
    target = target_of(options.target)
    if target.config.is_control:
        raise ConfigError(f"{target.name} acts on numbers, not on text.\nllmgym eval {target.name}")
    config = target.config
    if options.env is not None:
        config = replace(config, envs=[EnvConfig(id=options.env)])
    typed = [*options.plugins, *filter(None, [options.env])]
    check_target(target, config, typed=typed, command=["play", *argv], trust=options.trust)
    config = with_secrets(config)
    shown = [target]
    if options.base:
        if target.run_dir is None:
            raise ConfigError("only a run has a base. Play it by itself: llmgym play MODEL")
        shown.append(target_of(str(target.run_dir), "base"))
    from trainers.inference.arena import Arena
    from trainers.models.hf_logging import without_progress_bars

    without_progress_bars()
    arena = Arena(config, shown)
    try:
        print("\n".join(f"model    {model.name}" for model in shown))
        if sys.stdin.isatty():
            print(HELP)
        _follow(arena)
    finally:
        arena.close()
    return 0


def _follow(arena: Player) -> None:
    task = 0
    _show_task(arena, task)
    for line in typed_lines():
        if line:
            for name, response in arena.answers(line):
                print(f"{name:<8} {visible(answer(response))}")
        else:
            task += 1
            _show_task(arena, task)


def _show_task(arena: Player, task: int) -> None:
    prompt, answers = arena.task(task)
    print(f"\nprompt   {visible(prompt)}")
    for name, response, reward, parts in answers:
        print(f"{name:<8} {visible(answer(response))}\n         {rewarded(reward, parts)}")
