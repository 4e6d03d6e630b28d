"""Exports: rows are tasks, episodes pay what the environment pays, lacking libraries are named."""

import json

import gymnasium as gym
import pytest

import llmgym.export
from llmgym.addresses import load_module
from llmgym.data.files import read_table
from llmgym.errors import EnvContractError, MissingExtraError, PluginError
from llmgym.export import for_verifiers
from llmgym.export.episodes import DEFAULT_SIZE, Episode, Source
from llmgym.export.for_trl import TrlEnvironment, reward_of_responses
from llmgym.export.for_verl import compute_score

SUMS = Source("llmgym/Arithmetic-v0", {"split": "test"})
GAME = Source("llmgym/GuessNumber-v0", {"level": 3})


def failing(prompt, response):
    raise ValueError("no")


def solved(source, index):
    env = gym.make(source.id, **source.kwargs).unwrapped
    env.reset(options={"index": index})
    return env.solve()


def test_rows_are_the_tasks_in_order_with_the_prompt_that_the_environment_shows():
    rows = Source("llmgym/FrozenLake-v0", {"level": 3}).rows(5)
    env = gym.make("llmgym/FrozenLake-v0", level=3).unwrapped
    for index, row in enumerate(rows):
        observation, info = env.reset(options={"index": index})
        assert row["index"] == index
        assert row["prompt"] == [dict(message) for message in observation]
        assert row["task_id"] == info["task_id"]
    assert len(SUMS.rows(None)) == DEFAULT_SIZE
    assert SUMS.rows(3)[0]["answer"] == json.dumps(
        gym.make(SUMS.id, split="test").unwrapped.tasks[0].answer
    )


@pytest.mark.parametrize("size", [0, -1, 99999])
def test_a_number_of_rows_that_is_not_there_is_refused(size):
    with pytest.raises(EnvContractError, match=r"has 448 tasks; received size"):
        Source("llmgym/ReverseTokens-v0").rows(size)


def test_an_environment_of_numbers_is_refused():
    with pytest.raises(EnvContractError, match="Expected an LLMEnv"):
        Source("CartPole-v1").make()


def test_an_episode_pays_what_the_environment_pays_and_can_begin_again():
    episode = Episode(GAME)
    assert episode.over
    for index in range(5):
        env = gym.make(GAME.id, **GAME.kwargs).unwrapped
        first, _ = env.reset(options={"index": index})
        assert episode.begin(index) == [dict(message) for message in first]
        told, over = [], False
        while not over:
            text = env.solve()
            _, reward, over, _, _ = env.step(text)
            told.append(episode.respond(text))
            assert episode.over == over
        assert episode.reward() == reward == 1.0
        assert told[-1] == []
        assert all(len(messages) == 1 for messages in told[:-1])
    episode.begin(0)
    assert episode.reward() == 0.0


def test_a_cut_response_ends_the_episode():
    episode = Episode(GAME)
    episode.begin(0)
    episode.respond("1", cut=True)
    assert episode.over


def test_a_reward_that_fails_is_none_and_not_zero():
    episode = Episode(Source("llmgym/Arithmetic-v0", {"reward": failing}))
    episode.begin(0)
    episode.respond("3")
    assert episode.reward() is None


def test_the_reward_function_of_trl_scores_texts_and_dialogues_by_their_index():
    answers = [solved(SUMS, index) for index in (4, 2)]
    dialogue = [{"role": "assistant", "content": answers[1]}]
    rewards = reward_of_responses(
        SUMS, [answers[0], dialogue, "no"], [4, 2, 0], prompts=[], trainer_state=None
    )
    assert rewards == [1.0, 1.0, 0.0]


def test_the_environment_of_trl_has_one_tool_and_says_when_the_task_is_over():
    env = TrlEnvironment(GAME)
    assert env.reset(index=0, prompt=[], task_id="x") is None
    assert env.respond("nothing").startswith("A number from ")
    env.reset(index=1)
    inner = gym.make(GAME.id, **GAME.kwargs).unwrapped
    inner.reset(options={"index": 1})
    reply = ""
    while reply != "The task is over.":
        text = inner.solve()
        inner.step(text)
        reply = env.respond(text)
    assert env.get_reward() == 1.0
    assert env.respond("5") == "The task is over."
    assert env.get_reward() == 1.0
    tools = [name for name in vars(TrlEnvironment) if not name.startswith("_")]
    assert sorted(tools) == ["get_reward", "reset", "respond"]


@pytest.mark.parquet
def test_the_file_of_verl_has_its_columns_and_its_rows_can_be_scored(tmp_path):
    path = llmgym.export.verl(SUMS.id, tmp_path / "train.parquet", size=6, split="test")
    rows = [row for _, row in read_table(path)]
    assert [row["extra_info"]["index"] for row in rows] == list(range(6))
    for row in rows:
        assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
        assert row["extra_info"]["split"] == "test"
        truth = row["reward_model"]["ground_truth"]
        assert truth == solved(SUMS, row["extra_info"]["index"]).strip()
        for text, paid in ((truth, 1.0), ("no", 0.0)):
            assert compute_score(row["data_source"], text, truth, row["extra_info"]) == paid


def test_verl_refuses_several_turns_and_rows_of_another_origin(tmp_path):
    with pytest.raises(EnvContractError, match=r"several turns.*\n?.*export\.trl"):
        llmgym.export.verl(GAME.id, tmp_path / "train.parquet")
    for info in (None, {"index": 0}):
        with pytest.raises(EnvContractError, match=r"rows that llmgym\.export\.verl wrote"):
            compute_score(SUMS.id, "3", "3", info)
    info = {"index": 0, "kwargs": "{}", "task_id": "another"}
    with pytest.raises(EnvContractError, match="write the file again"):
        compute_score(SUMS.id, "3", "3", info)


def test_libraries_that_lack_are_named(monkeypatch):
    def absent(name):
        raise PluginError(name)

    monkeypatch.setattr(for_verifiers, "load_module", absent)
    with pytest.raises(MissingExtraError, match=r"pip install .verifiers>=0\.2,<0\.3\.1"):
        llmgym.export.verifiers(SUMS.id)
    monkeypatch.setitem(load_module("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"llmgym-rl\[data\]"):
        llmgym.export.trl(SUMS.id, size=2)
