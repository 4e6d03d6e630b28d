"""`http`: a reward that a server computes.

| wire       | a request                                    | its answer                           |
| ---------- | -------------------------------------------- | ------------------------------------ |
| `llmgym`   | `{"samples": [{"prompt", "response", ...}]}` | `{"scores": [...]}`                  |
| `openrlhf` | `{"query", "prompts", "labels"}`, 1 sample   | `{"rewards", "scores", ...}`       |

A score is a number, null (it abstains), or `{"value", "parts", "spans"}`. A server that is down or
slow costs its samples, which become errors; one that answers something else is broken.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final, get_args

from llmgym.endpoint import TOKEN_VARIABLE, Endpoint, EndpointError, at_once
from llmgym.errors import RewardError
from llmgym.messages import Sample, Score
from llmgym.rewards.base import Reward
from llmgym.rewards.function import ARGUMENTS
from llmgym.rewards.rules import expected_answer
from llmgym.rewards.verdict import Verdict, failed, shown

Wire = Literal["llmgym", "openrlhf"]


@final
class HttpReward(Reward):
    """Scores on a server; see `http_reward`."""

    name = "http"

    def __init__(
        self, endpoint: Endpoint, *, wire: Wire = "llmgym", concurrency: int = 8, batch: int = 32
    ) -> None:
        if wire not in get_args(Wire):
            raise RewardError(f"wire is {' or '.join(get_args(Wire))}, got {wire!r}")
        if concurrency < 1 or batch < 1:
            raise RewardError(
                f"concurrency and batch must be 1 or more, got {concurrency}, {batch}"
            )
        self.endpoint, self.wire, self.concurrency = endpoint, wire, concurrency
        self.batch = 1 if wire == "openrlhf" else batch

    def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Ask the server, several requests at a time.

        Raises:
            RewardError: it answers a wrong number of scores, or none.
        """
        chunks = [samples[i : i + self.batch] for i in range(0, len(samples), self.batch)]
        return [score for scores in at_once(self._asked, chunks, self.concurrency)
                for score in scores]  # fmt: skip

    def _asked(self, samples: Sequence[Sample]) -> list[Verdict]:
        is_ours = self.wire == "llmgym"
        body = {"samples": [_as_json(sample) for sample in samples]} if is_ours else _query(samples)
        try:
            answer, retries = self.endpoint.post(body)
        except EndpointError as error:
            return [failed(f"{self.name}: {error}", error.retries)] * len(samples)
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"a row cannot be sent to {self.endpoint.url}: {error}. Rows for a server hold "
                "plain JSON"
            ) from error
        if not is_ours:
            return [self._openrlhf_score(answer, retries)]
        values = answer.get("scores") if isinstance(answer, Mapping) else None
        if not isinstance(values, list) or len(values) != len(samples):
            count = f"{len(values)} scores" if isinstance(values, list) else shown(answer)
            raise RewardError(
                f"{self.endpoint.url} answered {count} for {len(samples)} samples. It must answer "
                '{"scores": [...]}, one for each'
            )
        return [self._score(value, retries) for value in values]

    def _score(self, value: Any, retries: int) -> Score:  # noqa: ANN401 - any JSON
        if value is None:
            return Score(0.0, status="abstain", error="the server has no score", retries=retries)
        if isinstance(value, Mapping) and "value" in value:
            spans = tuple((start, end, part) for start, end, part in value.get("spans", ()))
            parts = dict(value.get("parts", {}))
            return Score(value["value"], parts, spans=spans, retries=retries)
        if isinstance(value, bool | int | float):
            return Score(float(value), retries=retries)
        raise RewardError(
            f'{self.endpoint.url} answered the score {shown(value)}: a number, null or {{"value"}}'
        )

    def _openrlhf_score(self, answer: Any, retries: int) -> Score:  # noqa: ANN401 - any JSON
        if not isinstance(answer, Mapping) or "rewards" not in answer:
            raise RewardError(
                f'{self.endpoint.url} answered {shown(answer)}, which has no "rewards"'
            )
        logs = {**(answer.get("extra_logs") or {})}
        if answer.get("scores") is not None:
            logs = {"scores": answer["scores"], **logs}
        parts = {str(name): self._single(value, str(name)) for name, value in logs.items()}
        return Score(self._single(answer["rewards"], "rewards"), parts, retries=retries)

    def _single(self, value: Any, name: str) -> float:  # noqa: ANN401 - any JSON
        values = value if isinstance(value, list) else [value]
        if len(values) != 1 or not isinstance(values[0], bool | int | float):
            raise RewardError(
                f"{self.endpoint.url} answered {name} {shown(value)} for one sample: one number"
            )
        return float(values[0])


def http_reward(
    url: str,
    *,
    wire: Wire = "llmgym",
    timeout: float = 30.0,
    retries: int = 3,
    concurrency: int = 8,
    variable: str = TOKEN_VARIABLE,
) -> HttpReward:
    """Return the reward "http", once its server can be reached.

    Args:
        url: of the server.
        wire: "llmgym", or "openrlhf" for a server written for OpenRLHF.
        timeout: seconds of a request.
        retries: of a request that fails.
        concurrency: requests at a time; of `llmgym`, of 32 samples each.
        variable: environment variable that holds the token.

    Raises:
        RewardError: nothing listens there, or a setting is out of range.
    """
    endpoint = Endpoint(url=url, timeout=timeout, retries=retries, variable=variable)
    reward = HttpReward(endpoint, wire=wire, concurrency=concurrency)
    endpoint.reach()
    return reward


def _as_json(sample: Sample) -> dict[str, Any]:
    return {
        "task_id": sample.task.id,
        "turn": sample.turn,
        "prompt": [message.as_dict() for message in sample.messages],
        "response": str(sample.response),
        "text": str(sample.text),
        "answer": expected_answer(sample.task),
        "columns": dict(sample.task.meta),
    }


def _query(samples: Sequence[Sample]) -> dict[str, Any]:
    known = ARGUMENTS["openrlhf"](samples)
    return {"query": known["queries"], "prompts": known["prompts"], "labels": known["labels"]}
