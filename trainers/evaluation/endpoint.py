"""Held-out scores of a model that somebody serves: an OpenAI-compatible chat endpoint.

Every task is answered once, several requests at a time. A request that fails is repeated; a task
whose request still fails has no score, which is not a zero.
"""

import http.client
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import gymnasium

from llmgym.data.tasks import num_tasks
from llmgym.endpoint import REPEATED, TOKEN_VARIABLE, Endpoint, EndpointError
from llmgym.env import core_env, inner_env
from llmgym.errors import RewardError
from llmgym.messages import Completion
from llmgym.registry import create_vector, settings_of, spec
from llmgym.vector import LLMVectorEnv
from trainers.batch import Evaluation
from trainers.collect.environments import constructing, is_text
from trainers.errors import ConfigError, GenerationError
from trainers.evaluation.statistics import summarize

logger = logging.getLogger("trainers.evaluation")

RETRIES = 4
MAX_FAILED = 0.2
"""More failed tasks than this share of all end the evaluation."""
PATH = "/chat/completions"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Where a model is served, and how it is asked.

    The token of requests is in the environment variable LLMGYM_ENDPOINT_TOKEN.

    Attributes:
        url: base address, such as http://127.0.0.1:8000/v1.
        model: the name that the server knows it by.
        max_tokens: longest response.
        temperature: 0 is greedy.
        top_p: nucleus, with a temperature.
        timeout: seconds of one request.
    """

    url: str
    model: str
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    timeout: float = 120.0

    def __post_init__(self) -> None:
        """Refuse what is no address.

        Raises:
            ConfigError: it is none of http or https, or holds a password.
        """
        self._endpoint()

    def _endpoint(self) -> Endpoint:
        address = self.url.rstrip("/").removesuffix(PATH) + PATH
        try:
            return Endpoint(url=address, timeout=self.timeout, retries=RETRIES)
        except RewardError as error:
            raise ConfigError(f"--endpoint: {error}") from error

    def complete(self, messages: Sequence[Mapping[str, Any]]) -> Completion:
        """Return the response to a dialogue; one with the reason "abort" if no request succeeded.

        Raises:
            GenerationError: the server refuses such requests, or its answer is no chat completion.
        """
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        try:
            return completion_of(self._endpoint().post(body)[0])
        except EndpointError as error:
            if error.status not in (0, *REPEATED):
                raise GenerationError(_refused(self, error)) from error
            logger.warning("no answer: %s", error)
            return Completion(str(error), finish_reason="abort")


def completion_of(answer: Any) -> Completion:  # noqa: ANN401 - any JSON
    """Return the response in a chat completion; without content it is empty.

    Raises:
        GenerationError: it is no chat completion.
    """
    try:
        choice = answer["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError) as error:
        shown = str(answer)[:200]
        raise GenerationError(f"the endpoint's answer is no chat completion: {shown}") from error
    cut = "length" if reason == "length" else "stop"
    return Completion(text if isinstance(text, str) else "", finish_reason=cut)


def _refused(model: ServedModel, error: EndpointError) -> str:
    hints = {
        http.client.OK: "\nThat is no chat completion.",
        http.client.NOT_FOUND: "\nThe address ends before /chat/completions, often with /v1.",
    }
    token = f"\nIts token goes to the environment variable {TOKEN_VARIABLE}."
    hints |= dict.fromkeys((http.client.UNAUTHORIZED, http.client.FORBIDDEN), token)
    return f"model {model.model!r} was refused: {error}{hints.get(error.status, '')}"


def held_out_envs(id: str, count: int, kwargs: Mapping[str, Any]) -> tuple[LLMVectorEnv, list[int]]:
    """Return a vector with a slot for each held-out task, and the tasks' indices.

    Raises:
        ConfigError: the id is no environment of text.
    """
    env_spec = spec(id)
    with constructing(id, "--kwargs", "\nA model of text needs an environment of text."):
        make = partial(gymnasium.make, env_spec, disable_env_checker=True, **kwargs)
        there = num_tasks(core_env(make()).tasks)
        size = count if there is None else min(count, there)
        if is_text(env_spec):
            envs: Any = create_vector(**settings_of(env_spec, kwargs), num_envs=size)
        else:
            envs = LLMVectorEnv([make] * size)
    return envs, list(range(size))


def evaluate_endpoint(
    id: str, endpoint: ServedModel, *, count: int, kwargs: Mapping[str, Any], workers: int
) -> Evaluation:
    """Return the mean score of a served model on the first tasks of an environment.

    Args:
        id: of the environment.
        endpoint: where the model is.
        count: tasks, or fewer if there are fewer.
        kwargs: of the environment, such as the split.
        workers: requests at a time.

    Raises:
        ConfigError: the environment is none of text, or gives schemas of tools.
        GenerationError: the server refuses, or too many tasks have no answer.
    """
    envs, indices = held_out_envs(id, count, kwargs)
    observations, _ = envs.reset(options={"indices": indices})
    opening = [tuple(obs or ()) for obs in observations]
    if any("tools" in message for messages in opening for message in messages):
        raise ConfigError(
            f"{id} gives its tools to a chat template, and an endpoint has its own template.\n"
            "Let the prompt describe them: --kwargs describe=system"
        )
    totals, valid = [0.0] * len(indices), [True] * len(indices)
    texts: list[list[str]] = [[] for _ in indices]
    reasons: list[str | None] = [None] * len(indices)
    live = list(indices)
    with ThreadPoolExecutor(workers) as pool:
        while live:
            answers = _answers(pool, endpoint, {slot: observations[slot] or () for slot in live})
            _check_answers(answers, len(indices), valid)
            actions = [answers.get(slot) for slot in range(len(indices))]
            observations, rewards, terminated, truncated, infos = envs.step(actions)
            for slot in live:
                texts[slot].append(str(answers[slot]))
                totals[slot] += float(rewards[slot])
                valid[slot] = valid[slot] and bool(infos["reward_valid"][slot])
                reasons[slot] = infos["stop_reason"][slot]
            live = [slot for slot in live if not (terminated[slot] or truncated[slot])]
    scores = [total if good else math.nan for total, good in zip(totals, valid, strict=True)]
    rows = [
        {
            "prompt": "\n\n".join(str(message["content"]) for message in opening[slot]),
            "completion": "\n\n".join(texts[slot]),
            "reward": scores[slot],
            "finish_reason": reasons[slot],
        }
        for slot in indices
    ]
    return summarize(id, scores, rows=rows, bounds=inner_env(envs.envs[0]).reward_bounds)


def _answers(
    pool: ThreadPoolExecutor,
    endpoint: ServedModel,
    dialogues: Mapping[int, Sequence[Mapping[str, Any]]],
) -> dict[int, Completion]:
    """Return the response to each dialogue; an error cancels the requests that were not sent."""
    futures = {
        slot: pool.submit(endpoint.complete, messages) for slot, messages in dialogues.items()
    }
    try:
        return {slot: future.result() for slot, future in futures.items()}
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _check_answers(answers: Mapping[int, Completion], count: int, valid: Sequence[bool]) -> None:
    """Raise where too many tasks have no answer.

    Raises:
        GenerationError: the share is above `MAX_FAILED`; with the first failure.
    """
    failed = [str(text) for text in answers.values() if text.finish_reason == "abort"]
    before = sum(not good for good in valid)
    if failed and len(failed) + before > MAX_FAILED * count:
        raise GenerationError(
            f"{len(failed) + before} of {count} tasks have no answer, after {RETRIES} repetitions "
            f"each. The first: {failed[0]}"
        )
