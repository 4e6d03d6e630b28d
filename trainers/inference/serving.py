"""What is served: a folder that says all that an engine needs, or a GGUF file made of it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from llmgym.rewards.context import longest_sequence
from trainers.config import Config, ModelConfig
from trainers.errors import ConfigError
from trainers.export.gguf import GgufType, export_gguf
from trainers.inference.servers import ServeSettings
from trainers.models.chat import ChatFormat
from trainers.models.gguf import is_gguf
from trainers.models.int8 import is_int8
from trainers.models.loading import load_chat, load_config, load_tokenizer
from trainers.redaction import text_files

GGUF_TYPES: Mapping[str, GgufType] = {
    "float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "q8_0",
}  # fmt: skip
"""Types of weights in a GGUF file, by the name that they have here."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModel:
    """A model as it is served.

    Attributes:
        settings: with the model's folder or file, type and context.
        notes: what a user is told of it.
    """

    settings: ServeSettings
    notes: tuple[str, ...]


def chat_of(model: str) -> ChatFormat | None:
    """Return a model's chat format with every end token; None where it has no chat template.

    Raises:
        ConfigError: it has no tokenizer, or a template that does not end.
    """
    config = Config(model=ModelConfig(path=model))
    tokenizer = load_tokenizer(config)
    return load_chat(config, tokenizer, env="serving") if tokenizer.chat_template else None


def prepared(settings: ServeSettings, place: Path) -> PreparedModel:
    """Return what an engine is started with.

    Args:
        settings: as they were asked for; a `dtype` "auto" is that of the weights, a `context` of 0
            is the model's.
        place: an empty folder for what is made for the engine; it lasts as long as the server.

    Raises:
        ConfigError: the engine cannot serve this model.
    """
    model = settings.model
    _check_served(settings)
    config = load_config(model)
    longest = longest_sequence(config)
    longest = int(longest) if longest < 2**31 else 2**31 - 1
    if settings.context > longest:
        raise ConfigError(f"{model} takes {longest} tokens, not --context {settings.context}.")
    is_chosen = settings.dtype != "auto"
    dtype = settings.dtype if is_chosen else _dtype_of(model, config)
    settings = replace(settings, context=settings.context or longest, dtype=dtype)
    chat = chat_of(model)
    notes = [] if chat else [f"{model} has no chat template: /v1/completions only"]
    if settings.engine == "llama-cpp":
        return _as_gguf(settings, chat, place, notes)
    if is_int8(model) and not is_chosen:
        settings = replace(settings, dtype="bfloat16")
    if torch.cuda.is_available():
        settings = replace(settings, cache_gb=None)
    return PreparedModel(
        settings=replace(settings, model=with_end_tokens(model, chat, place)), notes=tuple(notes)
    )


def _dtype_of(model: str, config: object) -> str:
    if is_gguf(model):
        return "float32"
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def _check_served(settings: ServeSettings) -> None:
    model, engine = settings.model, settings.engine
    if is_gguf(model) and engine != "llama-cpp":
        raise ConfigError(f"{engine} is not given GGUF files here. Add --engine llama-cpp")
    if is_int8(model) and engine != "vllm":
        raise ConfigError(
            f"{model} holds int8 weights, which {engine} does not read. Serve it with --engine "
            "vllm, or the folder that it was made from with --engine llama-cpp --dtype int8."
        )
    if settings.dtype == "int8" and engine != "llama-cpp":
        raise ConfigError(
            f"{engine} serves int8 from a folder that holds it: llmgym export MODEL --to int8 "
            "--out DIR, then serve DIR with --engine vllm."
        )


def _as_gguf(
    settings: ServeSettings, chat: ChatFormat | None, place: Path, notes: list[str]
) -> PreparedModel:
    """Convert model and drafter where they are folders."""
    model, drafter = settings.model, settings.drafter
    if not is_gguf(model):
        model = _converted(model, chat, place / "model.gguf", settings.dtype)
        notes.append(
            f"{settings.model} was converted to GGUF ({settings.dtype}); to keep such a file: "
            f"llmgym export {settings.model} --to gguf --out FILE.gguf"
        )
    if drafter is not None and not is_gguf(drafter):
        drafter = _converted(drafter, chat_of(drafter), place / "drafter.gguf", settings.dtype)
    served = replace(settings, model=model, drafter=drafter)
    return PreparedModel(settings=served, notes=tuple(notes))


def _converted(source: str, chat: ChatFormat | None, file: Path, dtype: str) -> str:
    if chat is None:
        raise ConfigError(
            f"{source} has no chat template, which a GGUF file is given with its end tokens. Copy "
            "one into the folder as chat_template.jinja, or serve it with --engine vllm."
        )
    export_gguf(source, file, chat, kind=GGUF_TYPES[dtype])
    return str(file)


def with_end_tokens(model: str, chat: ChatFormat | None, place: Path) -> str:
    """Return a folder whose generation_config.json names every end token: the model's if it does.

    Engines read end tokens there; a template may end a turn with one that the file leaves out.
    """
    folder = Path(model)
    if chat is None or not folder.is_dir():
        return model
    file = folder / "generation_config.json"
    known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    ends = known.get("eos_token_id")
    named = ends if isinstance(ends, list) else [ends]
    if set(chat.eos_token_ids) <= set(named):
        return model
    made = place / folder.resolve().name
    made.mkdir()
    for path in folder.iterdir():
        if path.name != file.name:
            (made / path.name).symlink_to(path.resolve())
    described = {**known, "eos_token_id": list(chat.eos_token_ids)}
    text_files.write(made / file.name, json.dumps(described, indent=2) + "\n")
    return str(made)


def check_room(settings: ServeSettings, folder: Path) -> None:
    """Refuse a conversion that the disk has no room for.

    Raises:
        ConfigError: it has none.
    """
    if settings.engine != "llama-cpp" or is_gguf(settings.model):
        return
    files = Path(settings.model).glob("*.safetensors")
    needed = sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder} has {free / 2**30:.1f} GiB free, and the GGUF file of {settings.model} "
            f"takes up to {needed / 2**30:.1f} GiB. Set TMPDIR to a folder on another disk."
        )
