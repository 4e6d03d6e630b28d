"""The spaces: anything a model writes is a member, and batches of them cost nothing."""

import json
import pickle
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from gymnasium.wrappers.utils import create_zero_array

from llmgym.spaces import Chat, Ragged, Text

SPACES = [Text(), Text(5), Chat(), Ragged(Text(), 3), Ragged(Chat(), 2)]


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_samples_are_members_and_follow_the_seed(space):
    space.seed(3)
    first = [space.sample() for _ in range(50)]
    space.seed(3)
    second = [space.sample() for _ in range(50)]
    assert all(sample in space for sample in first)
    assert repr(first) == repr(second)
    assert len({repr(sample) for sample in first}) > 10


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_spaces_pickle_and_pass_samples_through_json(space):
    copy = pickle.loads(pickle.dumps(space))
    assert copy == space
    assert hash(copy) == hash(space)
    samples = [space.sample() for _ in range(5)]
    back = space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples))))
    assert repr(back) == repr(samples)
    assert not space.is_np_flattenable


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_a_zero_element_is_a_member(space):
    assert create_zero_array(space) in space


def test_text_holds_every_string_and_nothing_else():
    assert "" in Text()
    assert "\U0001f600\n\x00\u202e" in Text()
    assert "x" * 100_000 in Text()
    assert "xxxxxx" not in Text(5)
    assert b"x" not in Text()
    assert None not in Text()


def test_text_samples_show_what_graders_meet():
    space = Text(seed=0)
    text = "".join(space.sample() for _ in range(300))
    assert any(ord(c) > 0xFFFF for c in text)
    assert "\u4f60" in text
    assert "\n" in text
    assert "" in [space.sample() for _ in range(300)]


def test_chat_holds_tuples_of_messages_only():
    message = {"role": "user", "content": "hi"}
    assert () in Chat()
    assert (message, {"role": "tool", "content": "", "tool_call_id": "1"}) in Chat()
    assert [message] not in Chat()
    assert ({"role": "wizard", "content": "hi"},) not in Chat()
    assert ({"role": "user", "content": None},) not in Chat()


def test_caps_do_not_make_spaces_differ_so_mixtures_batch():
    assert Text(5) == Text()
    assert Chat() != Text()
    assert Ragged(Text(), 2) != Ragged(Text(), 3)


def test_masks_are_refused():
    with pytest.raises(ValueError, match="no mask"):
        Text().sample(mask=np.ones(1))


def test_the_batch_space_is_ragged_and_idle_slots_are_members():
    batch = batch_space(Chat(), 3)
    assert batch == Ragged(Chat(), 3)
    assert ((), None, ()) in batch
    assert ((), ()) not in batch
    assert list(iterate(batch_space(Text(), 2), ("a", None))) == ["a", None]
    assert concatenate(Text(), ["a", "b"], create_empty_array(Text(), 2)) == ("a", "b")


def test_seeding_a_batch_leaves_the_slots_own_space_alone():
    single = Text(seed=1)
    batch = batch_space(single, 2)
    expected = pickle.loads(pickle.dumps(single)).sample()
    batch.seed(9)
    batch.sample()
    assert single.sample() == expected


def test_batching_thousands_of_slots_is_fast():
    began = time.process_time()
    batch_space(Chat(), 10_000)
    assert time.process_time() - began < 0.1


def test_gymnasium_stacks_frames_of_a_chat_environment():
    env = gym.make("llmgym/Arithmetic-v0")
    obs, _ = gym.wrappers.FrameStackObservation(env, 2, padding_type="zero").reset(seed=0)
    assert len(obs) == 2
    assert obs[0] == ()
