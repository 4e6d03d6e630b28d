"""`llmgym export`: a run's model as a plain folder, int8 weights or GGUF; a GGUF file as a folder.

What is written is checked in a fresh process to compute the same.
"""

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
    """Write a run's model for other programs, or a GGUF file as a folder, and check it."""

    target: RunArgument = None
    """A run, a model folder or a .gguf file; the newest run without one."""
    out: Path = tyro.MISSING
    """The folder, or the .gguf file, to write; it must not exist."""
    to: Literal["hf", "int8", "gguf"] = "hf"
    """The format: a Hugging Face folder, one with int8 weights, or a GGUF file for llama.cpp."""
    gguf_type: Literal["f32", "bf16", "f16", "q8_0"] = "q8_0"
    """Type of the matrices in a GGUF file."""
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


def _refuse_other_type(options: Options) -> None:
    if options.to == "gguf" and options.out.suffix.lower() != ".gguf":
        raise ConfigError(f"--to gguf writes a file: --out {options.out}.gguf")
    if options.to != "gguf" and options.gguf_type != "q8_0":
        raise ConfigError("--gguf-type is the type of a GGUF file: add --to gguf")
    if options.to != "gguf" and options.out.suffix.lower() == ".gguf":
        raise ConfigError(f"--out {options.out} names a GGUF file: add --to gguf")
    _refuse_existing(options.out)


def _int8(source: str, out: Path) -> int:
    """Write int8 weights and print what came of it."""
    from trainers.export.int8 import export_int8

    made = export_int8(source, out)
    print(
        f"{out}: int8 weights, {made.bytes / 1e6:.1f} MB, checked in a fresh process; on random "
        f"tokens a logit differs from the dense model's by at most {made.difference:.1%} of the "
        f"largest\nnext:\nllmgym bench {source} {out}"
    )
    return 0


def _gguf(source: str, options: Options) -> int:
    """Write a GGUF file and print what came of it."""
    from trainers.export.gguf import export_gguf
    from trainers.inference.serving import chat_of

    chat = chat_of(source)
    if chat is None:
        raise ConfigError(f"{source} has no chat template: copy one there as chat_template.jinja.")
    made = export_gguf(source, options.out, chat, kind=options.gguf_type)
    checked = "checked in a fresh process" if made.is_loaded else "its tensors checked"
    print(
        f"{options.out}: {options.gguf_type}, {made.bytes / 1e6:.1f} MB, {checked}; on random "
        f"tokens a logit differs from the dense model's by at most {made.difference:.1%} of the "
        f"largest\nnext:\nllmgym serve {options.out} --engine llama-cpp"
    )
    return 0


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
    _refuse_other_type(options)
    if options.to == "int8":
        return _int8(target.model, options.out)
    if options.to == "gguf":
        return _gguf(target.model, options)
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
