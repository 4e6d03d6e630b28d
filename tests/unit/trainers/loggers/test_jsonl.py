"""metrics.jsonl: appended only, attempts told apart, a torn line harmless."""

import json

from trainers.loggers.base import RunInfo
from trainers.loggers.jsonl import JsonlLogger
from trainers.run_dir.record import lines


def started(config, folder):
    logger = JsonlLogger()
    logger.start(RunInfo(config, folder))
    return logger


def test_each_step_is_a_line_with_its_own_step_key(config, tmp_path, evaluation):
    logger = started(config, tmp_path)
    logger.log({"sft/loss": 2.0}, 7, "sft")
    logger.log({"objective/scores": 0.5}, 1)
    logger.evaluation([evaluation(0.4)], 1, {"eval/stale": 2.0})
    found = list(lines(tmp_path / "metrics.jsonl"))
    assert found[0] == {"attempt": 1, "sft/step": 7, "sft/loss": 2.0}
    assert found[1] == {"attempt": 1, "train/global_step": 1, "objective/scores": 0.5}
    assert found[2]["eval/llmgym/Arithmetic-v0/mean"] == 0.4
    assert found[2]["eval/score"] == 0.4
    assert found[2]["eval/stale"] == 2.0


def test_samples_carry_the_number_of_the_iteration_that_metrics_carry(config, tmp_path):
    logger = started(config, tmp_path)
    logger.samples([{"prompt": "1 + 1 =", "reward": 1.0}], 3)
    (row,) = lines(tmp_path / "samples.jsonl")
    assert row == {"attempt": 1, "step": 3, "prompt": "1 + 1 =", "reward": 1.0}


def test_a_start_appends_under_the_number_of_its_logs(config, tmp_path):
    for attempt in (1, 2, 3):
        (tmp_path / "logs" / f"attempt_{attempt}").mkdir(parents=True)
        if attempt != 2:  # it failed before there was anything to write
            started(config, tmp_path).log({"objective/kl": float(attempt)}, 1)
    assert [line["attempt"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 3]


def test_a_line_cut_by_a_kill_loses_only_itself(config, tmp_path):
    file = tmp_path / "metrics.jsonl"
    started(config, tmp_path).log({"objective/kl": 1.0}, 1)
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"attempt": 1, "train/glo')
    started(config, tmp_path).log({"objective/kl": 3.0}, 2)
    assert [line["objective/kl"] for line in lines(file)] == [1.0, 3.0]


def test_every_line_is_strict_json(config, tmp_path):
    logger = started(config, tmp_path)
    logger.log({"objective/kl": float("nan"), "policy/ratio_max": float("inf")}, 1)
    logger.samples([{"prompt": "\u20ac\n", "parts": {"a": float("-inf")}}], 1)

    def refuse(word):
        raise AssertionError(word)

    for name in ("metrics.jsonl", "samples.jsonl"):
        for line in (tmp_path / name).read_text("utf-8").splitlines():
            json.loads(line, parse_constant=refuse)
