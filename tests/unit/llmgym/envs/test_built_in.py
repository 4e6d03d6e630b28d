"""Every built-in environment: gold earns the most, junk the floor, and answers are recomputed."""

import gymnasium as gym
import pytest

import llmgym
from llmgym.data.tasks import disjoint, num_tasks
from llmgym.envs import BUILT_IN
from llmgym.envs.arithmetic import MakeTask, split_of
from llmgym.envs.probes import words
from llmgym.errors import RewardError, TaskSourceError

IDS = [id for id, _, _ in BUILT_IN]
JUNK = ("", "junk", "0x99", "\x00", "#### ", "a a a a", "<<>>", "99999999999", "\u0663", "(" * 300)


def make(id, **kwargs):
    return gym.make(id, **kwargs).unwrapped


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("id", IDS)
def test_gold_earns_the_most_and_junk_the_floor_for_1000_seeds(id, split):
    env = make(id, split=split)
    low, best = env.reward_bounds
    floor = max(low, 0.0)
    for seed in range(1000):
        env.reset(seed=seed)
        assert played(env, env.solve) == pytest.approx(best, abs=1e-12), seed
        env.reset(seed=seed)
        assert played(env, lambda: JUNK[seed % len(JUNK)]) == floor, (seed, env.task)  # noqa: B023


def played(env, answer):
    """What an episode that was reset earns in all."""
    total, over = 0.0, False
    while not over:
        _, reward, terminated, truncated, _ = env.step(answer())
        total, over = total + reward, terminated or truncated
    return total


@pytest.mark.parametrize("id", IDS)
def test_the_splits_are_disjoint(id):
    disjoint(make(id, split="train").tasks, make(id, split="test").tasks)


@pytest.mark.parametrize("id", IDS)
def test_a_misspelt_split_is_refused(id):
    with pytest.raises(TaskSourceError, match="split must be"):
        make(id, split="tset")


@pytest.mark.parametrize("id", IDS)
def test_another_reward_replaces_the_built_in_one(id):
    env = make(id, reward={"name": "constant", "kwargs": {"value": 0.25}})
    env.reset(seed=0)
    assert played(env, lambda: "anything") == 0.25


def test_every_built_in_id_is_registered_with_its_tags():
    assert set(IDS) <= set(llmgym.ids())
    assert "llmgym/Arithmetic-v0" in llmgym.ids("procedural")


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_arithmetic_is_right_and_of_its_level(digits):
    env = make("llmgym/Arithmetic-v0", digits=digits, operations="+-*")
    seen = set()
    for index in range(1000):
        task = env.tasks[index]
        a, operation, b, equals = task.prompt.split()
        value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operation]
        assert (equals, task.answer, task.level) == ("=", value, digits)
        assert max(len(a), len(b)) <= digits
        assert task.solution.strip() == str(value)
        seen.add(operation)
    assert seen == set("+-*")


def test_a_pair_of_operands_is_held_out_in_both_orders():
    for a in range(100):
        for b in range(100):
            assert split_of(a, b) == split_of(b, a)
    held_out = sum(split_of(a, b) == "test" for a in range(100) for b in range(100))
    assert 0.15 < held_out / 10_000 < 0.25
    for digits in range(1, 10):
        for split in ("train", "test"):
            env = make("llmgym/Arithmetic-v0", digits=digits, split=split)
            assert all(
                split_of(env.tasks[i].meta["a"], env.tasks[i].meta["b"]) == split for i in range(20)
            )


def test_arithmetic_wants_the_number_and_nothing_else():
    env = make("llmgym/Arithmetic-v0")
    env.reset(options={"index": 0})
    answer = env.task.answer
    for response, expected in {
        f" {answer}\n": 1.0,
        f"{answer}.": 1.0,
        f"{answer} or {answer + 1}": 0.0,
        f"the answer is {answer}": 0.0,
        f"{answer + 1}": 0.0,
        f"{answer}{answer}": 0.0,
    }.items():
        env.reset(options={"index": 0})
        assert env.step(response)[1] == expected, response


def test_arithmetic_refuses_settings_out_of_range():
    for kwargs in ({"digits": 0}, {"digits": 10}, {"operations": ""}, {"operations": "+/"}):
        with pytest.raises(TaskSourceError, match="must be"):
            make("llmgym/Arithmetic-v0", **kwargs)
    assert num_tasks(make("llmgym/Arithmetic-v0").tasks) is None
    assert num_tasks(make("llmgym/Arithmetic-v0", size=9).tasks) == 9


def test_arithmetic_tasks_are_functions_of_seed_and_number():
    one, other = (make("llmgym/Arithmetic-v0", seed=seed) for seed in (0, 1))
    assert [one.tasks[i] for i in range(50)] == [one.tasks[i] for i in range(50)]
    assert [one.tasks[i].id for i in range(50)] != [other.tasks[i].id for i in range(50)]
    assert MakeTask("+", "train") == MakeTask("+", "train")


def test_reversals_cover_every_word_once():
    train, test = words(3, "abcdefgh", "train"), words(3, "abcdefgh", "test")
    assert len(train) + len(test) == len(set(train) | set(test)) == 8**3
    env = make("llmgym/ReverseTokens-v0")
    assert len(env.tasks) == len(train)
    for i in range(len(train)):
        task = env.tasks[i]
        assert task.answer.split() == task.prompt.split()[::-1]
    with pytest.raises(TaskSourceError, match="length must be"):
        make("llmgym/ReverseTokens-v0", length=9)


def test_prompts_hand_every_column_to_a_function_called_with_all_samples(tmp_path):
    data, code = tmp_path / "mine.csv", tmp_path / "mine.py"
    data.write_text("ask,color,size\n" + "".join(f"q{i},c{i},{i}\n" for i in range(20)))
    code.write_text(
        "def score(prompt, response, color, **columns):\n"
        "    return {'named': float(color in response), 'size': float(columns['size'])}\n"
    )
    reward = {"function": f"{code}:score", "isolated": False}
    kwargs = {"path": str(data), "prompt_column": "ask", "reward": reward, "split": "all"}
    envs = gym.make_vec("llmgym/Prompts-v0", num_envs=3, **kwargs)
    obs, _ = envs.reset(options={"indices": [4, 5, 6]})
    assert [one[0]["content"] for one in obs] == ["q4", "q5", "q6"]
    _, rewards, terminated, _, infos = envs.step(["c4", "no", "c6"])
    assert list(rewards) == [5.0, 5.0, 7.0]
    assert list(infos["reward/named"]) == [1.0, 0.0, 1.0]
    assert all(terminated)


def test_prompts_from_a_file_need_a_reward_or_a_column_to_compare_with(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "gold": "b"}\n')
    for column in ("answer_column", "solution_column"):
        kwargs = {"path": str(tmp_path / "p.jsonl"), column: "gold", "split": "all"}
        env = make("llmgym/Prompts-v0", **kwargs)
        assert env.reward_bounds == (0.0, 1.0)
        env.reset(seed=0)
        assert env.step("b")[1] == 1.0
    with pytest.raises(RewardError, match=r"--reward my_reward\.py:score"):
        make("llmgym/Prompts-v0", path=str(tmp_path / "p.jsonl"))


def test_a_reward_that_misses_a_column_names_it(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "kind": "b"}\n')

    def score(prompt, response, reference):
        return 1.0

    env = make("llmgym/Prompts-v0", path=str(tmp_path / "p.jsonl"), reward=score, split="all")
    env.reset(seed=0)
    with pytest.raises(RewardError, match=r"needs reference, .*answer, kind, prompt, response"):
        env.step("x")
