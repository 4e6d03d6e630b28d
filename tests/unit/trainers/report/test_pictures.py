"""reward.png: drawn from metrics.jsonl, the last attempt counting."""

import json

from trainers.report.pictures import curves, draw


def write(folder, *records, tail=""):
    text = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")


def test_a_step_seen_twice_counts_as_the_last_attempt_saw_it(tmp_path):
    write(
        tmp_path,
        {"attempt": 1, "train/global_step": 1, "objective/scores": 0.1},
        {"attempt": 1, "train/global_step": 2, "objective/scores": 0.2},
        {"attempt": 2, "train/global_step": 2, "objective/scores": 0.9},
        {"attempt": 2, "sft/step": 7, "sft/loss": 1.0},
        tail='{"attempt": 2, "train/gl',
    )
    assert curves(tmp_path)["objective/scores"] == {1: 0.1, 2: 0.9}
    assert "sft/loss" not in curves(tmp_path)


def test_a_picture_is_drawn_of_what_was_logged(tmp_path):
    scores = {"eval/score": 0.5, "eval/a/ci_low": 0.4, "eval/a/ci_high": 0.6}
    write(
        tmp_path,
        {"train/global_step": 0, **scores},
        {"train/global_step": 1, "objective/scores": 0.1, "objective/kl": "nan"},
    )
    assert draw(tmp_path) == tmp_path / "reward.png"
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_logged_draws_nothing(tmp_path):
    assert draw(tmp_path) is None
    write(tmp_path, {"sft/step": 1, "sft/loss": 2.0})
    assert draw(tmp_path) is None
    assert not (tmp_path / "reward.png").exists()
