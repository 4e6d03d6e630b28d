"""What a person sees while a run runs: one live line in a terminal, plain lines elsewhere."""

import io
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import fill
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from llmgym.plural import counted
from trainers.batch import Evaluation
from trainers.config import Config
from trainers.config.environments import env_kwargs
from trainers.config.python_parts import call, named_in
from trainers.config.secrets import secret_variables
from trainers.distributed.launcher import continuing
from trainers.loggers.alarms import Alarms
from trainers.loggers.base import FinalStatus, Logger, RunInfo, Stage
from trainers.loggers.formatting import (
    LINE_WIDTH,
    answer,
    cut,
    mean_and_interval,
    sample_lines,
    short_duration,
    short_number,
    sparkline,
)
from trainers.loggers.wandb import mode, offline_parts
from trainers.run_dir.record import read_status

STEPS_A_LINE: Mapping[Stage, int] = {"sft": 20, "reward_model": 100, "ppo": 1}
# A short name on the line, and the metric it shows.
SHOWN: Mapping[Stage, Mapping[str, str]] = {
    "sft": {"loss": "sft/loss"},
    "reward_model": {
        "loss": "reward_model/loss",
        "accuracy": "reward_model/accuracy",
    },
    "ppo": {
        "reward": "objective/scores",
        "kl": "objective/kl",
        "length": "completions/mean_length",
        "tokens_per_s": "perf/tokens_per_s",
    },
}
UNITS = {"length": ("len", ""), "tokens_per_s": ("", " tok/s")}


