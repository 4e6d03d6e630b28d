"""`llmgym export`: a run's model or a GGUF file as a plain folder, checked to be the same model."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from trainers.cli.options import RunArgument, parse_options
from trainers.errors import CheckpointError, ConfigError

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Options:
    """Write a run's model, or a GGUF file, as a Hugging Face folder; check that it is the same."""

    target: RunArgument = None
    """A run folder or a .gguf file; the newest run without one."""
    out: Path = tyro.MISSING
    """The folder to write; it must not exist."""
    to: Literal["hf"] = "hf"
    """The format: a Hugging Face folder."""
    best: bool = False
    """The model with the best held-out score instead of the last."""


def copied(source: Path, out: Path) -> Path:
    """Copy a folder aside and give it its name in one step.

    Raises:
        ConfigError: `out` exists.
        CheckpointError: it cannot be written.
    """
    _refuse_existing(out)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in sorted((source, *source.rglob("*"))):  # copytree copies a run's private modes
            target = draft / path.relative_to(source)
            target.mkdir() if path.is_dir() else shutil.copyfile(path, target)
        draft.rename(out)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {out}: {error.strerror or error}. Name another folder: --out DIR"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def unpacked(source: str, out: Path) -> Path:
    """Write a GGUF file's model and tokenizer as a folder, float32.

    Raises:
        ConfigError: `out` exists, or the file does not load.
        CheckpointError: it cannot be written.
    """
    from trainers.config import Config, ModelConfig
    from trainers.export.folders import replacing
    from trainers.models.loading import load_causal_lm, load_tokenizer

    _refuse_existing(out)
    tokenizer = load_tokenizer(Config(model=ModelConfig(path=source)))
    model = load_causal_lm(source)
    with replacing(out) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    return out


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists. Name another folder: --out DIR")


def max_logprob_difference(source: Path, out: Path) -> float:
    """Return the largest difference of log-probabilities: ours of `source`, theirs of `out`.

    Theirs is plain transformers in float32, without anything of this package.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainers.batch import TextInputs
    from trainers.models.causal_lm import CausalPolicy
    from trainers.models.loading import load_causal_lm

    plain = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    AutoTokenizer.from_pretrained(out)
    ours = CausalPolicy(load_causal_lm(str(source)), temperature=1.0, chunk=512).float().eval()
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(plain.config.get_text_config().vocab_size, (2, 24), generator=rng)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    inputs = TextInputs(tokens=tokens, attention_mask=mask, num_prompt=8)
    with torch.no_grad():
        got = ours(inputs, mask[:, 8:]).logprobs
        logits = plain(tokens, attention_mask=mask).logits[:, 7:-1]
    expected = logits.log_softmax(-1).gather(-1, tokens[:, 8:, None]).squeeze(-1)
    return float((got - expected).abs().max())


def _told(apart: float) -> str:
    if apart == 0:
        return "log-probabilities are equal to the last bit"
    return f"log-probabilities differ by at most {apart:.1g}"


def main(argv: Sequence[str]) -> int:
    """Copy, check, and say where."""
    options: Options = parse_options(Options, argv, "export")
    from trainers.inference.targets import target_of

    target = target_of(options.target, "best" if options.best else "model")
    source = Path(target.model)
    from trainers.models.gguf import is_gguf
    from trainers.models.hf_logging import without_progress_bars

    if not source.is_dir() and not is_gguf(target.model):
        raise ConfigError(f"{target.name} is no folder; export takes a run or a .gguf file.")
    without_progress_bars()
    if is_gguf(target.model):
        out = unpacked(target.model, options.out)
    else:
        out = copied(source, options.out)
    if target.config.is_control:
        from trainers.models.mlp import load_mlp

        load_mlp(out)
        print(f"{out}: the policy of {target.name}")
        return 0
    apart = max_logprob_difference(source, out)
    if not apart <= TOLERANCE:
        raise CheckpointError(
            f"{out} does not compute what {target.name} does: log-probabilities differ by "
            f"{apart:.2g}, more than {TOLERANCE:g}. Do not use it."
        )
    print(f"{out}: the same model, checked with plain transformers: {_told(apart)}")
    return 0
