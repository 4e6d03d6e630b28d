"""The ledger: which token of an episode was sampled, by which turn, and what each turn earned.

Environments speak messages; from here on there are only ids, masks and rewards. What was sampled is
kept as ids and is never made again from text; what the environment said between turns is appended
with its mask False. An episode that reaches the model's context is cut here. Where nothing can be
appended, because the chat template renders earlier turns anew or a wrapper rewrote them, the next
turn begins a row of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from llmgym.messages import Completion, StopReason
from llmgym.step import StepInfo
from trainers.collect.episodes import Conversation, Episodes, Row, Slot, stacked
from trainers.generation.base import Request, Response
from trainers.models.chat import ChatFormat

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
        observations: Sequence[Conversation],
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
        remaining = iter(responses)
        actions = [
            self._commit(slot, next(remaining)) if slot.live else None for slot in self.slots
        ]
        assert next(remaining, None) is None, "more responses than live slots"
        return actions

    def observe(
        self,
        observations: Sequence[Conversation | None],
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: Mapping[str, np.ndarray],
    ) -> None:
        """Record what environments returned for the actions of `commit`; arguments as of `step`."""
        for number, slot in enumerate(self.slots):
            if not slot.live:
                continue
            info = StepInfo.of(infos, number)
            self._pay(slot, float(rewards[number]), info)
            _note(slot, info)
            slot.terminated = bool(terminated[number])
            slot.truncated = bool(truncated[number]) and not slot.terminated
            slot.live = not (slot.terminated or slot.truncated)
            self._append(slot, observations[number])

    def finish(self) -> Episodes:
        """Return all episodes, padded: prompts on the left, what follows on the right."""
        assert not self.any_live(), "an episode still goes on"
        return stacked(self.slots, self._chat.pad_token_id)

    def _opened(self, index: int, messages: Conversation) -> Slot:
        prompt = self._chat.prompt_ids(messages)
        if len(prompt) <= min(self._limits.max_prompt_tokens, self._max_tokens - 1):
            rows = [Row(prompt=prompt)]
            return Slot(index=index, opening=messages, messages=messages, rows=rows)
        # A prompt is whole or absent: one token of padding keeps the row, which nobody learns from.
        return Slot(
            index=index,
            opening=messages,
            messages=messages,
            rows=[Row(prompt=[self._chat.pad_token_id])],
            live=False,
            valid=False,
            too_long=len(prompt),
        )

    def _request(self, slot: Slot) -> Request:
        row = slot.rows[-1]
        return Request(
            token_ids=[*row.prompt, *row.tokens],
            index=slot.index,
            position=len(slot.actions),
            max_new_tokens=min(self._limits.max_new_tokens, self._max_tokens - len(row)),
        )

    def _commit(self, slot: Slot, response: Response) -> Completion:
        slot.rows[-1].sample(response)
        slot.finish_reason = response.finish_reason
        slot.policy_version = response.policy_version
        slot.unknown += self._chat.num_unknown(response.token_ids)
        text = self._chat.decode(response.token_ids)
        slot.completions.append(text)
        return Completion(
            text,
            finish_reason=response.finish_reason,
            token_ids=tuple(response.token_ids),
            policy_version=response.policy_version,
        )

    def _pay(self, slot: Slot, reward: float, info: StepInfo) -> None:
        """Put a turn's reward on its last token, and what belongs to spans on the last of each."""
        slot.rewards.append(reward)
        row = slot.rows[-1]
        start, end, ids = row.turn_starts[-1], row.turn_ends[-1], row.last_turn
        for _, character, part in info.spans:
            row.rewards[start + self._chat.token_of(ids, character)] += part
            reward -= part
        row.rewards[end] += reward
        row.env_rewards[end] = info.env_reward

    def _append(self, slot: Slot, messages: Conversation | None) -> None:
        """Append the environment's messages: the next prompt, or the state at a cut."""
        cut_between_turns = slot.truncated and slot.valid and slot.finish_reason == "stop"
        if messages is None or not (slot.live or cut_between_turns):
            return
        if not slot.live and messages[-1]["role"] == "assistant":
            return
        appended, suffix = _said_since(slot.messages, messages), None
        if appended is not None:
            suffix = self._chat.suffix_ids(messages[: len(slot.messages) + 1], appended)
        row = slot.rows[-1] if suffix is not None else Row(prompt=self._chat.prompt_ids(messages))
        if len(row) + len(suffix or ()) >= self._max_tokens:
            slot.stop_reason = StopReason.CONTEXT.value if slot.live else slot.stop_reason
            slot.live, slot.truncated = False, True
            return
        slot.messages = messages
        if suffix is None:
            slot.rows.append(row)
        else:
            row.observe(suffix)


def _said_since(old: Conversation, new: Conversation) -> Conversation | None:
    """Return the messages after the assistant's response; None where the earlier ones changed."""
    kept = tuple(new[: len(old)]) == tuple(old)
    if not kept or len(new) == len(old) or new[len(old)]["role"] != "assistant":
        return None
    return tuple(new[len(old) + 1 :])


def _note(slot: Slot, info: StepInfo) -> None:
    """Take over what the environment says of a slot's step."""
    for part, value in info.parts.items():
        slot.parts[part] = slot.parts.get(part, 0.0) + value
    slot.valid = slot.valid and info.valid
    slot.task_id = info.task_id
    slot.error = slot.error or info.error
    slot.stop_reason = info.stop_reason
    slot.score_ms += info.score_ms
    slot.retries += info.retries
