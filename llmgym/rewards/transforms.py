"""Rewards made of one other reward: its rank in the group, its scores remembered, its time."""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

from llmgym.errors import RewardError
from llmgym.messages import Sample, Score
from llmgym.rewards.base import Reward, resolve, score_samples
from llmgym.rewards.compose import RewardSpec, named_parts


@final
class GroupRank(Reward):
    """The rank of a sample's score within its group, from 0.0 (least) to 1.0; ties share the mean.

    It needs the whole group in one call, hence single-turn environments and two samples a prompt
    or more. Samples that failed or abstained keep that status and are not ranked.
    """

    def __init__(self, reward: RewardSpec) -> None:
        """Take the reward that is ranked."""
        self.reward = resolve(reward)
        self.name = f"rank.{self.reward.name}"
        if self.reward.per_turn:
            raise RewardError(f"GroupRank needs whole episodes, and {self.reward.name} is per_turn")

    def inner(self) -> Mapping[str, Reward]:
        """Return the reward."""
        return {self.reward.name: self.reward}

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score all samples, then rank them group by group.

        Raises:
            RewardError: a group of one sample.
        """
        scores = score_samples(self.reward, samples)
        groups: dict[int, list[int]] = {}
        for i, sample in enumerate(samples):
            groups.setdefault(sample.group, []).append(i)
        alone = [group for group, rows in groups.items() if len(rows) < 2]
        if alone:
            raise RewardError(
                f"GroupRank ranks within a group, and group {alone[0]} came with one sample. Set "
                "ppo.samples_per_prompt to 2 or more, in an environment of one turn."
            )
        for rows in groups.values():
            ranked = [i for i in rows if scores[i].status == "ok"]
            values = [scores[i].value for i in ranked]
            for i in ranked:
                parts = named_parts(self.reward.name, scores[i])
                rank = _rank(scores[i].value, values)
                scores[i] = replace(scores[i], value=rank, parts=parts, spans=())
        return scores


def _rank(value: float, values: Sequence[float]) -> float:
    if len(values) == 1:
        return 0.5
    below = sum(other < value for other in values)
    ties = sum(other == value for other in values) - 1
    return (below + ties / 2) / (len(values) - 1)


@final
class Cached(Reward):
    """Remembers the scores of equal responses to equal tasks; only for deterministic rewards."""

    def __init__(self, reward: RewardSpec, size: int = 10_000) -> None:
        """Take the reward, and how many scores are kept; the oldest goes first."""
        self.reward, self.size = resolve(reward), size
        self.name, self.per_turn = self.reward.name, self.reward.per_turn
        if self.reward.collective:
            raise RewardError("Cached leaves calls out, so its reward must not be collective")
        self._scores: OrderedDict[tuple[object, ...], Score] = OrderedDict()

    def inner(self) -> Mapping[str, Reward]:
        """Return the reward."""
        return {self.reward.name: self.reward}

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score what was not seen before, each different sample once; failures are asked again."""
        keys = [
            # Equal prompts share an id; their columns, which rewards read as well, may differ.
            (
                repr(sample.task),
                sample.messages,
                str(sample.response),
                sample.text,
                repr(sample.state),
            )
            for sample in samples
        ]
        new = {key: i for i, key in enumerate(keys) if key not in self._scores}
        fresh = score_samples(self.reward, [samples[i] for i in new.values()])
        known = {key: self._scores[key] for key in keys if key not in new}
        known |= dict(zip(new, fresh, strict=True))
        sound = {key: score for key, score in known.items() if score.status != "error"}
        self._scores |= {key: replace(score, retries=0) for key, score in sound.items()}
        while len(self._scores) > self.size:
            self._scores.popitem(last=False)
        return [known[key] for key in keys]


@final
class Timed(Reward):
    """Adds the part `ms`: milliseconds a sample, the mean over the call. Not deterministic."""

    def __init__(self, reward: RewardSpec) -> None:
        """Take the reward whose calls are timed."""
        self.reward = resolve(reward)
        self.name, self.per_turn = self.reward.name, self.reward.per_turn
        self.collective = self.reward.collective

    def inner(self) -> Mapping[str, Reward]:
        """Return the reward."""
        return {self.reward.name: self.reward}

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score, and add what it took."""
        start = time.perf_counter()
        scores = score_samples(self.reward, samples)
        mean = 1000.0 * (time.perf_counter() - start) / max(1, len(samples))
        return [replace(score, parts={**score.parts, "ms": mean}) for score in scores]
