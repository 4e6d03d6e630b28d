"""Generation by vLLM, in a process and an environment of its own; imports no vllm.

Not exact: vLLM draws by itself and rounds otherwise. The trainer computes old log-probabilities
anew, logs how far vLLM's are from them, and stops beyond `generation.tolerance`. A run repeats
itself as far as vLLM does: each request has a seed of its own, a function of (seed, iteration,
sequence index, position), but logits depend in their last bits on which rows share a step.
"""

import math
import os
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from trainers.config import Config
from trainers.distributed.collectives import World, broadcast, gather
from trainers.errors import ConfigError, GenerationError, LostServerError
from trainers.generation.base import Generator, GeneratorParts, Request, Response, Sampling
from trainers.generation.sampling import stream_seed
from trainers.generation.serving.client import ServerClient
from trainers.generation.serving.pool import Endpoint, Pool
from trainers.generation.serving.process import INSTALLED, PYTHON_VARIABLE, LocalWorker
from trainers.generation.serving.protocol import TOKEN_VARIABLE
from trainers.generation.serving.weights import write_weights
from trainers.models.adapters import merged_one_by_one, plain_names

WORKER = "trainers.generation.serving.vllm_worker"
PROBE = "import importlib.util as u; assert u.find_spec('vllm'), 'vllm'; import " + (
    "trainers.generation.serving.protocol"
)
PROBE_SECONDS = 60.0
POLICY_PREFIX = "model."
"""What the names of a policy's language model begin with, within the policy."""


def check_engine(config: Config) -> None:
    """Refuse an engine that is not there, before weights load.

    Raises:
        ConfigError: no environment with vLLM.
        LostServerError: a server does not answer.
        GenerationError: a server is another program, or of another version.
    """
    generation = config.generation
    for url in generation.servers:
        token = os.environ.get(TOKEN_VARIABLE, "")
        try:
            ServerClient(url, timeout=generation.timeout_seconds, token=token).status()
        except LostServerError as error:
            raise LostServerError(
                f"generation.servers: {error}. Start it: ENVIRONMENT/bin/python -m {WORKER} --port "
                "PORT, or take the address out of the list."
            ) from error
    if not generation.servers:
        find_python(config)


