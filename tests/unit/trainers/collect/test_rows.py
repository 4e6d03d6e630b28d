"""Dialogues that cannot go on from their tokens: the next turn begins a row of its own."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from llmgym.vector import LLMVectorEnv
from tests import tiny
from tests.unit.trainers.collect.test_ledger import (
    assistant,
    flags,
    infos,
    ledger_of,
    response,
    user,
)
from tests.unit.trainers.collect.tiny import (
    Talk,
    chat_format,
    collector_of,
    config,
    llama,
    policy,
    scripted,
    written_by,
)
from tests.unit.trainers.models.templates import CHATML, FORGETS, QWEN, chatml
from trainers.collect.ledger import Limits
from trainers.collect.play import PlayOptions, play
from trainers.distributed.collectives import World
from trainers.generation.base import Sampling
from trainers.models.chat import ChatFormat
from trainers.ppo import make_experience, update

REWRITTEN = (user("else"), assistant("x"), user("b"))


@pytest.fixture(scope="module")
def chat():
    return chat_format()


def test_a_rewritten_history_begins_a_row_of_its_own(chat):
    end = chat.eos_token_ids[0]
    ledger = ledger_of(chat, "abc", "abc")
    ledger.commit([response([50, end]), response([51, end])])
    ledger.observe([REWRITTEN, None], np.array([1.0, 7.0]), flags(0, 1), flags(0, 0), infos(2))

    request = ledger.requests()[0]
    assert list(request.token_ids) == chat.prompt_ids(REWRITTEN)
    assert (request.index, request.position) == (0, 2)

    ledger.commit([response([60, 61, end])])
    ledger.observe([None] * 2, np.array([2.0, 0.0]), flags(1, 0), flags(0, 0), infos(2))
    episodes = ledger.finish()

    assert episodes.owner.tolist() == episodes.index.tolist() == [0, 0, 1]
    assert episodes.sampled.sum(1).tolist() == [2, 3, 2]
    assert episodes.inputs.actions[1].tolist() == [60, 61, end]
    assert episodes.rewards.tolist() == [[0, 1.0, 0], [0, 0, 2.0], [0, 7.0, 0]]
    assert torch.equal(episodes.turn_ends, episodes.rewards > 0)
    assert episodes.scores.tolist() == [3.0, 7.0]
    assert episodes.terminated.tolist() == [True, True]


def test_the_state_a_rewritten_dialogue_was_cut_in_is_a_row_without_actions(chat):
    ledger = ledger_of(chat, "abc")
    ledger.commit([response([50, chat.eos_token_ids[0]])])
    cut = infos(1, stop_reason=np.array(["max_turns"], dtype=object))
    ledger.observe([REWRITTEN], np.ones(1), flags(0), flags(1), cut)
    episodes = ledger.finish()

    assert episodes.sampled.sum(1).tolist() == [2, 0]
    prompt = episodes.inputs.tokens[1][episodes.inputs.attention_mask[1]]
    assert prompt.tolist() == chat.prompt_ids(REWRITTEN)
    assert episodes.slots[0].stop_reason == "max_turns"


def test_a_rewritten_history_that_fills_the_model_is_cut(chat):
    room = len(chat.prompt_ids(REWRITTEN))
    for most, reason in ((room, "context"), (room + 1, None)):
        limits = Limits(max_prompt_tokens=40, max_new_tokens=8, max_tokens=most)
        ledger = ledger_of(chat, "abc", limits=limits)
        ledger.commit([response([50, chat.eos_token_ids[0]])])
        ledger.observe([REWRITTEN], np.ones(1), flags(0), flags(0), infos(1))
        assert ledger.slots[0].stop_reason == reason
        assert ledger.any_live() == (reason is None)


def test_a_span_is_paid_on_its_last_token_and_the_rest_at_the_turns_end(chat):
    ids = chat.tokenizer.convert_tokens_to_ids(["ab", "c", "a", "b"])
    end = chat.eos_token_ids[0]
    ledger = ledger_of(chat, "abc")
    text = ledger.commit([response([50, end])])[0]
    after = (user("abc"), assistant(str(text)), user("more"))
    ledger.observe([after], np.zeros(1), flags(0), flags(0), infos(1))
    assert ledger.commit([response([*ids, end])])[0] == "abcab"

    spans = np.array([None], dtype=object)
    spans[0] = ((0, 1, 0.25), (1, 4, 0.5), (4, 5, -1.0))
    paid = infos(1, reward_spans=spans, env_reward=np.array([0.125]))
    ledger.observe([None], np.array([2.0]), flags(1), flags(0), paid)
    episodes = ledger.finish()

    sampled = episodes.sampled[0]
    assert episodes.rewards[0][sampled].tolist() == [0, 0, 0.25, 0, 0.5, -1.0, 2.25]
    assert episodes.env_rewards[0][sampled].tolist() == [0] * 6 + [0.125]
    assert (episodes.rewards[0][~sampled] == 0).all()
    assert float(episodes.scores) == pytest.approx(2.0)


def rolled_out(chat, learner, *, apart):
    """A rollout of three-turn dialogues; `apart`: in a row for each turn."""
    said = [chat.response_ids(text) for text in ("abc", "hello 1", "cab")]
    script = {i: said[i % 2 :] for i in range(4)}
    slots = [lambda: Talk(3), lambda: Talk(2)] * 2
    settings = config(ppo={"num_prompts": 4, "samples_per_prompt": 1})
    collector = collector_of(chat, LLMVectorEnv(slots), scripted(chat, script), settings)
    nothing = mock.patch.object(ChatFormat, "suffix_ids", return_value=None)
    if not apart:
        return collector.collect(learner, 0)
    with nothing:
        return collector.collect(learner, 0)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_turns_in_rows_of_their_own_are_learned_as_those_of_one_row(chat, critic):
    # The template only appends, so both ways show the policy the same tokens.
    settings = tiny.settings(
        critic=critic, whiten_advantages=False, gamma=0.9, gae_lambda=0.8, entropy_coef=0.1
    )
    got = {}
    for apart in (False, True):
        learner = tiny.learner(settings, model=llama(chat))
        rollout = rolled_out(chat, learner, apart=apart)
        assert len(rollout.index) == (10 if apart else 4)
        experience = make_experience(rollout, settings.ppo)
        mask = experience.response_mask
        columns = {name: column[mask] for name, column in experience.columns().items()}
        metrics = update(learner, experience, settings).values()
        losses = {key: metrics[key] for key in metrics if key.startswith(("loss/", "policy/"))}
        got[apart] = columns, losses, [p.detach().clone() for _, p in learner.weights()]

    columns, losses, weights = got[True]
    for name, column in got[False][0].items():
        torch.testing.assert_close(columns[name], column, rtol=1e-4, atol=1e-5, msg=name)
    assert losses == pytest.approx(got[False][1], rel=1e-4, abs=1e-6)
    for one, other in zip(weights, got[False][2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Listening(Talk):
    """Remembers what it was told."""

    def reply(self, response):
        self.heard = [*(self.heard if self.turn else ()), str(response)]
        return super().reply(response)


@pytest.mark.parametrize("template", [CHATML, QWEN, FORGETS], ids=["chatml", "qwen", "forgets"])
def test_the_ids_of_each_turn_decode_to_the_action_that_was_taken(template):
    chat, _ = chatml(template)
    actor = policy(chat, initializer_range=0.2)
    envs = LLMVectorEnv([lambda: Listening(3)] * 4)
    episodes = play(
        envs,
        written_by(actor, chat),
        chat=chat,
        config=config(generation={"max_new_tokens": 200}),
        sampling=Sampling(seed=1),
        options=PlayOptions(indices=range(4), index=range(4), world=World(), max_tokens=256),
    )

    turns = 0
    for slot, env in zip(episodes.slots, envs.envs, strict=True):
        ids = [
            row.tokens[start : end + 1]
            for row in slot.rows
            for start, end in zip(row.turn_starts, row.turn_ends, strict=True)
        ]
        assert [chat.decode(one) for one in ids] == env.heard == slot.completions
        assert [token for one in ids for token in one] == slot.actions
        assert len(slot.rows) == (len(ids) if template is FORGETS else 1)
        turns += len(ids)
    assert turns > 4, "some dialogues take several turns"
    # And the sampler's log-probabilities are those of a full forward pass of each row.
    with torch.no_grad():
        full = actor(episodes.inputs, episodes.sampled).logprobs
    told = episodes.generator_logprobs
    torch.testing.assert_close(told, full * episodes.sampled, rtol=1e-4, atol=1e-4)


def test_thinking_of_earlier_turns_stays_as_it_was_sampled():
    chat, _ = chatml(QWEN)
    thought = "<think>\nhm\n</think>\n\n7"
    script = {0: [chat.response_ids(thought), chat.response_ids("8")]}
    generator = scripted(chat, script)
    play(
        LLMVectorEnv([lambda: Talk(2)]),
        generator,
        chat=chat,
        config=config(),
        sampling=Sampling(),
        options=PlayOptions(indices=[0], index=[0], world=World()),
    )

    first, second = (list(asked[0].token_ids) for asked in generator.asked)
    assert second[: len(first)] == first
    sampled = chat.response_ids(thought)
    assert second[len(first) : len(first) + len(sampled)] == sampled
    assert chat.tokenizer.decode(second).endswith(
        "<|im_end|>\n<|im_start|>user\nmore 1<|im_end|>\n<|im_start|>assistant\n"
    )


def test_rows_without_actions_do_not_disturb_the_others(chat):
    script = {i: [chat.response_ids("abc"), chat.response_ids("cab")] for i in range(4)}
    slots = LLMVectorEnv([lambda: Talk(9, max_turns=2)] * 4)
    learner = tiny.learner(tiny.settings(), model=llama(chat))
    with mock.patch.object(ChatFormat, "suffix_ids", return_value=None):
        rollout = collector_of(chat, slots, scripted(chat, script), config()).collect(learner, 0)

    assert rollout.response_mask.any(1).tolist() == [True, True, False] * 4
    assert not rollout.terminated.any()
    assert rollout.boundary.any(1).tolist() == [False, True, False] * 4
    values = learner.values(rollout.inputs)
    ends = rollout.boundary[1].nonzero().flatten()
    assert torch.equal(rollout.next_values[1, ends], values[2, :1])
    moved = replace(rollout, rewards=rollout.rewards + 5.0 * ~rollout.response_mask)
    one, other = (make_experience(r, tiny.settings().ppo) for r in (rollout, moved))
    assert torch.equal(one.advantages, other.advantages)
