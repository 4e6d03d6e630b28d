"""What is printed: within 80 columns, plain where there is no terminal, warnings once."""

import io
import json
import re

import pytest

from trainers.config.files import read
from trainers.loggers.base import RunInfo
from trainers.loggers.console import ConsoleLogger
from trainers.loggers.formatting import (
    answer,
    cut,
    sample_lines,
    short_duration,
    short_number,
    sparkline,
    visible,
)

VALUES = {
    "objective/scores": 0.41,
    "objective/scores_std": 0.2,
    "objective/kl": 3.14159,
    "completions/mean_length": 22.0,
    "perf/tokens_per_s": 1912.0,
    "loss/policy_avg": 1e-4,
}


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def played(config, folder, evaluation, **options):
    stream = options.pop("stream", io.StringIO())
    status = options.pop("status", "finished")
    logger = ConsoleLogger(stream=stream, **options)
    logger.start(RunInfo(config, folder))
    logger.note("model", "tiny 1.1 M, built in place")
    logger.evaluation([evaluation(0.3, "5")], 0, {"eval/best": 0.3, "eval/stale": 0.0})
    for step in (1, 2, 3, 4):
        logger.log(VALUES | {"completions/clipped_ratio": 0.97}, step)
        logger.samples(
            [{"prompt": "p " * 90, "completion": "c\n\x1b[31m" * 90, "reward": 0.5}], step
        )
    logger.evaluation([evaluation(0.8)], 4, {"eval/best": 0.8, "eval/stale": 0.0})
    logger.close(status)
    return stream.getvalue()


def test_a_pipe_gets_plain_lines_within_80_columns(config, tmp_path, evaluation):
    printed = played(config, tmp_path, evaluation)
    assert "\x1b" not in printed
    assert "\r" not in printed
    assert "ppo=3/4 reward=0.41 kl=3.14 length=22 tokens_per_s=1.91k" in printed
    without_paths = printed.replace(str(tmp_path), "runs/demo")
    assert max(map(len, without_paths.splitlines())) <= 80


