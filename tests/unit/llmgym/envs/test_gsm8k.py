"""GSM8K: its parts on hand-worked solutions, and on every reference solution of the real data."""

from dataclasses import replace

import gymnasium as gym
import pytest

from llmgym.data.tasks import disjoint
from llmgym.envs.gsm8k import WEIGHTS, final_number, is_marked
from llmgym.errors import RewardError, TaskSourceError
from llmgym.rewards.base import score_samples
from llmgym.rewards.calculator import annotations, share_right
from tests.unit.llmgym.samples import sample

ID = "llmgym/GSM8K-v0"


def make(**kwargs):
    return gym.make(ID, **kwargs).unwrapped


def parts(response, index=0, **kwargs):
    """Play one response to a built-in problem; the first one is 6*12-50 = 22 in two steps."""
    env = make(**kwargs)
    env.reset(options={"index": index})
    _, reward, _, _, info = env.step(response)
    found = {name: info[f"reward/{name}"] for name in (*WEIGHTS, "annotations")}
    assert reward == pytest.approx(
        sum((kwargs.get("weights") or WEIGHTS).get(name, 0.0) * found[name] for name in WEIGHTS)
    )
    return tuple(found.values())


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<<6*12=72>>72\n<<72-50=22>>22\n#### 22", (1, 1, 1, 1, 2)),
        ("#### 22", (1, 0, 0, 1, 0)),
        ("The answer is 22", (1, 0, 0, 0, 0)),
        ("<<6*12=72>>\n#### 22", (1, 0.5, 0.5, 1, 1)),
        ("<<6*12=72>><<6*12=72>>\n#### 22", (1, 0.5, 0.5, 1, 1)),
        ("<<22=22>><<72=72>>\n#### 22", (1, 0, 0, 1, 0)),
        ("<<6*12=71>><<72-50=22>>\n#### 23", (0, 0.5, 1, 1, 2)),
        ("#### 22 apples", (0, 0, 0, 0, 0)),
        ("#### 22\nor #### 23", (0, 0, 0, 0, 0)),
        ("#### 22\n#### 22", (1, 0, 0, 0, 0)),
        ("22\n####", (0, 0, 0, 0, 0)),
        ("#### 22.00", (1, 0, 0, 1, 0)),
        ("", (0, 0, 0, 0, 0)),
    ],
)
def test_the_parts_of_hand_worked_responses(response, expected):
    assert parts(response) == expected


def test_weights_decide_the_value_and_its_bound():
    weights = {"consistency": 3.0, "answer": 1.0}
    assert parts("<<6*12=72>>\n#### 22", weights=weights) == (1, 0.5, 0.5, 1, 1)
    assert make(weights=weights).reward_bounds == (0.0, 4.0)
    assert make().reward_bounds == (0.0, 1.0)
    with pytest.raises(RewardError, match="no part is named concistency"):
        make(weights={"concistency": 1.0})
    with pytest.raises(RewardError, match="0 or more"):
        make(weights={"answer": -1.0})


def test_the_number_after_the_last_mark_counts():
    assert final_number("3\n#### 1,200") == 1200
    assert final_number("#### 3\n#### 4") == 4
    assert final_number("so 12") == 12
    assert final_number("#### none, 12") is None
    assert is_marked("a\n#### $5\n")
    assert not is_marked("a #### 5")


def test_a_file_is_read_by_its_columns(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"q": "1+1?", "a": "<<1+1=2>>\\n#### 2"}\n')
    env = make(path=str(path), prompt_column="q", solution_column="a", split="all")
    env.reset(seed=0)
    assert env.step(env.solve())[1] == pytest.approx(1.0)
    path.write_text('\n{"question": "1+1?", "answer": "two"}\n')
    with pytest.raises(
        TaskSourceError, match=r"mine\.jsonl, line 2: the solution must end in .*#### 24.*'two'"
    ):
        make(path=str(path), split="all")


@pytest.mark.data
def test_every_reference_solution_scores_the_most_for_its_answer(data_dir):
    train, test = (make(path=str(data_dir / "gsm8k"), split=split) for split in ("train", "test"))
    assert (len(train.tasks), len(test.tasks)) == (7473, 1319)
    disjoint(train.tasks, test.tasks)
    for env in (train, test):
        rows = [replace(sample(task.solution), task=task) for task in env.tasks.tasks]
        scores = score_samples(env.reward, rows)
        assert {score.parts["answer"] for score in scores} == {1.0}
        assert {score.parts["format"] for score in scores} == {1.0}


@pytest.mark.data
def test_the_annotations_of_the_reference_solutions_are_right(data_dir):
    texts = {
        split: [
            task.solution for task in make(path=str(data_dir / "gsm8k"), split=split).tasks.tasks
        ]
        for split in ("train", "test")
    }
    found = {split: [annotations(text) for text in rows] for split, rows in texts.items()}
    counts = {split: sum(map(len, rows)) for split, rows in found.items()}
    wrong = {s: sum(not one.right for row in rows for one in row) for s, rows in found.items()}
    assert counts == {"train": 23359, "test": 4206}
    assert wrong == {"train": 2, "test": 0}  # 560//10 and 180//3 are no expressions
    shares = {s: sum(map(share_right, rows)) / len(rows) for s, rows in texts.items()}
    assert shares == pytest.approx({"train": 0.9749, "test": 0.9765}, abs=1e-4)


@pytest.mark.data
def test_the_path_of_the_training_file_finds_the_held_out_file_beside_it(data_dir):
    path = str(data_dir / "gsm8k" / "train.jsonl")
    assert len(make(path=path).tasks) == 7473
    assert len(make(path=path, split="test").tasks) == 1319
