"""`llmgym serve`: start the server of vLLM, transformers or llama.cpp with a model, and wait."""

import secrets
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from trainers.cli.options import RunArgument, parse_options
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from trainers.inference.endpoint_files import EndpointFile
    from trainers.inference.server_process import ServerProcess
    from trainers.inference.servers import ServeSettings

LEAST_TOKEN = 16
ANY_HOST = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Options:
    """Serve a model over HTTP with the API of OpenAI, until Ctrl-C or SIGTERM."""

    target: RunArgument = None
    """A run, a model folder or a .gguf file; the newest run without one."""
    engine: Literal["vllm", "transformers", "llama-cpp"] = "vllm"
    """Whose server: vLLM's, transformers' own, or llama.cpp's; make engines installs the first and
    the last."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine alone unless you name another."""
    port: int = 8000
    """Port to listen at."""
    name: str | None = None
    """What requests call the model; its path without one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Type of the weights; auto is that of the folder. int8 is for llama-cpp."""
    context: int = 0
    """Most tokens of prompt and response; 0 is what the model takes."""
    rows: int = 16
    """Responses that are written together at most."""
    adapters: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=FOLDER of a LoRA adapter, for vllm; repeat it."""
    drafter: str | None = None
    """A smaller model of the same vocabulary that drafts, for vllm and llama-cpp."""
    draft_tokens: int = 4
    """Tokens that are drafted before the model verifies."""
    threads: int | None = None
    """Threads of the server; the engine's own choice without one."""
    cache_gb: float = 1.0
    """Memory for keys and values, for vllm on a CPU; on a GPU vLLM takes what is free."""
    engine_args: str = ""
    """More arguments for vllm and transformers: --engine-args="--tensor-parallel-size 4"."""
    wait_seconds: float = 600.0
    """How long the server may take until it answers."""


def _token(settings: "ServeSettings") -> str | None:
    """Return the token of the environment, or a new one; None where the engine takes none.

    Raises:
        ConfigError: it is too short.
    """
    import os

    from llmgym.endpoint import TOKEN_VARIABLE

    if settings.engine == "transformers":
        return None
    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and len(token) < LEAST_TOKEN:
        raise ConfigError(f"{TOKEN_VARIABLE} is shorter than {LEAST_TOKEN} characters.")
    return token or secrets.token_hex(24)


def _settings(options: Options) -> "ServeSettings":
    from trainers.inference.servers import ServeSettings
    from trainers.inference.targets import target_of

    for name in ("rows", "draft_tokens", "cache_gb", "wait_seconds"):
        least = 1 if name in ("rows", "draft_tokens") else 0
        if not getattr(options, name) >= least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}.")
    if options.context < 0:
        raise ConfigError("--context must be 0 or more.")
    target = target_of(options.target)
    if target.config.is_control:
        raise ConfigError(f"{target.name} is a policy over numbers and writes no text.")
    adapters: dict[str, str] = {}
    for pair in options.adapters:
        name, _, folder = pair.partition("=")
        adapters[name] = folder
    for name, folder in adapters.items():
        if not (Path(folder) / "adapter_config.json").is_file():
            raise ConfigError(f"--adapters {name}={folder}: no adapter_config.json is there.")
    drafter = None if options.drafter is None else target_of(options.drafter).model
    return ServeSettings(
        engine=options.engine,
        model=target.model,
        name=options.name or target.name,
        host=options.host,
        port=options.port,
        dtype=options.dtype,
        context=options.context,
        rows=options.rows,
        adapters=adapters,
        drafter=drafter,
        draft_tokens=options.draft_tokens,
        threads=options.threads,
        cache_gb=options.cache_gb,
        more=tuple(shlex.split(options.engine_args)),
    )


def main(argv: Sequence[str]) -> int:
    """Start the server, print how to use it, and return its exit code."""
    options: Options = parse_options(Options, argv, "serve")
    from trainers.inference.server_process import check_port
    from trainers.inference.servers import check_engine_takes, engine_python

    settings = _settings(options)
    check_engine_takes(settings)
    engine_python(settings.engine)
    check_port(settings.host, settings.port)
    settings = replace(settings, token=_token(settings))
    from trainers.inference.serving import check_room, prepared
    from trainers.models.hf_logging import without_progress_bars

    without_progress_bars()
    if settings.drafter is not None:
        _check_drafter(settings)
    # A signal raises KeyboardInterrupt until the server runs, so that the folder is removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="llmgym-serve-") as folder:
            check_room(settings, Path(folder))
            served = prepared(settings, Path(folder))
            for note in served.notes:
                print(note)
            return _run(served.settings, options.wait_seconds)
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_drafter(settings: "ServeSettings") -> None:
    """Refuse a drafter of another vocabulary.

    Raises:
        ConfigError: it has one.
    """
    from trainers.config import Config, ModelConfig
    from trainers.models.loading import load_tokenizer

    own, drafters = (
        load_tokenizer(Config(model=ModelConfig(path=path))).get_vocab()
        for path in (settings.model, str(settings.drafter))
    )
    if own != drafters:
        raise ConfigError(
            f"the drafter {settings.drafter} has another vocabulary than {settings.model}: it "
            "cannot draft for it. Take one that was made from it: llmgym compress"
        )


def _run(settings: "ServeSettings", wait_seconds: float) -> int:
    from trainers.inference.endpoint_files import EndpointFile, endpoint_folder, write_endpoint
    from trainers.inference.server_process import ServerProcess
    from trainers.inference.servers import server_command

    log = endpoint_folder() / f"{settings.port}.log"
    host = "127.0.0.1" if settings.host in ANY_HOST else settings.host
    shown = f"[{host}]" if ":" in host else host
    process = ServerProcess(server_command(settings), log)
    restore = process.stop_at_signals()
    endpoint = EndpointFile(
        url=f"http://{shown}:{settings.port}/v1",
        engine=settings.engine,
        model=settings.model if settings.engine == "transformers" else settings.name,
        token=settings.token,
        pid=process.pid,
        log=str(log),
    )
    write_endpoint(settings.port, endpoint)
    try:
        print(f"starting {settings.engine}; what it prints: {log}", flush=True)
        if process.wait_until_healthy(host, settings.port, wait_seconds):
            print("\n".join(_ready(settings, endpoint)), flush=True)
        code = process.wait()
        if process.was_stopped:
            return code
        print(f"LostServerError: {process.ended_message()}", file=sys.stderr)
        return code or 1
    finally:
        process.stop()
        restore()
        _leave_behind(settings.port, process)


def _leave_behind(port: int, process: "ServerProcess") -> None:
    """Remove the file of a server that was stopped, and note how another one ended."""
    from trainers.inference.endpoint_files import endpoint_path, note_end

    if process.was_stopped:
        with suppress(FileNotFoundError):
            endpoint_path(port).unlink()
    else:
        note_end(port, process.exit_code or 0)


def _ready(settings: "ServeSettings", endpoint: "EndpointFile") -> list[str]:
    from llmgym.endpoint import TOKEN_VARIABLE
    from trainers.inference.endpoint_files import endpoint_path

    lines = [f"ready: {endpoint.url}   model: {endpoint.model}"]
    if settings.token is None:
        lines.append("no token: this server asks for none, and listens on this machine alone")
    else:
        lines.append(f"token: in {endpoint_path(settings.port)}, or what {TOKEN_VARIABLE} held")
    return [*lines, "next:", f"llmgym bench --endpoint {endpoint.url}"]
