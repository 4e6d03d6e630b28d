"""The command `llmgym`: one file a verb, imported when that verb runs.

Exit codes: 0 done, or saved on request; 1 failed; 2 wrong usage or settings.
"""

import difflib
import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType, TracebackType

from trainers.distributed.launcher import limit_spinning  # its import notes who started us
from trainers.errors import (
    SAID_ELSEWHERE,
    BackendError,
    CheckpointError,
    ConfigError,
    GenerationError,
    MeasurementError,
    NonFiniteError,
)
from trainers.loggers.formatting import escaped
from trainers.redaction.redact import redact

VERBS = {
    "train": "train by the settings of a preset or of your files",
    "sft": "the supervised stage alone, with the arguments of train",
    "reward-model": "learn to judge: classes, or which of two responses is better",
    "plan": "what a run would take: memory, disk, time; the arguments of train",
    "eval": "held-out score with its interval, also against another model",
    "play": "talk to a model and see its reward",
    "envs": "list, show or check environments, or start one of your own",
    "rewards": "try a reward on a few rows, before a model is trained on it",
    "data": "look at a data file before training on it",
    "compress": "make a model smaller and faster under a budget, as a plain folder",
    "export": "copy a run's model as a plain Hugging Face folder, verified",
    "bench": "how fast models write, against one another; or a server under load",
    "serve": "serve a model by vLLM, transformers or llama.cpp",
    "report": "one page of a run that opens from disk, or several runs compared",
    "runs": "list the runs of a folder, or show what differs between two",
    "launch": "print a script that starts a run on many GPUs: deepspeed, torchrun, slurm",
    "schema": "every setting: its meaning, type, range and default",
    "doctor": "what this machine has, and the fix for what it lacks",
}


def command_list() -> str:
    """Return what `llmgym --help` prints."""
    lines = ["Usage: llmgym VERB [ARGUMENTS]    llmgym VERB --help says more", ""]
    lines += [f"  {verb:<12} {what}" for verb, what in VERBS.items()]
    lines += ["", "Start with: llmgym train quickstart", "--debug shows the traceback of an error."]
    return "\n".join(lines)


def _of_runs(verb: str) -> ModuleType | None:
    """Import the file of a verb that looks at runs and models; None if it is none."""
    match verb:
        case "eval":
            from trainers.cli import eval as module
        case "play":
            from trainers.cli import play as module
        case "compress":
            from trainers.cli import compress as module
        case "export":
            from trainers.cli import export as module
        case "bench":
            from trainers.cli import bench as module
        case "serve":
            from trainers.cli import serve as module
        case "report":
            from trainers.cli import report as module
        case "runs":
            from trainers.cli import runs as module
        case _:
            return None
    return module


def _of_parts(verb: str) -> ModuleType | None:
    """Import the file of a verb that looks at what runs are made of; None if it is none."""
    match verb:
        case "envs":
            from trainers.cli import envs as module
        case "rewards":
            from trainers.cli import rewards as module
        case "data":
            from trainers.cli import data as module
        case "launch":
            from trainers.cli import launch as module
        case "schema":
            from trainers.cli import schema as module
        case "doctor":
            from trainers.cli import doctor as module
        case _:
            return None
    return module


def _run(verb: str, argv: Sequence[str]) -> int:
    """Import the file of a verb and run it."""
    if verb in ("train", "sft", "reward-model", "plan"):
        from trainers.cli import train

        return train.main(argv, verb=verb)
    module = _of_runs(verb) or _of_parts(verb)
    if module is None:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f'no verb "{verb}".{hint}\nVerbs: {", ".join(VERBS)}')
    return module.main(argv)


def _usage_errors() -> tuple[type[Exception], ...]:
    """Return what means wrong usage; imported only once something was raised."""
    from gymnasium.error import NameNotFound, NamespaceNotFound, VersionNotFound

    from llmgym.errors import PluginError, RewardNotFound, TaskSourceError

    ours = ConfigError, PluginError, RewardNotFound, TaskSourceError
    return *ours, NameNotFound, NamespaceNotFound, VersionNotFound


def _failures() -> tuple[type[Exception], ...]:
    """Return the message of an error, without a traceback."""
    from gymnasium.error import Error  # every error of llmgym is one

    ours = BackendError, CheckpointError, GenerationError, MeasurementError, NonFiniteError
    return *ours, Error, OSError


def _say(error: Exception) -> None:
    """Print an error to stderr; what every rank finds alike, one of them says."""
    if _reader_left(error):
        return
    is_main = os.environ.get("RANK", "0") == "0"
    is_said = any(SAID_ELSEWHERE in getattr(x, "__notes__", ()) for x in (error, error.__cause__))
    if not is_said and (is_main or not isinstance(error, ConfigError)):
        text = f"{type(error).__name__}: {error}{_unnamed(error)}"
        print(escaped(redact(text)), file=sys.stderr)


def _unnamed(error: Exception) -> str:
    """Return what to do about an error of the system that names no file, as of a full disk."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is not None:
        return ""
    return ". No file is named: it is the output of this command, or --debug shows the line."


def _reader_left(error: Exception) -> bool:
    """Tell whether what reads our output, such as `head`, has enough of it; drop the rest then."""
    if not isinstance(error, BrokenPipeError):
        return False
    output = select.poll()
    output.register(sys.stdout, 0)  # errors alone
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class _Stderr(logging.Handler):
    """Prints warnings to what is sys.stderr now: a live line may have taken its place.

    Errors go to the log of the run with their traceback; here `_say` has the message.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if record.levelno == logging.WARNING:
            with suppress(OSError):  # a lost terminal ends no run
                print(escaped(redact(self.format(record))), file=sys.stderr)


def _warn_on_stderr() -> None:
    """Print our packages' warnings as `warning: ...`, on rank 0; others' deprecations go."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    if os.environ.get("RANK", "0") != "0":
        return
    handler = _Stderr(logging.WARNING)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    for name in ("llmgym", "trainers"):
        package = logging.getLogger(name)
        package.propagate = False
        if not any(isinstance(handler, _Stderr) for handler in package.handlers):
            package.addHandler(handler)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nobody expected, without secrets."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(escaped(redact(text)), end="", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(command_list())
        return 0
    _warn_on_stderr()
    sys.excepthook = _show
    limit_spinning()
    try:
        return _run(words[0], words[1:])
    except SystemExit as stop:  # the parser of a verb's options has said why
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if is_debug or error.name not in (
            "torch",
            "transformers",
            "safetensors",
            "scipy",
            "jinja2",
            "matplotlib",
        ):
            raise
        print(f"{words[0]} needs {error.name}, which is not installed.", file=sys.stderr)
        print('pip install "llmgym-rl[train]"', file=sys.stderr)
        return 1
    except _usage_errors() as error:
        if is_debug:
            raise
        _say(error)
        return 2
    except _failures() as error:
        if is_debug:
            raise
        _say(error)
        return 1
