"""The page: of every kind of run, finished or not, escaped, whole, and honest about chance."""

import json
import os
import re
from html.parser import HTMLParser

import pytest

from trainers.checkpoint.manifest import published
from trainers.config.files import dump, read
from trainers.errors import ConfigError
from trainers.report.page import write_report

EVIL = "<script>alert(1)</script><img src=http://example.org/x.png>&\x1b\ud800\u202e"
LOADED = {"src", "srcset", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Collects tags, addresses that would be loaded, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        self.loaded += [value for name, value in given.items() if name in LOADED]
        links = [value for name, value in given.items() if name in ("href", "xlink:href")]
        self.loaded += [link for link in links if not link.startswith(("#", "data:"))]

    def handle_data(self, data):
        self.text += data


def page_of(*runs):
    return Page(write_report(runs).read_text("utf-8"))


def questions(text):
    return re.findall(r"Is .*?\?|The supervised stage|Before and after|Samples|Pushed hardest"
                      r"|Settings|Reproduce it", text)  # fmt: skip


def add(run, name, **row):
    with (run / name).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def log(run, *records):
    lines = (json.dumps(one) + "\n" for one in records)
    (run / "metrics.jsonl").write_text("".join(lines), "utf-8")


def test_a_text_run_answers_every_question(text_run):
    page = page_of(text_run)
    asked = dict.fromkeys(questions(page.text))
    assert list(asked) == [
        "Is it learning?", "Is it honest?", "Is PPO healthy?", "Is it fast?",
        "The supervised stage", "Before and after", "Samples", "Pushed hardest", "Settings",
        "Reproduce it",
    ]  # fmt: skip
    assert "llmgym/Arithmetic-v0" in page.text
    assert f"llmgym train -c {text_run}/config.yaml --name quickstart-again" in page.text
    assert (text_run / "config.yaml").read_text("utf-8").strip() in page.text
    assert "Of 6 tasks" in page.text


def test_a_finished_run_has_its_page_already(runs):
    for name in ("quickstart", "cartpole"):
        assert "<h1>" + name in (runs / name / "report.html").read_text("utf-8")


def test_a_control_run_shows_no_text(control_run):
    page = page_of(control_run)
    assert "mlp [64, 64]" in page.text
    assert "Is PPO healthy?" in page.text
    assert "CartPole-v1" in page.text
    assert not {"Samples", "Before and after"} & {*questions(page.text)}


def test_a_run_of_the_supervised_stage_shows_that_stage(text_run):
    config = read([text_run / "config.yaml"], {"ppo.num_iterations": 0})
    (text_run / "config.yaml").write_text(dump(config), "utf-8")
    log(text_run, {"sft/step": 1, "sft/loss": 2.0}, {"sft/step": 2, "sft/loss": 1.0})
    page = page_of(text_run)
    assert "The supervised stage" in page.text
    assert "Is it learning?" not in page.text


def test_a_reward_model_is_shown_beside_a_judge_that_reads_no_text(text_run):
    config = read([text_run / "config.yaml"], {"ppo.num_iterations": 0})
    (text_run / "config.yaml").write_text(dump(config), "utf-8")
    held_out = {"reward_model/holdout/accuracy": 0.8, "reward_model/holdout/baseline": 0.5}
    log(text_run, {"reward_model/step": 4, "reward_model/accuracy": 0.9, **held_out})
    text = write_report([text_run]).read_text("utf-8")
    assert "The reward model" in text
    assert 'aria-label="Judged right: learned from 0.9, holdout 0.8, without the text 0.5"' in text


@pytest.mark.parametrize("kind", ["text_run", "control_run"])
def test_nothing_is_loaded_and_nothing_runs(kind, request):
    page = page_of(request.getfixturevalue(kind))
    assert page.loaded == []
    assert not page.tags & {"script", "iframe", "object", "embed", "img", "base", "form"}
    assert "svg" in page.tags


def test_what_a_model_wrote_stays_text(text_run):
    parts = {f"part {EVIL}": 1.0, "other": 2.0}
    add(text_run, "samples.jsonl", step=2, prompt=EVIL, completion="</pre></body>", reward=1.0,
        advantage=1e9, finish_reason=EVIL, **parts)  # fmt: skip
    status = json.loads((text_run / "status.json").read_text("utf-8"))
    (text_run / "status.json").write_text(
        json.dumps({**status, "status": "failed", "reason": EVIL}), "utf-8"
    )
    page = page_of(text_run)
    assert not page.tags & {"script", "img"}
    assert page.loaded == []
    assert page.text.count("<script>alert(1)</script>") >= 4
    assert "</pre></body>" in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_the_rows_with_the_largest_advantages_are_shown_either_way(text_run):
    for place, advantage in enumerate([90.0, -90.0, "nan", 0.0]):
        add(text_run, "samples.jsonl", step=1, prompt=f"row {place}", completion="x",
            reward=0.5, advantage=advantage)  # fmt: skip
    text = page_of(text_run).text.partition("Pushed hardest")[2]
    towards, _, away = text.partition("Made less likely")
    assert "row 0" in towards
    assert "row 1" not in towards
    assert "row 1" in away
    assert "row 2" not in text
    assert "row 3" not in text


@pytest.mark.parametrize("kind", ["nothing", "torn", "no status", "no checkpoints", "no samples"])
def test_what_a_crash_leaves_is_still_a_page(kind, text_run):
    if kind == "nothing":
        (text_run / "metrics.jsonl").unlink()
    elif kind == "torn":
        with (text_run / "metrics.jsonl").open("a") as stream:
            stream.write('{"attempt": 1, "trai')
    elif kind == "no status":
        (text_run / "status.json").write_text("{", "utf-8")
    elif kind == "no samples":
        (text_run / "samples.jsonl").unlink()
    else:
        for one in published(text_run / "checkpoints"):
            one.rename(one.with_name(f".{one.name}"))
    page = page_of(text_run)
    said = {
        "nothing": "Nothing was logged before it ended",
        "torn": "lines of metrics.jsonl that are no records",
        "no status": "unknown",
        "no checkpoints": "Samples",
        "no samples": "Before and after",
    }
    assert said[kind] in page.text
    assert ("Before and after" in questions(page.text)) == (kind != "no checkpoints")


@pytest.mark.parametrize(
    ("state", "says"),
    [("failed", "It failed."), ("interrupted", "It was interrupted."), ("running", "is gone")],
)
def test_an_unfinished_run_says_why_and_how_it_goes_on(state, says, text_run):
    status = {"status": state, "reason": "NonFiniteError: NaN", "stage": "ppo", "iteration": 1}
    (text_run / "status.json").write_text(json.dumps(status), "utf-8")
    page = page_of(text_run)
    assert says in page.text
    assert "NonFiniteError: NaN" in page.text
    assert f"llmgym train -c {text_run}/config.yaml --resume" in page.text


def evaluated(step, mean, low, high):
    ends = {"eval/a/ci_low": low, "eval/a/ci_high": high}
    return {"train/global_step": step, "eval/score": mean, **ends}


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ((0.9, 0.8, 0.95), "rose from 0.5 to 0.9, and its 95 % intervals do not touch"),
        ((0.1, 0.0, 0.2), "fell from 0.5 to 0.1, and its 95 % intervals do not touch"),
        ((0.7, 0.55, 0.8), "went from 0.5 to 0.7; its 95 % intervals overlap, so it may be chance"),
    ],
)
def test_no_more_is_claimed_than_the_intervals_carry(after, says, text_run):
    log(text_run, evaluated(0, 0.5, 0.4, 0.6), evaluated(2, *after))
    assert says in page_of(text_run).text


