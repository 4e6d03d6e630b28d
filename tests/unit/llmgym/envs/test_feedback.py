"""Preferences and emotions without a model, and beginnings of the texts of a file."""

import gymnasium as gym
import pytest

from llmgym.data.tasks import disjoint
from llmgym.envs.feedback import Lexicon, Named, compared
from llmgym.errors import RewardError, TaskSourceError
from llmgym.messages import Completion, Sample
from tests.unit.llmgym.samples import sample


def sentiment(**kwargs):
    return gym.make("llmgym/Sentiment-v0", **kwargs).unwrapped


def texts(env):
    return [task.prompt[0].content for task in env.tasks.tasks]


def judged(reward, task, response):
    made = Sample(task=task, messages=(), response=Completion(response), text=response)
    return reward.score([made])[0]


def test_the_chosen_answer_is_preferred_to_the_rejected_one():
    for task in compared("all").tasks:
        chosen, rejected = (judged(Named(), task, task.meta[one]) for one in ("chosen", "rejected"))
        assert chosen == 1.0 > rejected
        assert judged(Named(), task, task.meta["chosen"].rstrip(".")) == 0.5


@pytest.mark.parametrize(("target", "other"), [("positive", "negative"), ("negative", "positive")])
def test_the_target_is_above_no_emotion_and_that_above_the_other(target, other):
    env, opposite = sentiment(emotion=target, split="all"), sentiment(emotion=other, split="all")
    reward = Lexicon(emotion=target)
    for task, wrong in zip(env.tasks.tasks, opposite.tasks.tasks, strict=True):
        values = [judged(reward, task, one) for one in (task.solution, " home.", wrong.solution)]
        assert values == [1.0, 0.0, -1.0]


def test_mixed_words_are_in_between_and_letter_case_does_not_matter():
    reward = Lexicon(emotion="positive")
    said = ["LOVE it", "I love it, sad", "love sad sad hate", "lovesick", ""]
    assert reward.score([sample(one) for one in said]) == [1.0, 0.0, -0.5, 0.0, 0.0]


def test_the_prompt_is_what_the_assistant_has_begun_to_say():
    env = sentiment()
    observation, _ = env.reset(seed=0)
    assert [one["role"] for one in observation] == ["assistant"]
    assert observation[0]["content"] in texts(env)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.tsv"
    rows = ("I like  this much\t3\ta", "I like  this less\t1\tb", "too short one\t1\tc",
            '  "We are all here\t2\td')  # fmt: skip
    path.write_text("\n".join(rows) + "\n")
    (tmp_path / "test.tsv").write_text("I like  this, no\t3\ta\nNobody is ever late\t3\tb\n"
                                       "I like  this as well\t3\tc\n")  # fmt: skip
    return path


def test_beginnings_are_the_first_words_as_they_stand_each_once(file):
    named = {"path": str(file), "columns": ["text", "labels", "id"]}
    train = sentiment(**named)
    assert texts(train) == ["I like  this", '"We are all']
    held_out = sentiment(split="test", **named)
    assert texts(held_out) == ["I like  this,", "Nobody is ever"]
    disjoint(train.tasks, held_out.tasks)
    assert texts(sentiment(num_words=1, **named)) == ["I", "too", '"We']


def test_what_cannot_be_begun_is_said(file):
    named = {"path": str(file), "columns": ["text", "labels", "id"]}
    alike = file.with_name("alike.jsonl")
    alike.write_text("".join(f'{{"text": "it is {n}"}}\n' for n in range(20)))
    with pytest.raises(TaskSourceError, match="no text of more than 9 words for the split train"):
        sentiment(num_words=9, **named)
    with pytest.raises(TaskSourceError, match="whose beginning is not trained on"):
        sentiment(num_words=2, split="test", path=str(alike))
    with pytest.raises(TaskSourceError, match='no column "text"'):
        sentiment(path=str(file))
    with pytest.raises(TaskSourceError, match="num_words must be 1 or more"):
        sentiment(num_words=0)
    with pytest.raises(RewardError, match="emotion is one of positive, negative; got 'glad'"):
        sentiment(emotion="glad")


def test_prompts_of_a_file_need_someone_to_judge_them(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a?", "chosen": "b"}\n{"prompt": "c?", "chosen": "d"}\n')
    with pytest.raises(RewardError, match=r"(?s)preferred.*--rewards.0.model FOLDER"):
        gym.make("llmgym/Preference-v0", path=str(path))
    env = gym.make("llmgym/Preference-v0", path=str(path), reward="exact", chosen_column="chosen",
                   split="all")  # fmt: skip
    env.reset(options={"index": 1})
    assert env.unwrapped.solve() == "d"


@pytest.mark.data
def test_the_emotions_begin_alike_on_no_two_sides(data_dir):
    named = {"path": str(data_dir / "goemotions"), "columns": ["text", "labels", "id"]}
    train, test = sentiment(**named), sentiment(split="test", **named)
    assert len(train.tasks) > 20_000
    assert len(test.tasks) > 1_000
    disjoint(train.tasks, test.tasks, cap=100_000)
