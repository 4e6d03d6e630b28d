"""Episodes as tokens: rows of prompt, sampled and observed tokens, and the tensors of all rows.

    prompt | r r r E | o o o | r r E |         r sampled, E sampled end token, o observation
    mask     1 1 1 1   0 0 0   1 1 1
    reward         *               *           of turn 0 and of turn 1

An episode is one row. Where its dialogue does not go on from the tokens it had (a template or a
wrapper that rewrites earlier turns), the next turn begins a row of its own, with its own prompt.

E episodes, B rows (B >= E, those of an episode side by side), P prompt, T actions (observations
between turns included), L = P + T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmgym.messages import FinishReason
from trainers.batch import TextInputs
from trainers.generation.base import Response

Conversation = tuple[Mapping[str, Any], ...]


@dataclass(slots=True, kw_only=True)
class Row:
    """Tokens that follow one another.

    Attributes:
        prompt: ids of the dialogue that the row begins with.
        tokens: ids after it, sampled and observed.
        sampled: for each of `tokens`, whether the policy chose it.
        logprobs: for each of `tokens`, as the generator reported it; 0.0 where observed.
        rewards: for each of `tokens`, what it earned, before any shaping.
        env_rewards: for each of `tokens`, the part of it that the environment itself paid.
        turn_starts: for each turn, where its first sampled token stands in `tokens`.
        turn_ends: for each turn, where its last one stands.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    env_rewards: list[float] = field(default_factory=list)
    turn_starts: list[int] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the length of the whole row, prompt included."""
        return len(self.prompt) + len(self.tokens)

    @property
    def last_turn(self) -> list[int]:
        """The ids that were sampled in the last turn."""
        return self.tokens[self.turn_starts[-1] : self.turn_ends[-1] + 1]

    def sample(self, response: Response) -> None:
        """Append a turn of the policy."""
        self.turn_starts.append(len(self.tokens))
        self._append(response.token_ids, response.logprobs, sampled=True)
        self.turn_ends.append(len(self.tokens) - 1)

    def observe(self, ids: Sequence[int]) -> None:
        """Append the tokens of an environment's message."""
        self._append(ids, [0.0] * len(ids), sampled=False)

    def _append(self, ids: Sequence[int], logprobs: Sequence[float], *, sampled: bool) -> None:
        self.tokens += ids
        self.logprobs += logprobs
        self.sampled += [sampled] * len(ids)
        self.rewards += [0.0] * len(ids)
        self.env_rewards += [0.0] * len(ids)


