"""Rewards that raise, hang, or return what is no number: nothing of it is ever counted as 0."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import SMALL, write_rows
from trainers.run_dir.record import read_status

BAD = """
import os, sys, time
from pathlib import Path

def constant(prompt, response):
    return 1.0

def raises(prompt, response, word):
    return {}[word]

def nan(prompt, response):
    return float("nan")

def inf(prompt, response):
    return {"good": 1.0, "bad": float("inf")}

def none(prompt, response):
    pass

def pair(prompt, response):
    return [1.0, 2.0]

def hangs(prompt, response):
    with Path("pids").open("a") as stream:
        stream.write(f"{os.getpid()}\\n")
    while True:
        pass

def wants_gold(prompt, response, gold):
    return 1.0

class Short:
    name = "short"
    per_turn = False
    collective = False

    def score(self, samples):
        return [1.0]
"""


@pytest.fixture
def scored(typed):
    """Type the command with a reward of the file above."""

    def command(name, **changes):
        Path("bad.py").write_text(BAD, encoding="utf-8")
        named = {f"--{key.replace('__', '.').replace('_', '-')}": v for key, v in changes.items()}
        answer = typed({"--reward": f"bad.py:{name}"} | named)
        assert "Traceback" not in answer.said
        return answer

    return command


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", r"KeyError: '\d+' at .*bad.py:9"),
        ("nan", "nan() returned nan, which is not finite"),
        ("inf", "inf() returned good 1.0, bad inf, which is not finite"),
        ("none", "bad.py:17 none() returned None, which abstains"),
        ("pair", "bad.py:20 pair() returned list [1.0, 2.0] for the response '"),
    ],
)
def test_a_reward_that_is_no_number_stops_the_run_with_what_it_was(scored, name, says):
    answer = scored(name)
    assert answer.code == 1
    assert "RewardError: " in answer.said
    assert says.partition(r"'\d")[0] in answer.said
    assert not Path("runs/a/metrics.jsonl").exists(), "no iteration was counted"
    assert read_status(Path("runs/a"))["status"] == "failed"
    log = Path("runs/a/logs/latest/rank_0.log").read_text(encoding="utf-8")
    assert "Traceback" in log
    assert scored("constant").code == 0, "the corrected command starts at once"


def test_failures_are_shown_with_their_share_the_completion_and_the_setting(scored):
    said = scored("raises").said
    assert "the reward failed on 100% of samples, max_error_rate is 20%" in said
    assert "A failed reward is never counted as 0." in said
    assert "--ppo.max-error-rate" in said
    assert "bad.py" in said


def test_failures_that_are_allowed_are_left_out_and_counted(scored):
    answer = scored("nan", ppo__max_error_rate=1.0)
    assert answer.code == 0
    assert "4 rewards failed and were left out" in answer.shown + answer.said
    assert '"rewards/errors": 4.0' in Path("runs/a/metrics.jsonl").read_text(encoding="utf-8")


def test_a_batch_of_a_wrong_length_is_a_broken_reward(scored):
    answer = scored("Short", rewards__0__isolated="false")
    assert answer.code == 1
    assert (
        "bad.py:32 short.score() returned 1 values for 4 samples, the first for the" in answer.said
    )


def test_a_reward_that_hangs_is_killed_at_its_limit(scored):
    answer = scored("hangs", rewards__0__timeout_seconds=0.2)
    assert answer.code == 1
    assert "hangs: no verdict within 0.2 s; it was killed" in answer.said
    pids = [int(line) for line in Path("pids").read_text().split()]
    assert len(pids) == 4
    assert all(map(is_gone, pids))


def test_a_constant_reward_is_warned_about_and_the_run_goes_on(scored):
    answer = scored("constant")
    assert answer.code == 0
    shown = " ".join(answer.shown.split())
    assert shown.count("the reward is the same for all 4 episodes: there is nothing to learn") == 1
    assert "equal rewards (1 x)" in shown


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("my_reward.py:goood", "did you mean good?"),
        ("my_reward.py", "it has my_reward.py:"),
        ("my_rewards.py:good", "There is no file"),
        ("no_such_module:good", "The module no_such_module does not load"),
    ],
)
def test_a_reward_that_is_not_there_is_named_before_weights_load(refused, reward, says):
    assert says in refused({"--reward": reward})


def test_a_reward_that_wants_a_column_that_is_not_there_is_told_those_there_are(scored):
    answer = scored("wants_gold")
    assert answer.code == 1
    assert "wants_gold() needs gold" in answer.said
    assert "prompt, response, word" in answer.said


@pytest.mark.parametrize(
    ("reward", "gold"),
    [
        ("numeric", "eleven"),
        ("choice", "F"),
        ("contains", " "),
        ("math.boxed", ""),
        pytest.param("math.verify", r"\dots", marks=pytest.mark.math),
    ],
)
def test_an_answer_that_a_reward_cannot_compare_is_named_before_weights_load(refused, reward, gold):
    rows = [{"prompt": f"Name {n}", "gold": "A" if reward == "choice" else "1"} for n in range(11)]
    write_rows("prompts.jsonl", [*rows, {"prompt": "Name it", "gold": gold}])
    named = {"--reward": None, "--rewards.0.name": reward, "--envs.0.kwargs.split": "all"}
    said = refused(named | {"--envs.0.kwargs.answer-column": "gold"})
    assert "the row 'Name it' of prompts.jsonl" in said
    assert "cannot be built with envs.0.kwargs" in said


def test_prompts_without_anything_to_judge_them_by_are_told_both_ways(refused):
    said = refused({"--reward": None})
    assert "--reward my_reward.py:score" in said
    assert "--envs.0.kwargs.answer_column NAME" in said


def is_gone(pid, seconds=20.0):
    """Wait until a process has ended, by a handle of the kernel; False if it does not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = bool(select.select([handle], [], [], seconds)[0])
    os.close(handle)
    return ended


def test_a_grader_that_spins_does_not_outlive_a_trainer_that_is_killed(place):
    Path("bad.py").write_text(BAD, encoding="utf-8")
    os.mkfifo("pids")
    started = os.open("pids", os.O_RDWR | os.O_NONBLOCK)
    given = SMALL | {"--reward": "bad.py:hangs", "--rewards.0.timeout-seconds": 600}
    words = [word for pair in given.items() for word in map(str, pair)]
    trainer = subprocess.Popen(
        [sys.executable, "-m", "trainers.cli", "train", "prompts", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    heard = select.select([started], [], [], 120.0)[0]
    graders = [int(line) for line in os.read(started, 1000).split()] if heard else []
    os.close(started)
    parents = [parent_of(pid) for pid in graders]
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert graders, "no sample was graded"
    assert trainer.pid not in graders + parents
    assert all(is_gone(pid) for pid in graders + parents)


def parent_of(pid):
    """Return the process that started another."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return int(stat.rpartition(")")[2].split()[1])
