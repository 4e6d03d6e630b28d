"""The ledger: which token of an episode was sampled, by which turn, and what each turn earned.

Environments speak messages; from here on there are only ids, masks and rewards. What was sampled
is kept as ids and is never tokenized again; what the environment said between turns is appended
with its mask False.

    prompt | r r r E | o o o | r r E |         r sampled, E sampled end token, o observation
    mask     1 1 1 1   0 0 0   1 1 1
    reward         *               *           of turn 0 and of turn 1

B slots (rows), P prompt, T actions (observations between turns included), L = P + T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from llmgym.messages import Completion, FinishReason, StopReason
from trainers.batch import TextInputs
from trainers.errors import ConfigError
from trainers.generation.base import Request, Response
from trainers.models.chat import ChatFormat

Messages = tuple[Mapping[str, Any], ...]

UNLIMITED = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a slot may use, in tokens.

    Attributes:
        max_prompt_tokens: longest first prompt.
        max_new_tokens: longest response of a turn.
        max_tokens: longest sequence the model takes, or None; an episode that reaches it is cut.
    """

    max_prompt_tokens: int
    max_new_tokens: int
    max_tokens: int | None = None


@dataclass(slots=True, kw_only=True)
class Slot:
    """One episode as it grows.

    Attributes:
        index: sequence index, counted over all ranks.
        opening: the first messages.
        messages: the dialogue up to where the assistant answers next.
        prompt: ids of the first prompt.
        tokens: ids after it, sampled and observed.
        sampled: for each of `tokens`, whether the policy chose it.
        logprobs: for each of `tokens`, as the generator reported it; 0.0 where observed.
        turn_ends: for each turn, where its last sampled token stands in `tokens`.
        rewards: what each turn earned, before any shaping.
        parts: named parts of the reward, summed over turns.
        live: False once the episode is over, or never began.
        valid: False where the reward means nothing.
        too_long: tokens of a prompt over the limit, else 0; then the slot never lives.
    """

    index: int
    opening: Messages
    messages: Messages
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)
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

    @property
    def num_sampled(self) -> int:
        """Actions taken so far."""
        return sum(self.sampled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """Finished episodes as tensors, before anything is shaped.

    Attributes:
        sampled: [B, T] True on the tokens the policy chose; nothing else is an action.
        generator_logprobs: [B, T] as the generator reported them, 0 elsewhere.
        turn_rewards: [B, T] what each turn earned, on its last sampled token.
        turn_ends: [B, T] True on the last sampled token of every turn.
        valid: [B] False where the reward means nothing, or the prompt was too long.
        terminated: [B] the task ended; it wins over `truncated`.
        truncated: [B] the episode was cut.
        index: [B] sequence index, counted over all ranks.
        slots: the B episodes in full.
        score_seconds: time the environments and their rewards took.
    """

    inputs: TextInputs
    sampled: Tensor
    generator_logprobs: Tensor
    turn_rewards: Tensor
    turn_ends: Tensor
    valid: Tensor
    terminated: Tensor
    truncated: Tensor
    index: Tensor
    slots: tuple[Slot, ...]
    score_seconds: float = 0.0

    @property
    def scores(self) -> Tensor:
        """[B] what each episode earned in all, float64, before any shaping."""
        return torch.tensor([sum(slot.rewards) for slot in self.slots], dtype=torch.float64)


@final
class TokenLedger:
    """Keeps the tokens of all slots of a vector environment.

    Args:
        chat: renders messages to ids, and ids to text.
        observations: the first one of every slot.
        index: sequence index of every slot, counted over all ranks.
        limits: in tokens.
    """

    def __init__(
        self,
        chat: ChatFormat,
        observations: Sequence[Messages],
        *,
        index: Sequence[int],
        limits: Limits,
    ) -> None:
        self._chat = chat
        self._limits = limits
        self._max_tokens = UNLIMITED if limits.max_tokens is None else limits.max_tokens
        pairs = zip(index, observations, strict=True)
        self.slots = tuple(self._opened(number, messages) for number, messages in pairs)

    @property
    def too_long(self) -> list[int]:
        """Tokens of each prompt that is over the limit; those slots never begin."""
        return [slot.too_long for slot in self.slots if slot.too_long]

    def any_live(self) -> bool:
        """Return True while an episode goes on."""
        return any(slot.live for slot in self.slots)

    def requests(self) -> list[Request]:
        """Return one request for each live slot, in order."""
        return [self._request(slot) for slot in self.slots if slot.live]

    def commit(self, responses: Sequence[Response]) -> list[Completion | None]:
        """Record one response for each live slot, in order; return the actions of all slots."""
        given = iter(responses)
        actions = [self._commit(slot, next(given)) if slot.live else None for slot in self.slots]
        assert next(given, None) is None, "more responses than live slots"
        return actions

    def observe(
        self,
        observations: Sequence[Messages | None],
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: Mapping[str, np.ndarray],
    ) -> None:
        """Record what the environments said to the actions of `commit`; arguments as of `step`."""
        for number, slot in enumerate(self.slots):
            if not slot.live:
                continue
            slot.rewards.append(float(rewards[number]))
            _note(slot, {name: values[number] for name, values in infos.items()})
            slot.terminated = bool(terminated[number])
            slot.truncated = bool(truncated[number]) and not slot.terminated
            slot.live = not (slot.terminated or slot.truncated)
            self._append(slot, observations[number])

    def finish(self) -> Episodes:
        """Return all episodes, padded: prompts on the left, what follows on the right."""
        assert not self.any_live(), "an episode still goes on"
        slots = self.slots
        width = max(max(len(slot.tokens) for slot in slots), 1)
        prompts = max(len(slot.prompt) for slot in slots)
        shape = (len(slots), width)
        tokens = torch.full((len(slots), prompts + width), self._chat.pad_token_id)
        attention_mask = torch.zeros_like(tokens, dtype=torch.bool)
        sampled, ends = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        logprobs, rewards = torch.zeros(shape), torch.zeros(shape, dtype=torch.float64)
        for row, slot in enumerate(slots):
            span = slice(prompts - len(slot.prompt), prompts + len(slot.tokens))
            tokens[row, span] = torch.tensor([*slot.prompt, *slot.tokens])
            attention_mask[row, span] = True
            sampled[row, : len(slot.tokens)] = torch.tensor(slot.sampled, dtype=torch.bool)
            logprobs[row, : len(slot.tokens)] = torch.tensor(slot.logprobs)
            ends[row, slot.turn_ends] = True
            rewards[row, slot.turn_ends] = torch.tensor(slot.rewards, dtype=torch.float64)
        return Episodes(
            inputs=TextInputs(tokens=tokens, attention_mask=attention_mask, num_prompt=prompts),
            sampled=sampled,
            generator_logprobs=logprobs,
            turn_rewards=rewards,
            turn_ends=ends,
            valid=torch.tensor([slot.valid for slot in slots]),
            terminated=torch.tensor([slot.terminated for slot in slots]),
            truncated=torch.tensor([slot.truncated for slot in slots]),
            index=torch.tensor([slot.index for slot in slots]),
            slots=slots,
        )

    def _opened(self, index: int, messages: Messages) -> Slot:
        prompt = self._chat.prompt_ids(messages)
        if len(prompt) <= min(self._limits.max_prompt_tokens, self._max_tokens - 1):
            return Slot(index=index, opening=messages, messages=messages, prompt=prompt)
        # A prompt is whole or absent: one token of padding keeps the row, which nobody learns from.
        return Slot(
            index=index,
            opening=messages,
            messages=messages,
            prompt=[self._chat.pad_token_id],
            live=False,
            valid=False,
            too_long=len(prompt),
        )

    def _request(self, slot: Slot) -> Request:
        return Request(
            token_ids=[*slot.prompt, *slot.tokens],
            index=slot.index,
            position=slot.num_sampled,
            max_new_tokens=min(self._limits.max_new_tokens, self._room(slot)),
        )

    def _room(self, slot: Slot) -> int:
        """Return how many more tokens the model takes."""
        return self._max_tokens - len(slot.prompt) - len(slot.tokens)

    def _commit(self, slot: Slot, response: Response) -> Completion:
        slot.tokens += response.token_ids
        slot.sampled += [True] * len(response.token_ids)
        slot.logprobs += response.logprobs
        slot.turn_ends.append(len(slot.tokens) - 1)
        slot.finish_reason = response.finish_reason
        slot.policy_version = response.policy_version
        text = self._chat.decode(response.token_ids)
        slot.completions.append(text)
        return Completion(
            text,
            finish_reason=response.finish_reason,
            token_ids=tuple(response.token_ids),
            policy_version=response.policy_version,
        )

    def _append(self, slot: Slot, messages: Messages | None) -> None:
        """Append what the environment said: the next prompt, or the state an episode was cut in."""
        cut_between_turns = slot.truncated and slot.valid and slot.finish_reason == "stop"
        if messages is None or not (slot.live or cut_between_turns):
            return
        said = _said_since(slot.messages, messages)
        if not (slot.live or said):
            return
        suffix = self._chat.suffix_ids(messages[: len(slot.messages) + 1], said)
        if self._room(slot) <= len(suffix):
            slot.live, slot.truncated = False, True
            slot.stop_reason = StopReason.CONTEXT.value
            return
        slot.messages = messages
        slot.tokens += suffix
        slot.sampled += [False] * len(suffix)
        slot.logprobs += [0.0] * len(suffix)


def _said_since(old: Messages, new: Messages) -> Messages:
    """Return the messages after the assistant's response.

    Raises:
        ConfigError: the earlier messages are not those that were answered.
    """
    kept = tuple(new[: len(old)]) == tuple(old)
    if not kept or len(new) == len(old) or new[len(old)]["role"] != "assistant":
        raise ConfigError(
            "the environment rewrote the dialogue between two turns, so it cannot go on from the "
            "sampled tokens. Train without wrappers that shorten the history, such as KeepTurns."
        )
    return tuple(new[len(old) + 1 :])


def _note(slot: Slot, info: Mapping[str, Any]) -> None:
    """Take over what the environment says of a slot's step."""
    for name, value in info.items():
        if name.startswith("reward/") and not np.isnan(value):
            part = name.removeprefix("reward/")
            slot.parts[part] = slot.parts.get(part, 0.0) + float(value)
    slot.valid = slot.valid and bool(info["reward_valid"])
    slot.task_id = info.get("task_id")
    slot.error = slot.error or info.get("reward_error")
    slot.stop_reason = info.get("stop_reason")
    slot.score_ms += float(info.get("score_ms", 0.0))
    slot.retries += int(info.get("reward_retries", 0))