@dataclass(slots=True, kw_only=True)
class Slot:
    """One episode as it grows.

    Attributes:
        index: sequence index, counted over all ranks.
        opening: the first messages.
        messages: the dialogue up to where the assistant answers next.
        rows: its tokens; one row unless the dialogue was rewritten between two turns.
        rewards: what each turn earned in all, before any shaping.
        parts: named parts of the reward, summed over turns.
        live: False once the episode is over, or never began.
        valid: False where the reward means nothing.
        too_long: tokens of a prompt over the limit, else 0; then the slot never lives.
        unknown: sampled ids that the tokenizer does not hold.
    """

    index: int
    opening: Conversation
    messages: Conversation
    rows: list[Row]
    rewards: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    completions: list[str] = field(default_factory=list)
    finish_reason: FinishReason = "abort"
    stop_reason: str | None = None
    policy_version: int = -1
    live: bool = True
    valid: bool = True
    terminated: bool = False
    truncated: bool = False
    task_id: str | None = None
    error: str | None = None
    score_ms: float = 0.0
    retries: int = 0
    too_long: int = 0
    unknown: int = 0

    @property
    def actions(self) -> list[int]:
        """The ids that were sampled, of all turns."""
        return [
            token
            for row in self.rows
            for token, own in zip(row.tokens, row.sampled, strict=True)
            if own
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """Finished episodes as tensors, before anything is shaped.

    Attributes:
        sampled: [B, T] True on the tokens the policy chose; nothing else is an action.
        generator_logprobs: [B, T] as the generator reported them, 0 elsewhere.
        rewards: [B, T] what each token earned: a turn's reward is on its last sampled token, less
            what its score gave to spans of the response, which is on the last token of each.
        env_rewards: [B, T] the part of it that the environments themselves paid.
        turn_ends: [B, T] True on the last sampled token of every turn.
        owner: [B] number of the episode that a row belongs to, counted from 0.
        valid: [E] False where the reward means nothing, or the prompt was too long.
        terminated: [E] the task ended; it wins over `truncated`.
        truncated: [E] the episode was cut.
        index: [B] sequence index, counted over all ranks; rows of an episode share it.
        slots: the E episodes in full.
        score_seconds: time the environments and their rewards took.
    """

    inputs: TextInputs
    sampled: Tensor
    generator_logprobs: Tensor
    rewards: Tensor
    env_rewards: Tensor
    turn_ends: Tensor
    owner: Tensor
    valid: Tensor
    terminated: Tensor
    truncated: Tensor
    index: Tensor
    slots: tuple[Slot, ...]
    score_seconds: float = 0.0

    @property
    def scores(self) -> Tensor:
        """[E] what each episode earned in all, float64, before any shaping."""
        return torch.tensor([sum(slot.rewards) for slot in self.slots], dtype=torch.float64)

    def per_episode(self, figures: Tensor) -> Tensor:
        """Return [E] sums of figures [B, T] over the rows of each episode."""
        return summed_by(self.owner, figures, len(self.slots))


def summed_by(owner: Tensor, figures: Tensor, count: int) -> Tensor:
    """Return [count] sums of figures [B, T] over the rows that `owner` [B] gives to each."""
    rows = figures.sum(1)
    return rows.new_zeros(count).index_add(0, owner, rows)


def stacked(slots: Sequence[Slot], pad_token_id: int) -> Episodes:
    """Return finished episodes as tensors: prompts padded on the left, the rest on the right."""
    rows = [row for slot in slots for row in slot.rows]
    owner = torch.tensor([number for number, slot in enumerate(slots) for _ in slot.rows])
    width = max(max(len(row.tokens) for row in rows), 1)
    prompts = max(len(row.prompt) for row in rows)
    shape = (len(rows), width)
    tokens = torch.full((len(rows), prompts + width), pad_token_id)
    attention_mask = torch.zeros_like(tokens, dtype=torch.bool)
    sampled, ends = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    logprobs, rewards = torch.zeros(shape), torch.zeros(shape, dtype=torch.float64)
    env_rewards = torch.zeros_like(rewards)
    for number, row in enumerate(rows):
        span = slice(prompts - len(row.prompt), prompts + len(row.tokens))
        tokens[number, span] = torch.tensor([*row.prompt, *row.tokens])
        attention_mask[number, span] = True
        sampled[number, : len(row.tokens)] = torch.tensor(row.sampled, dtype=torch.bool)
        logprobs[number, : len(row.tokens)] = torch.tensor(row.logprobs)
        rewards[number, : len(row.tokens)] = torch.tensor(row.rewards, dtype=torch.float64)
        env_rewards[number, : len(row.tokens)] = torch.tensor(row.env_rewards, dtype=torch.float64)
        ends[number, row.turn_ends] = True
    return Episodes(
        inputs=TextInputs(tokens=tokens, attention_mask=attention_mask, num_prompt=prompts),
        sampled=sampled,
        generator_logprobs=logprobs,
        rewards=rewards,
        env_rewards=env_rewards,
        turn_ends=ends,
        owner=owner,
        valid=torch.tensor([slot.valid for slot in slots]),
        terminated=torch.tensor([slot.terminated for slot in slots]),
        truncated=torch.tensor([slot.truncated for slot in slots]),
        index=torch.tensor([slot.index for slot in slots])[owner],
        slots=tuple(slots),
    )
