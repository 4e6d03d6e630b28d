import numpy as np
import pytest
import torch

from tests.unit.trainers.collect.tiny import chat_format
from trainers.collect.ledger import Limits, TokenLedger
from trainers.generation.base import Response

LIMITS = Limits(max_prompt_tokens=40, max_new_tokens=8)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def response(ids, finish="stop", logprob=-0.5, version=3):
    return Response(
        token_ids=tuple(ids),
        logprobs=tuple(logprob * (i + 1) for i in range(len(ids))),
        finish_reason=finish,
        policy_version=version,
    )


def infos(count, **changes):
    base = {
        "reward_valid": np.ones(count, bool),
        "reward_error": np.array([None] * count, dtype=object),
        "reward_retries": np.zeros(count, int),
        "reward_spans": np.array([None] * count, dtype=object),
        "env_reward": np.zeros(count),
        "stop_reason": np.array([None] * count, dtype=object),
        "task_id": np.array([f"t{i}" for i in range(count)], dtype=object),
        "score_ms": np.zeros(count),
    }
    return base | changes


def flags(*values):
    return np.array(values, dtype=bool)


@pytest.fixture
def chat():
    return chat_format()


def ledger_of(chat, *texts, limits=LIMITS):
    observations = [(user(text),) for text in texts]
    return TokenLedger(chat, observations, index=list(range(len(texts))), limits=limits)


def test_a_turn_is_its_sampled_ids_and_an_end_token_is_one_of_them(chat):
    ledger = ledger_of(chat, "abc", "abcd bcd")
    end = chat.eos_token_ids[0]
    prompts = [list(one.token_ids) for one in ledger.requests()]

    ledger.commit([response([50, 51, end]), response([60], "length")])
    done = infos(2, stop_reason=np.array(["answered", "length"], dtype=object))
    ledger.observe([None, None], np.array([1.0, 0.5]), flags(1, 0), flags(0, 1), done)
    episodes = ledger.finish()

    inputs = episodes.inputs
    assert inputs.actions.tolist() == [[50, 51, end], [60, *[chat.pad_token_id] * 2]]
    assert episodes.sampled.tolist() == [[True] * 3, [True, False, False]]
    for row, prompt in enumerate(prompts):
        assert inputs.tokens[row, : inputs.num_prompt].tolist()[-len(prompt) :] == prompt
        assert int(inputs.attention_mask[row, : inputs.num_prompt].sum()) == len(prompt)
        assert inputs.attention_mask[row, inputs.num_prompt - len(prompt) :][: len(prompt)].all()
    assert torch.equal(inputs.attention_mask[:, inputs.num_prompt :], episodes.sampled)
    assert episodes.generator_logprobs.tolist() == [[-0.5, -1.0, -1.5], [-0.5, 0.0, 0.0]]
    assert episodes.rewards.tolist() == [[0, 0, 1.0], [0.5, 0, 0]]
    assert episodes.terminated.tolist() == [True, False]
    assert episodes.truncated.tolist() == [False, True]


@pytest.mark.parametrize("length", [1, 2, 7, 8])
@pytest.mark.parametrize("ends", [True, False])
def test_the_reward_of_a_turn_is_on_its_last_sampled_token(chat, length, ends):
    ledger = ledger_of(chat, "abc", "abc")
    ids = [40 + i for i in range(length)]
    ids[-1] = chat.eos_token_ids[0] if ends else ids[-1]

    ledger.commit([response(ids, "stop" if ends else "length"), response([7] * 8, "length")])
    ledger.observe([None] * 2, np.array([2.0, 0.0]), flags(ends, 0), flags(not ends, 1), infos(2))
    episodes = ledger.finish()

    wanted = [0.0] * 8
    wanted[length - 1] = 2.0
    assert episodes.rewards[0].tolist() == wanted


def test_pad_equal_to_the_end_token_leaves_the_first_end_token_in_and_nothing_after(chat):
    end = chat.eos_token_ids[0]
    chat.tokenizer.pad_token = chat.tokenizer.convert_ids_to_tokens(end)
    assert chat.pad_token_id == end
    ledger = ledger_of(chat, "abc", "abc")

    ledger.commit([response([50, end]), response([7] * 6, "length")])
    ledger.observe([None] * 2, np.zeros(2), flags(1, 0), flags(0, 1), infos(2))
    episodes = ledger.finish()

    assert episodes.inputs.actions[0].tolist() == [50] + [end] * 5
    assert episodes.sampled[0].tolist() == [True, True, False, False, False, False]
    assert episodes.inputs.attention_mask[0, episodes.inputs.num_prompt :].sum() == 2


def test_sampled_ids_are_kept_where_decoding_and_encoding_changes_them(chat):
    plain = chat.tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    end = chat.eos_token_ids[0]
    assert chat.response_ids("abc") != [*plain, end]  # encoding would merge them

    ledger = ledger_of(chat, "abc")
    action = ledger.commit([response([*plain, end])])[0]
    ledger.observe([None], np.zeros(1), flags(1), flags(0), infos(1))

    assert action == "abc"
    assert action.token_ids == (*plain, end)
    assert ledger.finish().inputs.actions[0].tolist() == [*plain, end]


def two_turns(chat, first, second):
    ledger = ledger_of(chat, "abc")
    opening = (user("abc"),)
    text = ledger.commit([response(first)])[0]
    after = (*opening, assistant(str(text)), user("more"))
    ledger.observe([after], np.array([1.0]), flags(0), flags(0), infos(1))
    return ledger, after