def find_python(config: Config) -> str:
    """Return the interpreter of vLLM's environment.

    Raises:
        ConfigError: there is none, or it lacks vLLM or this package.
    """
    named = config.generation.vllm.python or os.environ.get(PYTHON_VARIABLE)
    python = Path(named) if named else INSTALLED
    if not python.is_file():
        where = f"{named} is no file" if named else "no environment with vLLM is known"
        raise ConfigError(
            f"generation.engine vllm: {where}. vLLM needs an environment of its own: make engines "
            f"installs one. Name another by --generation.vllm.python ENVIRONMENT/bin/python or by "
            f"the variable {PYTHON_VARIABLE}."
        )
    try:
        done = subprocess.run(
            [python, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"generation.engine vllm: {python} does not run: {error}") from error
    if done.returncode:
        lacking = (done.stderr.strip().splitlines() or ["it ended"])[-1]
        raise ConfigError(
            f"generation.engine vllm: {python} lacks something ({lacking}). It needs vllm, and "
            f"this package without its requirements: {python} -m pip install --no-deps llmgym-rl, "
            "or -e . of this checkout."
        )
    return str(python)


@final
class VllmGenerator(Generator):
    """Writes with servers that hold vLLM, and sends them each policy version.

    Args:
        parts: `policy` says what is sent and described; it is never run.
        pool: the servers, open.
        writes: this rank writes the weights file.
    """

    exact = False

    def __init__(self, parts: GeneratorParts, pool: Pool, *, writes: bool) -> None:
        self._pool, self._writes = pool, writes
        self._eos_token_ids = frozenset(parts.eos_token_ids)
        self._dtype = dtype_of(parts)
        self._policy = parts.policy
        self._names = {
            name: name.removeprefix(POLICY_PREFIX)
            for name in plain_names(parts.policy)
            if name.startswith(POLICY_PREFIX)
        }
        self._folder = tempfile.TemporaryDirectory(prefix="llmgym-weights-")
        self._version = -1

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._version

    def describe(self) -> str:
        """Return what a run says of its generator in the header."""
        return f"{self._pool.engine}, not exact: see policy/generator_logp_diff"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Write one response to each request, in the order of the requests; a collective.

        Raises:
            LostServerError: on every rank, where one has no server left.
            GenerationError: on every rank, where one was refused, or logits are not finite.
        """
        asked = [_asked(request, sampling) for request in requests]
        drawn = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "greedy": sampling.greedy,
        }
        return together(
            lambda: [
                self._response(ids, logprobs)
                for ids, logprobs in self._pool.write(asked, drawn, self._version)
            ]
        )

    def _response(self, ids: Sequence[int], logprobs: Sequence[float]) -> Response:
        if not all(map(math.isfinite, logprobs)):
            raise GenerationError(
                "the engine's log-probabilities are not finite: the weights are broken.\n"
                "Continue from an earlier checkpoint, often at a lower rate: "
                "--ppo.learning-rate 1e-6"
            )
        return Response(
            token_ids=tuple(ids),
            logprobs=tuple(logprobs),
            finish_reason="stop" if ids[-1] in self._eos_token_ids else "length",
            policy_version=self._version,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Send the weights of a version to the servers; a collective.

        They are written to a file as they come, adapters merged. It stays until the next version: a
        server that was lost is given them again.

        Raises:
            LostServerError: on every rank, where no server of one took them.
            GenerationError: on every rank, where a server of one refused them.
        """
        self._version = -1
        path = Path(self._folder.name, "policy") if self._writes else None
        merged = merged_one_by_one(self._policy, weights)
        write_weights(path, merged, names=self._names, dtype=self._dtype, version=version)
        together(lambda: None if path is None else self._pool.push(path, version))
        self._version = version

    def sleep(self) -> None:
        """Let workers of this run give memory back, on a GPU; `load_weights` wakes them."""
        if together(self._pool.sleep):
            self._version = -1

    def stop(self) -> None:
        """Let `generate`, which runs in another thread, raise soon, on every rank."""
        self._pool.stop()

    def close(self) -> None:
        """End the workers of this run."""
        self._pool.close()
        self._folder.cleanup()


def _asked(request: Request, sampling: Sampling) -> dict[str, Any]:
    return {
        "token_ids": list(request.token_ids),
        "max_new_tokens": request.max_new_tokens,
        "seed": stream_seed(sampling.seed, sampling.iteration, request.index, request.position),
    }


def together(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the work returns
    """Do `work` on every rank; where it fails on one, raise on all of them; a collective."""
    result, failure = None, None
    try:
        result = work()
    except GenerationError as error:
        failure = error
    told = gather(None if failure is None else (type(failure), str(failure)))
    if failure is not None:
        raise failure
    for kind, text in filter(None, told):
        raise kind(text)
    return result


def dtype_of(parts: GeneratorParts) -> torch.dtype:
    """Return the type that vLLM computes in: that of the trainer's forward."""
    return parts.autocast or next(parts.policy.parameters()).dtype


def described(parts: GeneratorParts) -> dict[str, Any]:
    """Return the description of model, tokenizer and engine that servers are sent."""
    assert parts.config is not None, "vLLM is told the settings of the run"
    generation, model = parts.config.generation, parts.policy.model
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    config.pop("_name_or_path", None)
    limit = model.config.get_text_config().max_position_embeddings
    return {
        "model": config,
        "tokenizer": parts.tokenizer,
        "engine": {
            "dtype": str(dtype_of(parts)).removeprefix("torch."),
            "max_model_len": min(parts.max_tokens or limit, limit),
            "max_num_seqs": generation.batch_size,
            "cache_gb": generation.vllm.cache_gb,
            "eos_token_ids": sorted(parts.eos_token_ids),
            "absent": [list(span) for span in parts.policy.scorer.absent],
            "options": dict(generation.vllm.options),
        },
    }


def make_generator(parts: GeneratorParts) -> Generator:
    """Return the generator of `generation.engine vllm`.

    Raises:
        ConfigError: no environment with vLLM.
        LostServerError: a server does not answer.
        GenerationError: a server holds another model, or cannot run this one.
    """
    assert parts.config is not None, "vLLM is told the settings of the run"
    generation, world = parts.config.generation, World.from_launcher()
    session = secrets.token_hex(8)
    if generation.servers:
        session, owns = broadcast(session), world.is_main
        token = os.environ.get(TOKEN_VARIABLE, "")
        endpoints = [
            Endpoint(timeout=generation.timeout_seconds, token=token, url=url)
            for url in generation.servers
        ]
    else:
        worker = LocalWorker(
            [find_python(parts.config), "-m", WORKER],
            log_folder=_log_folder(parts.config),
            variables=_device(world),
        )
        owns, endpoints = True, [Endpoint(timeout=generation.timeout_seconds, worker=worker)]
    pool = Pool(endpoints, session=session, described=described(parts), owns=owns)
    try:
        together(pool.open)
    except GenerationError:
        pool.close()
        raise
    return VllmGenerator(parts, pool, writes=owns)


def _log_folder(config: Config) -> Path | None:
    """Return the folder of the run, where it has one."""
    folder = Path(config.run.dir, config.run.name)
    return folder if folder.is_dir() else None


def _device(world: World) -> dict[str, str]:
    """Return the variable that gives a worker the GPU of its rank."""
    if not torch.cuda.is_available():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    return {"CUDA_VISIBLE_DEVICES": devices[world.local_rank]}