def test_a_run_without_two_held_out_scores_shows_no_success(text_run):
    log(text_run, {"train/global_step": 1, "objective/scores": 1.0})
    assert "nothing here shows that it generalizes" in page_of(text_run).text


def test_warnings_are_those_of_the_console_counted(text_run):
    cut = {"completions/clipped_ratio": 0.97, "objective/scores": 0.1}
    log(text_run, *({"train/global_step": step, **cut} for step in (1, 2, 3)))
    text = page_of(text_run).text
    assert "97% of responses stop at" in text
    assert "3 \u00d7, iterations 1 to 3" in text


def test_the_drift_is_between_the_first_and_the_last_tenth(text_run):
    log(text_run, *({"train/global_step": i, "objective/kl": float(i)} for i in range(1, 41)))
    text = re.sub(r"<[^>]+>", " ", write_report([text_run]).read_text("utf-8"))
    row = re.search(r"KL, nats per episode\s*([\d.]+)\s*([\d.]+)", text)
    assert row
    assert row.groups() == ("2.5", "38.5")


def test_several_runs_are_compared(text_run, control_run):
    path = write_report([text_run, control_run])
    assert path == text_run.parent / "comparison.html"
    text = Page(path.read_text("utf-8")).text
    assert "2 runs" in text
    assert "envs.0.id" in text
    assert '"CartPole-v1"' in text
    assert "run.name" not in text
    assert not (control_run / "comparison.html").exists()


def test_the_page_goes_where_it_is_told(text_run, tmp_path):
    (text_run / "report.html").unlink()
    assert write_report([text_run], tmp_path / "x.html") == tmp_path / "x.html"
    assert not (text_run / "report.html").exists()


def test_the_same_run_makes_the_same_page(text_run):
    one = write_report([text_run]).read_bytes()
    assert write_report([text_run]).read_bytes() == one


def test_a_page_that_cannot_be_written_leaves_the_old_one(text_run, monkeypatch):
    before = (text_run / "report.html").read_bytes()
    there = {*os.listdir(text_run)}

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report([text_run])
    assert (text_run / "report.html").read_bytes() == before
    assert {*os.listdir(text_run)} == there


def test_a_damaged_run_among_several_writes_nothing(text_run, control_run):
    (control_run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00" * 9 + b"\n")
    with pytest.raises(ConfigError, match=r"damaged: none of its 1 lines is a record.*\nmv "):
        write_report([text_run, control_run])
    assert not (text_run.parent / "comparison.html").exists()
    assert (control_run / "metrics.jsonl").read_bytes().startswith(b"\xff\xfe")


def test_an_unreadable_checkpoint_falls_back_to_an_older_one(text_run, caplog):
    newest = max(published(text_run / "checkpoints", "ppo"), key=lambda one: one.name)
    newer = newest.with_name("ppo_000099")
    newer.mkdir()
    (newer / "rank_0.json").write_text("{", "utf-8")
    assert "Before and after" in questions(page_of(text_run).text)
    assert "ppo_000099 cannot be read, an older checkpoint is looked at" in caplog.text