class _Lasting(io.TextIOBase):
    """A stream that drops text once its terminal is gone: a run must live on to save."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding or "utf-8"


class ConsoleLogger(Logger):
    """Prints a header, the course of the run, samples, warnings once, and a closing block.

    `is_quiet` leaves warnings and the closing block. NO_COLOR and a stream that is no terminal
    are honoured.
    """

    def __init__(self, *, is_quiet: bool = False, stream: TextIO | None = None) -> None:
        self._console = Console(
            file=cast(TextIO, _Lasting(stream or sys.stdout)),
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )
        self._is_quiet = is_quiet
        self._live: Live | None = None
        self._config = Config()
        self._run_dir = Path()
        self._rewards: list[float] = []
        self._alarms = Alarms(self._config)
        self._before: Sequence[Evaluation] = ()
        self._after: Sequence[Evaluation] = ()
        self._best: tuple[float, int] | None = None
        self._stale = 0.0
        self._reached = ""
        self._began: tuple[float, int] | None = None

    def _print(self, text: str = "", *, style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def start(self, run: RunInfo) -> None:
        """Print the header."""
        config = run.config
        self._config, self._run_dir = config, run.folder
        self._alarms = Alarms(config)
        if run.state:
            self._alarms.load_state_dict(run.state["alarms"])
            self._best, self._stale = run.state["best"], run.state["stale"]
        if run.evaluations:
            self._before, self._after = run.evaluations[0][1], run.evaluations[-1][1]
        if self._console.is_terminal and not self._is_quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        ppo = config.ppo
        title = f"llmgym  {config.run.name} -> {run.folder}"
        self.note("", f"{title}  seed {config.run.seed}")
        if ppo.num_iterations and not config.is_control:
            updates = ppo.num_minibatches * ppo.num_epochs
            self.note(
                "batch",
                f"{counted(ppo.num_prompts, 'prompt')} x "
                f"{counted(ppo.samples_per_prompt, 'response')} = "
                f"{counted(ppo.num_episodes, 'episode')}, "
                f"{counted(updates, 'update')} an iteration",
            )
        self.note("W&B", mode() if config.log.wandb.enabled else "off")

    def note(self, title: str, text: str) -> None:
        """Print one line of the header."""
        if not self._is_quiet:
            label = f"{title:<8} " if title else ""
            self._print(
                f"{label}{cut(text, LINE_WIDTH - len(label))}", style="" if title else "bold"
            )

    def log(self, values: Mapping[str, float], step: int, section: Stage = "ppo") -> None:
        """Show the figures of a step; warn of what is wrong with them, once each."""
        total = f"/{self._config.ppo.num_iterations}" if section == "ppo" else ""
        self._reached = f"{section} {step}{total}"
        if section == "ppo":
            self._rewards += [values["objective/scores"]] if "objective/scores" in values else []
            self._alarm(values, step)
            self._explain(values, step)
        every = self._config.log.every * STEPS_A_LINE[section]
        named = {name: values[key] for name, key in SHOWN[section].items() if key in values}
        left = self._left(step) if section == "ppo" else ""
        if self._live is not None:
            self._live.update(Text(self._live_line(named, left)), refresh=True)
        elif not self._is_quiet and (step % every == 0 or step == 1):
            pairs = [f"{name}={short_number(value)}" for name, value in named.items()]
            pairs += [f"eta={left}"] if left else []
            self._print(cut(" ".join([self._reached.replace(" ", "="), *pairs]), LINE_WIDTH))

    def _live_line(self, named: Mapping[str, float], left: str) -> str:
        parts = [self._reached]
        for name, value in named.items():
            word, unit = UNITS.get(name, (name, ""))
            course = f" {sparkline(self._rewards)}" if name == "reward" else ""
            parts.append(f"{word} {short_number(value)}{unit}{course}".strip())
        return cut("  ".join([*parts, *([f"eta {left}"] if left else [])]), LINE_WIDTH)

    def _left(self, step: int) -> str:
        now = time.monotonic()
        if self._began is None:
            self._began = (now, step)
            return ""
        since, first = self._began
        each = (now - since) / max(step - first, 1)
        return short_duration(each * max(self._config.ppo.num_iterations - step, 0))

    def _alarm(self, values: Mapping[str, float], step: int) -> None:
        for text in self._alarms.take(values):
            message = fill(
                f"warning: {text} (iteration {step})", LINE_WIDTH, break_on_hyphens=False
            )
            self._print(message, style="yellow")

    def _explain(self, values: Mapping[str, float], step: int) -> None:
        is_first = step == 1 and not self._is_quiet
        if is_first and abs(values.get("loss/policy_avg", 1.0)) < 1e-2:
            self._print("The policy loss starts near 0: its ratio starts at 1. Watch the reward.")

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show the first and the last row."""
        if not self._is_quiet and rows:
            for row in (rows[0], rows[-1])[: len(rows)]:
                for line in sample_lines(row):
                    self._print(line, style="dim")

    def evaluation(
        self, evaluations: Sequence[Evaluation], step: int, figures: Mapping[str, float]
    ) -> None:
        """Show held-out scores."""
        self._before, self._after = self._before or evaluations, evaluations
        if self._best is None or figures["eval/best"] > self._best[0]:
            self._best = (figures["eval/best"], step)
        self._stale = figures["eval/stale"]
        for result in () if self._is_quiet else evaluations:
            self._print(
                cut(
                    f"Held-out {mean_and_interval(result)}  {result.env}, iteration {step}",
                    LINE_WIDTH,
                )
            )

    def close(self, status: FinalStatus) -> None:
        """Print what was reached, what it looks like now, where it is and what to do next."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._print()
        if status == "converged":
            stale = counted(int(self._stale), "evaluation")
            self._print(f"Converged: {stale} without improvement.", style="bold")
        elif status != "finished":
            self._print(f"Stopped at {self._reached or 'the start'}: {status}.", style="bold")
        self._compare(self._before, self._after)
        warned = [f"{name} ({count} x)" for name, count in self._alarms.counts.items()]
        if warned:
            self._print(f"Warnings {', '.join(warned)}", style="yellow")
        self._point(status)

    def _compare(self, before: Sequence[Evaluation], after: Sequence[Evaluation]) -> None:
        for first, other in zip(before, after, strict=True):
            course = (
                mean_and_interval(first)
                if first is other
                else f"{mean_and_interval(first)} -> {mean_and_interval(other)}"
            )
            tasks = f"{counted(len(other.scores), 'task')}, 95 %" if other.scores else "95 %"
            self._print(cut(f"Held-out {course}  {tasks}", LINE_WIDTH), style="bold")
            if first is other:
                continue
            pairs = [
                (old.get("reward", 0.0) - new.get("reward", 0.0), old, new)
                for old, new in zip(first.rows, other.rows, strict=False)
            ]
            finite = [pair for pair in pairs if math.isfinite(pair[0])]
            for _, old, new in sorted(finite, key=lambda pair: pair[0])[:2]:
                self._print(f"  prompt   {cut(str(new.get('prompt', '')), LINE_WIDTH - 11)}")
                for word, row in (("before", old), ("after", new)):
                    reward = f"  reward {short_number(row.get('reward', 0.0))}"
                    completion = answer(str(row.get("completion", "")))
                    text = cut(completion, LINE_WIDTH - 11 - len(reward))
                    self._print(f"  {word:<8} {text}{reward}")

    def _point(self, status: FinalStatus) -> None:
        run = self._run_dir
        saved = sorted(run.glob("checkpoints/*/manifest.json"), key=lambda x: x.stat().st_mtime)
        if status in ("failed", "interrupted"):
            where = str(saved[-1].parent) if saved else "none"
            self._print(f"Saved    {where}")
            self._name_secrets()
            again = self._again()
            if (trial := self._trial()) is None:
                self._print(f"Next     {again}")
            else:  # a function is about to be corrected: its file will not be the one that ran
                trust = (
                    " --trust" if any(reward.function for reward in self._config.rewards) else ""
                )
                self._print(f"Next     {trial}")
                self._print(f"Then     {again}{trust}")
            return
        if (run / "model").is_dir():
            self._print(f"Model    {run}/model")
        if (run / "best").is_dir() and self._best is not None:
            score, step = self._best
            self._print(f"Best     {run}/best  {short_number(score)} at iteration {step}")
        if (run / "reward.png").is_file():
            self._print(f"Picture  {run}/reward.png")
        self._print(f"Report   {run}/report.html")
        if parts := offline_parts(run):
            self._print(f"W&B      {shlex.join(['wandb', 'sync', *map(str, parts)])}")
        self._print_next(run)
        if status == "converged":
            self._print(f"Go on    {self._again({'eval.patience': None})}")

    def _print_next(self, run: Path) -> None:
        """Print what to do with a model that was learned."""
        if self._config.reward_model.num_epochs:
            self._print(f"Card     {run}/model/README.md")
            model = shlex.quote(f"{run}/model")
            self._print(f"Next     llmgym rewards check {model} --data FILE")
        elif named_in(self._config):
            self._print(f"Next     {call(self._config, run)}")
        elif (run / "model").is_dir() and not self._config.is_control:
            self._name_secrets()
            beside = " --base" if self._config.ppo.num_iterations else ""  # else it is the model
            self._print(f"Next     llmgym play {shlex.quote(str(run))}{beside}")

    def _again(self, changes: Mapping[str, None] | None = None) -> str:
        """Return what continues the run, by a command or from Python, with settings set to null."""
        if named_in(self._config):
            return call(self._config, self._run_dir, changes)
        return " ".join([continuing(self._run_dir), *(f"--{name} null" for name in changes or ())])

    def _name_secrets(self) -> None:
        """Name the variables that whoever continues or tries the run has to set first."""
        for name in secret_variables(self._config):
            if name not in os.environ:
                self._print(f"Before   export {name}=VALUE")

    def _trial(self) -> str | None:
        """Return the command that tries the reward, where it is why the run failed."""
        named = [value for reward in self._config.rewards for value in reward.source.values()]
        if (
            not named
            or named_in(self._config)
            or "RewardError" not in read_status(self._run_dir).get("reason", "")
        ):
            return None
        path = env_kwargs(self._config).get("path")
        rows = [] if path is None else ["--data", str(path)]
        return shlex.join(["llmgym", "rewards", "check", named[0], *rows])

    def state_dict(self) -> dict[str, Any]:
        """Return what the closing block tells of the time before a resume."""
        return {
            "alarms": self._alarms.state_dict(),
            "best": self._best,
            "stale": self._stale,
        }
