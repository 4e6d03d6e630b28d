"""What RUN|MODEL on the command line means: a model and its settings. No torch."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from trainers.config import Config, TokenizerConfig
from trainers.config.files import read
from trainers.errors import ConfigError

RUNS = Path("runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model and the settings it is looked at with.

    Attributes:
        name: as it is shown.
        model: a Hugging Face folder, hub id or GGUF file; of a control run, the folder of its MLP.
        config: of its run, or the default's.
        run_dir: its run folder, or None.
        tokenizer: settings that replace the model's own; what a run has written has its own.
    """

    name: str
    model: str
    config: Config
    run_dir: Path | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


def newest_run(folder: Path = RUNS) -> Path:
    """Return the run folder that was started last, and say which it is: nobody has named it.

    Raises:
        ConfigError: there is none.
    """
    configs = sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if not configs:
        raise ConfigError(f"there is no run in {folder}/. Start one: llmgym train quickstart")
    print(f"the newest run: {configs[-1].parent}", file=sys.stderr)
    return configs[-1].parent


def _answering(target: Target) -> Target:
    """Refuse a reward model, whose folder would load as a language model with a random head."""
    if target.config.reward_model.num_epochs:
        raise ConfigError(
            f"{target.name} is a reward model: it judges and does not answer. Its figures are in "
            f"{target.model}/README.md, and that folder is a plain Hugging Face one already."
        )
    return target


def target_of(word: str | None, which: str = "model") -> Target:
    """Return what a run folder, a model folder inside or outside of one, or a hub id names.

    Args:
        word: what was typed; None is the newest run.
        which: the folder of a run that is meant: model, best or base.

    Raises:
        ConfigError: the run has no such model yet, it is a reward model, or the settings do not
            load.
    """
    path = newest_run() if word is None else Path(word)
    if (path / "config.yaml").is_file():
        config = read([path / "config.yaml"])
        if not (path / which).is_dir():
            if which == "base" and config.model.path is not None:
                return Target(
                    name="base",
                    model=config.model.path,
                    config=config,
                    run_dir=path,
                    tokenizer=config.tokenizer,
                )
            raise ConfigError(
                f"{path} has no {which}/ yet. Continue it: "
                f"llmgym train -c {path}/config.yaml --resume"
            )
        name = f"{path}/{which}"
        return _answering(Target(name=name, model=name, config=config, run_dir=path))
    inside = path.parent / "config.yaml"
    if path.is_dir() and inside.is_file():
        settings = read([inside])
        return _answering(
            Target(name=str(path), model=str(path), config=settings, run_dir=path.parent)
        )
    looks_local = word is not None and word.startswith((".", "/", "runs/"))
    if looks_local and not path.is_dir() and path.suffix.lower() != ".gguf":
        raise ConfigError(
            f"{path} is neither a run folder nor a model folder. What is there:\nllmgym runs list"
        )
    return Target(name=str(word), model=str(word), config=Config())
