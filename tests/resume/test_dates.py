"""A chat template that prints the day prints the one on which the run started, for ever."""

import datetime as real
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from llmgym.errors import RewardError
from llmgym.rewards.model import RewardModel
from llmgym.rewards.rendering import judged_ids
from tests import tiny
from trainers.collect.environments import reward_of
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.generation.base import Sampling
from trainers.inference.loading import load_for_inference
from trainers.inference.targets import target_of
from trainers.models.chat import TEMPLATE
from trainers.models.loading import load_chat, load_tokenizer
from trainers.run_dir import record as run_record
from trainers.runner.run import run

DATED = "{% set today = strftime_now('%d %b %Y') %}{{ today }}" + TEMPLATE
FIRST, NEXT = real.date(2026, 11, 28), real.date(2026, 11, 29)
SAID = [{"role": "user", "content": "1"}]


@pytest.fixture
def set_day(monkeypatch):
    """Set the day of the machine, as we and as transformers read it."""

    def on(day):
        today = SimpleNamespace(today=lambda: day, fromisoformat=real.date.fromisoformat)
        monkeypatch.setattr(run_record, "datetime", SimpleNamespace(date=today))
        now = SimpleNamespace(now=lambda: day)
        monkeypatch.setattr(chat_template_utils, "datetime", now)

    return on


def dated_model(folder):
    tiny.save_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(folder)
    return folder


def prompt(config):
    chat = load_chat(config, load_tokenizer(config), env="llmgym/Arithmetic-v0")
    return chat.tokenizer.decode(chat.prompt_ids(SAID))


def trained(config, **kwargs):
    return run(config, reward=tiny.letters, loggers=[], **kwargs).run_dir


def test_a_run_resumed_over_midnight_reads_the_same_prompts(tmp_path, set_day):
    model = dated_model(tmp_path / "model")
    weights = []
    for name, days in (("straight", [FIRST]), ("resumed", [FIRST, NEXT])):
        config = tiny.run_settings(model, tmp_path, **{"run.name": name})
        for number, day in enumerate(days, start=3 - len(days)):
            set_day(day)
            changed = {"run.name": name, "ppo.num_iterations": number}
            config = tiny.run_settings(model, tmp_path, **changed)
            folder = trained(config, resume=day is NEXT)
        weights.append((folder / "model" / "model.safetensors").read_bytes())
        kept = read([folder / "config.yaml"])
        assert kept.run.date == "2026-11-28"
        assert prompt(kept).startswith("28 Nov 2026")
    assert weights[0] == weights[1]
    # The exported template prints the day of whoever uses it, and its run's for eval and play.
    model = load_for_inference(target_of(str(folder)), Sampling())
    assert model.chat.tokenizer.decode(model.chat.prompt_ids(SAID)).startswith("28 Nov 2026")
    assert model.chat.tokenizer.chat_template == DATED


def test_another_day_is_another_run(tmp_path, set_day):
    set_day(FIRST)
    model = dated_model(tmp_path / "model")
    trained(tiny.run_settings(model, tmp_path))
    moved = tiny.run_settings(model, tmp_path, **{"run.date": "2026-11-29"})
    with pytest.raises(ConfigError, match=r'run\.date "2026-11-28" -> "2026-11-29"'):
        trained(moved, resume=True)
    assert run_record.dated(moved, resume=False) is moved


def test_a_run_from_before_days_were_kept_has_none(tmp_path, set_day):
    set_day(NEXT)
    config = tiny.run_settings("model", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("run: {name: a}\n")
    assert run_record.dated(config, resume=True).run.date is None
    assert run_record.dated(config, resume=False).run.date == "2026-11-29"


def test_a_reward_model_reads_the_day_of_the_run(tmp_path, set_day):
    set_day(NEXT)
    tokenizer = AutoTokenizer.from_pretrained(dated_model(tmp_path / "model"))
    first, today = (
        tokenizer.decode(judged_ids(tokenizer, SAID, "b", day=d)) for d in (FIRST, None)
    )
    assert first.startswith("28 Nov 2026")
    assert today.startswith("29 Nov 2026")
    with pytest.raises(RewardError, match="day is written YYYY-MM-DD; got 'noon'"):
        RewardModel(tmp_path / "model", day="noon")


def test_the_day_of_a_run_reaches_its_reward_models(monkeypatch):
    monkeypatch.setattr("trainers.collect.environments.resolve", lambda entries: None)
    changes = {"run.date": "2026-11-28", "rewards": [{"model": "rm"}, {"name": "exact"}]}
    entries = reward_of(read([], changes), None)
    assert [one["kwargs"] for one in entries] == [{"day": "2026-11-28"}, {}]


def test_a_day_that_no_calendar_has_is_refused():
    with pytest.raises(ConfigError, match=r"run\.date 2026-02-30 is no day"):
        read([], {"run.date": "2026-02-30"})
