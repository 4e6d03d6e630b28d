"""What `llmgym envs new NAME --turns` writes: a game of several turns, and its test."""

from string import Template

TURNS_ENV = Template('''\
"""`$id`: name the opposite of a word, with a hint after each wrong answer."""

from pathlib import Path

import llmgym
from llmgym.data.splits import read_split
from llmgym.rows import Columns

TASKS = Path(__file__).with_name("tasks.jsonl")
COLUMNS = Columns(answer="answer", solution="answer")
ANSWERS = 3
HINT_COSTS = 0.25


class Opposites(llmgym.LLMEnv):
    """Three answers, and a hint after each wrong one; arguments are those of `LLMEnv`."""

    def prompt(self, task):
        """Begin an episode: state is set up here, so that the next episode knows nothing of it."""
        self.wrong = 0
        return task.prompt

    def reply(self, response):
        """Answer a response: pay for the right word, give a hint, or end the episode."""
        answer = str(self.task.answer)
        if response.strip().strip(".").lower() == answer:
            return llmgym.Reply(done=True, reward=1.0 - HINT_COSTS * self.wrong)
        self.wrong += 1
        if self.wrong == ANSWERS:
            return llmgym.Reply(f"It was {answer}.", done=True)
        letters = f"It has {len(answer)} letters."
        return llmgym.Reply(f"It begins with {answer[0]}." if self.wrong == 1 else letters)


def make(split="train", max_turns=ANSWERS, **kwargs):
    """Build the environment.

    Args:
        split: "train", "test" for the held-out tenth of the tasks, or "all".
        max_turns: responses of an episode, at most.
        **kwargs: for `llmgym.LLMEnv`; a `reward` is added to what the game pays.
    """
    return Opposites(read_split(TASKS, split, COLUMNS), max_turns=max_turns, **kwargs)
''')
TURNS_TEST = Template('''\
"""The environment keeps the contract, and answers and pays as it should."""

import gymnasium
import pytest
from llmgym.check import check

from $name import ID


def play(*responses):
    """Play an episode of the word "hot"; return the replies and what it earned."""
    env = gymnasium.make(ID, split="all")
    tasks = env.unwrapped.tasks
    index = next(i for i in range(len(tasks)) if tasks[i].answer == "cold")
    env.reset(seed=0, options={"index": index})
    replies, total, over = [], 0.0, False
    for response in responses:
        assert not over
        observation, reward, over, truncated, _ = env.step(response)
        assert not truncated
        replies.append(observation[-1]["content"])
        total += reward
    return replies, total, over


def test_the_environment_keeps_the_contract():
    assert check(ID, held_out={"split": "test"}) == []


@pytest.mark.parametrize(
    ("responses", "worth"),
    [(["cold"], 1.0), ([" Cold."], 1.0), (["warm", "cold"], 0.75), (["a", "b", "cold"], 0.5)],
)
def test_the_right_word_is_paid_for_and_hints_cost(responses, worth):
    _, total, over = play(*responses)
    assert (total, over) == (worth, True)


def test_wrong_answers_get_hints_and_the_third_one_ends_the_episode():
    replies, total, over = play("warm", "", "hot")
    assert replies == ["It begins with c.", "It has 4 letters.", "It was cold."]
    assert (total, over) == (0.0, True)
''')
TURNS_FILES = """\
- `$name/tasks.jsonl`: the tasks, one a line. Columns are in `task.meta`; `answer` is `task.answer`.
- `$name/env.py`: `prompt` begins an episode, and `reply` answers a response: what the world says,
  what it pays, and whether the episode is over."""
"""What the README says of the files."""