def test_a_terminal_gets_one_live_line(config, tmp_path, evaluation, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    printed = played(config, tmp_path, evaluation, stream=Terminal())
    assert "\x1b[2K" in printed
    assert re.search(r"ppo 3/4  reward 0.41 \S+  kl 3.14  len 22  1.91k tok/s", printed)


def test_a_lost_terminal_does_not_end_the_run(config, tmp_path, evaluation):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    played(config, tmp_path, evaluation, stream=Gone())


def test_no_color_is_honoured(config, tmp_path, evaluation, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    printed = played(config, tmp_path, evaluation, stream=Terminal())
    assert "\x1b[33m" not in printed


def test_a_warning_comes_once_and_is_counted(config, tmp_path, evaluation):
    printed = " ".join(played(config, tmp_path, evaluation).split())
    assert printed.count("97% of responses stop at 64 tokens") == 1
    assert "Try --generation.max-new-tokens 128. (iteration 1)" in printed
    assert "cut responses (4 x)" in printed


def test_the_end_compares_before_with_after(config, tmp_path, evaluation):
    for name in ("model", "best"):
        (tmp_path / name).mkdir()
    printed = played(config, tmp_path, evaluation)
    assert f"Best     {tmp_path}/best  0.8 at iteration 4" in printed
    assert "Held-out 0.3 [0.2, 0.4] -> 0.8 [0.7, 0.9]" in printed
    assert "before   5  reward 0.3" in printed
    assert f"llmgym play {tmp_path} --base" in printed


def test_a_run_that_converged_says_so_and_how_to_go_on(config, tmp_path, evaluation):
    (tmp_path / "model").mkdir()
    printed = played(config, tmp_path, evaluation, status="converged")
    assert "Converged: 0 evaluations without improvement." in printed
    assert f"Model    {tmp_path}/model" in printed
    assert f"{tmp_path}/config.yaml --resume --eval.patience null" in printed
    assert "Stopped" not in printed


def test_a_resumed_run_closes_as_one_that_never_stopped(config, tmp_path, evaluation):
    (tmp_path / "best").mkdir()
    cut_off = VALUES | {"completions/clipped_ratio": 0.97}
    stream = io.StringIO()
    first, second = ConsoleLogger(stream=io.StringIO()), ConsoleLogger(stream=stream)
    first.start(RunInfo(config, tmp_path))
    first.evaluation([evaluation(0.9, "5")], 0, {"eval/best": 0.9, "eval/stale": 0.0})
    first.log(cut_off, 1)
    state = json.loads(json.dumps(first.state_dict()))

    second.start(RunInfo(config, tmp_path, state, [(0, [evaluation(0.9, "5")])]))
    for step in (2, 3):
        second.log(cut_off, step)
    second.evaluation([evaluation(0.8)], 3, {"eval/best": 0.9, "eval/stale": 1.0})
    second.close("finished")
    printed = stream.getvalue()
    assert "Held-out 0.9 [0.8, 1] -> 0.8 [0.7, 0.9]" in printed
    assert "before   5  reward 0.9" in printed
    assert "0.9 at iteration 0" in printed
    assert "warning:" not in printed, "it was said before"
    assert "cut responses (3 x)" in printed
    assert "The policy loss starts" not in printed


def test_a_supervised_run_alone_has_no_other_model_to_offer(tmp_path):
    (tmp_path / "model").mkdir()
    stream = io.StringIO()
    logger = ConsoleLogger(stream=stream)
    logger.start(RunInfo(read([], {"ppo.num_iterations": 0}), tmp_path))
    logger.close("finished")
    printed = stream.getvalue()
    assert f"llmgym play {tmp_path}\n" in printed
    assert "--base" not in printed


def test_quiet_keeps_warnings_and_the_closing_block(config, tmp_path, evaluation):
    printed = played(config, tmp_path, evaluation, is_quiet=True)
    assert "warning:" in printed
    assert "Held-out" in printed
    assert "ppo=" not in printed
    assert "prompt   p" not in printed


def test_a_failure_says_what_was_reached_and_how_to_go_on(config, tmp_path):
    saved = tmp_path / "checkpoints/ppo_000002"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    stream = io.StringIO()
    logger = ConsoleLogger(stream=stream)
    logger.start(RunInfo(config, tmp_path))
    logger.log(VALUES, 3)
    logger.close("failed")
    assert "Stopped at ppo 3/4: failed." in stream.getvalue()
    assert str(saved) in stream.getvalue()
    assert f"llmgym train -c {tmp_path}/config.yaml --resume" in stream.getvalue()


@pytest.mark.parametrize(
    ("reward", "tries"),
    [
        ({"rewards.0.function": "r.py:score"}, "llmgym rewards check r.py:score --data my.jsonl"),
        ({"rewards.0.name": "exact"}, "llmgym rewards check exact --data my.jsonl"),
        ({}, None),
    ],
)
@pytest.mark.parametrize("cause", ["RewardError: it failed", "OSError: the disk is full"])
def test_a_run_that_its_reward_ended_tries_the_reward_next(reward, tries, cause, tmp_path):
    (tmp_path / "status.json").write_text(json.dumps({"status": "failed", "reason": cause}))
    path = {"envs.0.id": "llmgym/Prompts-v0", "envs.0.kwargs.path": "my.jsonl"}
    stream = io.StringIO()
    logger = ConsoleLogger(stream=stream)
    logger.start(RunInfo(read([], {**path, **reward}), tmp_path))
    logger.close("failed")
    lines = stream.getvalue().splitlines()
    resumed = f"llmgym train -c {tmp_path}/config.yaml --resume"
    trust = " --trust" if "rewards.0.function" in reward else ""
    if tries is None or "RewardError" not in cause:
        assert lines[-1] == f"Next     {resumed}"
    else:
        assert lines[-2:] == [f"Next     {tries}", f"Then     {resumed}{trust}"]


def test_a_reward_model_that_was_learned_is_tried_next(tmp_path):
    stream = io.StringIO()
    logger = ConsoleLogger(stream=stream)
    logger.start(
        RunInfo(read([], {"reward_model.num_epochs": 1, "ppo.num_iterations": 0}), tmp_path)
    )
    logger.close("finished")
    assert stream.getvalue().splitlines()[-1] == (
        f"Next     llmgym rewards check {tmp_path}/model --data FILE"
    )


def test_a_logger_that_never_started_can_close():
    stream = io.StringIO()
    ConsoleLogger(stream=stream).close("failed")
    assert "Stopped at the start: failed." in stream.getvalue()


def test_text_is_shown_without_control_characters():
    assert visible("a\x1b[31mb\x1b]0;title\x07c\r\nd\u202ee\x00") == "abc de"


@pytest.mark.parametrize("blank", ["", "  ", "\n", "\u200b", "\x1b[31m"])
def test_an_answer_that_would_not_be_seen_is_quoted(blank):
    assert answer(blank) == repr(blank)
    assert sample_lines({"prompt": "p", "completion": blank, "reward": 0.0})[1].endswith(
        repr(blank)
    )


def test_an_answer_that_is_seen_stays_as_it_is():
    assert answer(" it's 'so' ") == " it's 'so' "


def test_long_text_loses_its_middle():
    assert cut("a" * 50 + "b" * 50, 21) == "a" * 9 + "..." + "b" * 9
    assert cut("short", 21) == "short"


def test_figures_are_short():
    assert [short_number(x) for x in (0.41234, 22.0, 1912.0, 0.0)] == ["0.412", "22", "1.91k", "0"]
    assert [short_duration(x) for x in (42.4, 70.0, 7500.0)] == ["42s", "1m10s", "2h05m"]
    assert sparkline([0.0, 1.0]) == "\u2581\u2588"
    assert sparkline([3.0]) == ""
    assert sparkline([2.0, 2.0]) == "\u2581\u2581"
