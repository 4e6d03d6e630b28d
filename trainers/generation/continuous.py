"""Generation by transformers' continuous batching: rows share pages of keys and values.

Not exact: transformers draws from torch's own generator, and logits depend in their last bits on
which rows share a step. The trainer computes old log-probabilities anew and stops beyond
`generation.tolerance`. A run repeats itself on one machine: the generator is seeded by (seed,
iteration, first sequence index), and its state is put back after each rollout.

It is made for GPUs. On a CPU `transformers` writes faster.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from trainers.config import Config
from trainers.errors import ConfigError, GenerationError, RolloutStoppedError
from trainers.generation.base import (
    Generator,
    GeneratorParts,
    Request,
    Response,
    Sampling,
)
from trainers.generation.sampling import stream_seed
from trainers.generation.transformers import caching
from trainers.models.causal_lm import CausalPolicy, hides_left_padding
from trainers.models.critic import SharedActorCritic

_PAGE_TOKENS = 32
"""Tokens of a page of keys and values."""
_PREFILL_TOKENS = 2048
"""Maximum number of prompt tokens that are read in one step."""
_PATIENCE = 0.2
"""Seconds between looks at whether the rollout was stopped, while no response is ready."""


def check_engine(config: Config) -> None:
    """Refuse what it cannot write with, before weights load.

    Raises:
        ConfigError: weights that no rank holds, rollouts ahead, a transformers without the engine.
    """
    for is_wrong, why, remedy in (
        (
            config.backend.name == "deepspeed" and config.backend.zero.stage == 3,
            "reads the complete policy on every rank, and backend.zero.stage 3 has none that "
            "holds it",
            "--backend.zero.stage 2",
        ),
        (
            config.generation.ahead > 0,
            "draws from torch's own generator, and generation.ahead writes while an update uses it",
            "--generation.ahead 0",
        ),
        (
            not _is_supported(),
            "needs transformers 5.17 or newer, whose continuous batching has pages, a seed and "
            "log-probabilities",
            "pip install --upgrade transformers",
        ),
    ):
        if is_wrong:
            raise ConfigError(
                f"generation.engine continuous {why}. Set {remedy}, or "
                "--generation.engine transformers."
            )


def _is_supported() -> bool:
    known = getattr(ContinuousBatchingConfig, "__dataclass_fields__", {})
    return {"page_size", "num_blocks", "seed", "return_logprobs"} <= set(known)


@final
class ContinuousGenerator(Generator):
    """Writes with the policy that is trained, or with a copy of it in the type of its forward.

    Args:
        parts: as of every generator.
    """

    exact = False

    def __init__(self, parts: GeneratorParts) -> None:
        """Take a policy; copy it where its forward is of another type than its weights.

        Raises:
            ConfigError: rows of this architecture cannot share a cache.
        """
        self._policy: CausalPolicy | SharedActorCritic = parts.policy
        _check_family(self._policy.model, cached=parts.cached)
        self._eos_token_ids = frozenset(parts.eos_token_ids)
        self._pad_token_id = parts.pad_token_id
        self._batch_size = parts.batch_size
        self._dtype = parts.autocast
        self._has_copy = parts.weights == "copied" or self._dtype is not None
        self._model: PreTrainedModel = self._policy.model
        if self._dtype is not None:
            source = self._model if parts.weights == "copied" else copy.deepcopy(self._model)
            self._model = cast(PreTrainedModel, cast(nn.Module, source).to(self._dtype))
        self._policy_version = -1 if self._has_copy else 0
        self._is_stopping = False

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._policy_version

    def describe(self) -> str:
        """Return what a run says of its generator in the header."""
        return "continuous batching of transformers, not exact: see policy/generator_logp_diff"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Write one response to each request, in the order of the requests.

        Raises:
            GenerationError: the engine ended early, or log-probabilities are not finite.
            RolloutStoppedError: `stop` was called.
        """
        if not requests:
            return []
        with _evaluating(self._model), _own_draws(self._model.device):
            manager = self._manager(requests, sampling)
            names = [self._add(manager, request) for request in requests]
            manager.warmup()
            manager.start()  # after the requests, so that they share steps alike each time
            try:
                finished = self._results(manager, len(requests))
            finally:
                manager.stop(hard_stop=self._is_stopping)
                manager.destroy()
        return [self._response(finished[name]) for name in names]

    def _manager(self, requests: Sequence[Request], sampling: Sampling) -> Any:  # noqa: ANN401
        """Return transformers' manager of a rollout: it holds the pages, of a size that is ours."""
        longest = max(len(request.token_ids) + request.max_new_tokens for request in requests)
        rows = min(self._batch_size, len(requests))
        drawn: dict[str, Any] = {"do_sample": not sampling.greedy}
        if not sampling.greedy:
            drawn |= {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        absent = [number for span in self._policy.scorer.absent for number in range(*span)]
        first = requests[0]
        seed = stream_seed(sampling.seed, sampling.iteration, first.index, first.position)
        return self._model.init_continuous_batching(  # type: ignore[operator]
            generation_config=GenerationConfig(
                eos_token_id=sorted(self._eos_token_ids) or -1,
                pad_token_id=self._pad_token_id,
                suppress_tokens=absent or None,
                **drawn,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE_TOKENS,
                num_blocks=rows * (math.ceil(longest / _PAGE_TOKENS) + 1),
                max_batch_tokens=max(rows, _PREFILL_TOKENS),
                max_requests_per_batch=rows,
                return_logprobs=True,
                seed=seed,
                auto_switch_to_flash=False,  # the trainer's own attention scores the same rows
            ),
        )

    def _add(self, manager: Any, request: Request) -> str:  # noqa: ANN401 - transformers' own
        return manager.add_request(
            list(request.token_ids),
            max_new_tokens=request.max_new_tokens,
            eos_token_id=sorted(self._eos_token_ids) or -1,
        )

    def _results(self, manager: Any, count: int) -> dict[str, Any]:  # noqa: ANN401
        """Wait for all responses; return them by the name of their request."""
        finished: dict[str, Any] = {}
        while len(finished) < count:
            if self._is_stopping:
                raise RolloutStoppedError("the run ends, and this rollout is not needed")
            result = manager.get_result(timeout=_PATIENCE)
            if result is None:
                if not manager.is_running():
                    raise _failure("its thread ended")
            elif result.error is not None:
                raise _failure(result.error)
            elif result.is_finished():
                finished[result.request_id] = result
        return finished

    def _response(self, result: Any) -> Response:  # noqa: ANN401 - transformers' own
        ids, logprobs = result.generated_tokens, result.logprobs
        if not all(map(math.isfinite, logprobs)):
            raise _failure("log-probabilities are not finite")
        return Response(
            token_ids=tuple(ids),
            logprobs=tuple(logprobs),
            finish_reason="stop" if ids[-1] in self._eos_token_ids else "length",
            policy_version=self._policy_version,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take the weights of a version: in place, or by copying those of the language model."""
        if self._has_copy:
            mine = dict(self._model.named_parameters(prefix="model"))
            for name, tensor in weights:
                target = mine.pop(name, None)
                if target is not None:  # heads for values write nothing
                    target.data = tensor.detach().to(
                        target.device, self._dtype or tensor.dtype, copy=True
                    )
            assert not mine, f"no weights came for {next(iter(mine))}"
        self._policy_version = version

    def sleep(self) -> None:
        """Drop weights that are a copy; `load_weights` brings the next."""
        if self._has_copy:
            for parameter in self._model.parameters():
                parameter.data = parameter.data.new_empty(0)
            self._policy_version = -1

    def stop(self) -> None:
        """Let `generate`, which runs in another thread, raise soon."""
        self._is_stopping = True


def _failure(what: object) -> GenerationError:
    return GenerationError(
        f"generation.engine continuous ended early: {what}.\n"
        "Where log-probabilities are not finite, the weights are broken: continue from an earlier "
        "checkpoint, often at a lower rate: --ppo.learning-rate 1e-6. Else write with "
        "--generation.engine transformers."
    )


def _check_family(model: PreTrainedModel, *, cached: bool) -> None:
    """Refuse an architecture whose rows cannot share steps.

    Raises:
        ConfigError: it keeps a state, counts positions by the mask, or has no attention of torch.
    """
    if cached and hides_left_padding(model) and model._supports_sdpa:
        return
    raise ConfigError(
        f"generation.engine continuous cannot write with {type(model).__name__}: its keys and "
        "values fit no pages. Set --generation.engine transformers."
    )


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Give a model the attention that continuous batching knows, and evaluation mode."""
    configs = [model.config, model.config.get_text_config()]
    kernels = [config._attn_implementation for config in configs]
    modes: list[tuple[nn.Module, bool]] = [(part, part.training) for part in model.modules()]
    for config in configs:
        config._attn_implementation = "sdpa"
    try:
        with caching(model):
            yield
    finally:
        for config, kernel in zip(configs, kernels, strict=True):
            config._attn_implementation = kernel
        for part, mode in modes:
            part.training = mode


@contextmanager
def _own_draws(device: torch.device) -> Iterator[None]:
    """Put the state of torch's generators back, which transformers seeds and draws from."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def make_generator(parts: GeneratorParts) -> Generator:
    """Return the generator of `generation.engine continuous`.

    Raises:
        ConfigError: rows of this architecture cannot share a cache.
    """
    return ContinuousGenerator(parts)
