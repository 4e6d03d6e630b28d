"""An audit finds what is planted, and nothing in an environment without faults."""

import json
import os
import random
from pathlib import Path

import pytest

from llmgym import audit as module
from llmgym.audit import audit
from llmgym.audit_page import COLUMNS, lines_of, page
from llmgym.data.tasks import from_list, procedural
from llmgym.env import LLMEnv, SingleTurnEnv
from llmgym.messages import Reply, Task
from llmgym.rewards.base import UnitReward

HERE = Path(__file__)
TASKS = [
    Task(id=f"t{i}", prompt=f"Say {i}", answer=str(i), solution=f"It is {i}") for i in range(8)
]
HELD_OUT = [Task(id=f"h{i}", prompt=f"Say {90 + i}", answer=str(i)) for i in range(8)]


class Pays(UnitReward):
    """1.0 for the answer's last word; what it pays besides is its fault."""

    def __init__(self, fault=""):
        self.fault = fault
        self.name = "pays"

    def score(self, samples):
        return [self._score(sample) for sample in samples]

    def _score(self, sample):
        text, answer = str(sample.text), sample.task.answer
        if self.fault == "raises" and not text:
            raise ValueError("no text")
        if self.fault == "pays for nothing":
            return 0.1
        if self.fault == "pays for numbers":
            return float(text[-1:].isdigit())
        if self.fault == "pays for echo" and text.startswith("Say"):
            return 1.0
        return float(text.split()[-1:] == [answer] and text.startswith("It is"))


class Careless(LLMEnv):
    """Shares what it should not."""

    turns = 0

    def reply(self, response):
        random.random()
        Careless.turns += 1
        os.environ["LLMGYM_AUDITED"] = str(Careless.turns)
        return Reply(f"turn {Careless.turns - self.began}")

    def prompt(self, task):
        self.began = Careless.turns
        return task.prompt


def make(split="train", fault=""):
    if fault == "careless":
        return Careless(from_list(TASKS))
    rows = TASKS if split == "train" or fault == "overlap" else HELD_OUT
    wrong = [Task(id=t.id, prompt=t.prompt, answer=t.answer, solution="?") for t in TASKS]
    return SingleTurnEnv(from_list(wrong if fault == "gold" else rows), Pays(fault))


def endless(split="train"):
    return SingleTurnEnv(procedural(lambda rng, level: TASKS[int(rng.integers(8))]), Pays())


@pytest.fixture
def audited(registered, monkeypatch):
    monkeypatch.delenv("LLMGYM_AUDITED", raising=False)

    def run(fault="", name="make", **kwargs):
        id = registered(f"{HERE}:{name}", fault=fault) if fault else registered(f"{HERE}:{name}")
        return audit(id, episodes=6, **kwargs)

    return run


def test_an_environment_without_faults_has_none(audited):
    result = audited()
    assert result.faults == ()
    assert (result.gold, result.raises, result.overlap) == (1.0, 0.0, (0, 0))
    assert result.earns == {
        "empty": 0.0, "prose": 0.0, "echo": 0.0, "wrong label": 0.0, "another's gold": 0.0
    }  # fmt: skip
    assert result.slots
    assert result.survives
    assert result.reset_ms > 0
    assert json.loads(json.dumps(result.as_json()))["id"] == result.id


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gold", "its own solutions earn 1 on 0% of the tasks only"),
        ("pays for nothing", "the answer 'empty' earns 0.1 on average, more than 0"),
        ("pays for numbers", 'the answer "another\'s gold" earns 1 on average, more than 0.5'),
        ("pays for numbers", "the answer 'wrong label' earns 1 on average"),
        ("pays for echo", "the answer 'echo' earns 1 on average"),
        ("raises", "it raises, or its reward fails, on 20.0% of junk"),
        ("overlap", "8 of 8 test tasks are among the training tasks, by id"),
        ("overlap", "8 of 8 test tasks are among the training tasks, by prompt"),
        ("careless", "it changes random of the process"),
        ("careless", "it changes the environment variables of the process"),
        ("careless", "an episode changes when another one is played"),
    ],
)
def test_a_planted_fault_is_found(audited, fault, words):
    result = audited(fault)
    assert words in "\n".join(result.faults)
    assert words in "\n".join(lines_of(result))


def test_a_crash_that_spreads_is_found(audited, monkeypatch):
    class Fused(module.LLMVectorEnv):
        def step(self, actions):
            for env in self.envs:
                env.client.close()
            return super().step(actions)

    monkeypatch.setattr(module, "LLMVectorEnv", Fused)
    result = audited()
    assert not result.survives
    assert "a crash of one slot cost another one" in result.faults


def test_a_part_that_breaks_is_a_fault_and_the_others_are_measured(audited):
    result = audited(name="endless", level=3)
    assert any("endless" in fault for fault in result.faults)
    assert result.gold is None


def test_a_source_without_end_is_audited(audited):
    result = audited(name="endless")
    assert result.gold == 1.0
    assert result.overlap == (8, 8)


def test_the_page_has_a_row_for_each_and_lists_what_is_wrong(audited):
    results = [audited(), audited("gold")]
    text = page(results, "llmgym envs audit --from toy")
    rows = [line for line in text.splitlines() if line.startswith("| `toy")]
    assert len(rows) == 2
    assert all(row.count("|") == len(COLUMNS) + 1 for row in rows)
    assert "```bash\nllmgym envs audit --from toy\n```" in text
    assert f"- `{results[1].id}`: its own solutions" in text