def test_what_the_environment_says_is_appended_and_masked(chat):
    end = chat.eos_token_ids[0]
    first = [*chat.tokenizer.convert_tokens_to_ids(["a", "b"]), end]
    ledger, after = two_turns(chat, first, None)
    request = ledger.requests()[0]

    ledger.commit([response([70, 71, end])])
    ledger.observe([None], np.array([4.0]), flags(1), flags(0), infos(1))
    episodes = ledger.finish()

    prompt = chat.prompt_ids((user("abc"),))
    said = chat.suffix_ids(after[:2], after[2:])
    assert list(request.token_ids) == [*prompt, *first, *said]
    assert request.position == 3
    wanted = [True] * 3 + [False] * len(said) + [True] * 3
    assert episodes.sampled[0].tolist() == wanted
    assert episodes.inputs.attention_mask.all()
    assert episodes.generator_logprobs[0][~episodes.sampled[0]].tolist() == [0.0] * len(said)
    assert episodes.rewards[0].nonzero().flatten().tolist() == [2, len(wanted) - 1]
    assert episodes.rewards[0, [2, -1]].tolist() == [1.0, 4.0]
    assert episodes.turn_ends[0].nonzero().flatten().tolist() == [2, len(wanted) - 1]
    assert float(episodes.scores) == 5.0


def test_the_ids_of_each_turn_decode_to_its_action(chat):
    end = chat.eos_token_ids[0]
    ledger, _ = two_turns(chat, [*chat.tokenizer.convert_tokens_to_ids(["a", "b"]), end], None)
    second = ledger.commit([response([70, 71, end])])[0]
    ledger.observe([None], np.zeros(1), flags(1), flags(0), infos(1))
    episodes = ledger.finish()

    ids = episodes.inputs.actions[0][episodes.sampled[0]].tolist()
    assert chat.decode(ids[:3]) == "ab"
    assert chat.decode(ids[3:]) == str(second)


def test_the_state_an_episode_was_cut_in_includes_the_last_observation(chat):
    end = chat.eos_token_ids[0]
    for terminated in (True, False):
        ledger, after = two_turns(chat, [50, end], None)
        text = ledger.commit([response([70, end])])[0]
        last = (*after, assistant(str(text)), user("over"))
        cut = flags(not terminated)
        ledger.observe([last], np.zeros(1), flags(terminated), cut, infos(1))
        episodes = ledger.finish()

        said = len(chat.suffix_ids(last[:4], last[4:]))
        behind = 0 if terminated else said
        assert int((~episodes.sampled[0].flip(0)).long().cumprod(0).sum()) == behind


def test_an_episode_that_fills_the_model_is_cut(chat):
    prompt = len(chat.prompt_ids((user("abc"),)))
    limits = Limits(max_prompt_tokens=40, max_new_tokens=8, max_tokens=prompt + 5)
    ledger = ledger_of(chat, "abc", limits=limits)
    assert ledger.requests()[0].max_new_tokens == 5

    text = ledger.commit([response([50, chat.eos_token_ids[0]])])[0]
    after = (user("abc"), assistant(str(text)), user("a long answer of many words"))
    ledger.observe([after], np.array([1.0]), flags(0), flags(0), infos(1))

    episodes = ledger.finish()
    assert episodes.truncated.tolist() == [True]
    assert episodes.slots[0].stop_reason == "context"


def test_a_prompt_over_the_limit_is_never_cut_but_left_out(chat):
    limits = Limits(max_prompt_tokens=12, max_new_tokens=8)
    ledger = ledger_of(chat, "abc", "what is this hello " * 5, limits=limits)

    assert ledger.too_long == [len(chat.prompt_ids((user("what is this hello " * 5),)))]
    assert len(ledger.requests()) == 1
    actions = ledger.commit([response([50, chat.eos_token_ids[0]])])
    assert actions[1] is None
    ledger.observe([None] * 2, np.array([1.0, 0.0]), flags(1, 0), flags(0, 0), infos(2))
    episodes = ledger.finish()

    assert episodes.valid.tolist() == [True, False]
    assert not episodes.sampled[1].any()
    assert int(episodes.inputs.attention_mask[1].sum()) == 1


def test_an_invalid_reward_marks_the_whole_row(chat):
    ledger = ledger_of(chat, "abc")
    ledger.commit([response([50, chat.eos_token_ids[0]])])
    failed = infos(
        1, reward_valid=flags(0), reward_error=np.array(["ZeroDivisionError: x"], object)
    )
    ledger.observe([None], np.zeros(1), flags(1), flags(0), failed)

    episodes = ledger.finish()
    assert episodes.valid.tolist() == [False]
    assert episodes.slots[0].error == "ZeroDivisionError: x"


def test_named_parts_are_noted_and_absent_ones_stay_absent(chat):
    ledger, _ = two_turns(chat, [50, chat.eos_token_ids[0]], None)
    ledger.commit([response([50, chat.eos_token_ids[0]])])
    parts = {"reward/form": np.array([0.5]), "reward/other": np.array([np.nan])}
    ledger.observe([None], np.zeros(1), flags(1), flags(0), infos(1, **parts))

    assert ledger.finish().slots[0].parts == {"form": 0.5}


def test_rows_without_any_action_still_make_tensors(chat):
    limits = Limits(max_prompt_tokens=2, max_new_tokens=8)
    ledger = ledger_of(chat, "abc", "abc", limits=limits)

    assert not ledger.any_live()
    episodes = ledger.finish()

    assert episodes.sampled.shape == (2, 1)
    assert not episodes.sampled.any()
