"""Models measured against one another: what a ratio says, and what is refused."""

import json
import math
import time

import numpy as np
import pytest
import torch

from tests.tiny import llama, save_model
from trainers.bench import models, settings
from trainers.bench.models import bench_models, forms_of, rounds_of, times_faster
from trainers.bench.process import ModelProcess
from trainers.bench.settings import BenchSettings, refuse_load
from trainers.bench.tables import model_lines
from trainers.bench.texts import bench_texts
from trainers.bench.writing import ModelWriter, WritingTimes
from trainers.cli import main as cli
from trainers.compress import timing
from trainers.errors import ConfigError, MeasurementError
from trainers.models.chat import train_tokenizer

FAST = BenchSettings(
    prompt_tokens=12, new_tokens=4, rounds=10, concurrency=(1, 2), max_load=math.inf
)
TEXTS = ("one two", "three four", "five six")


class Fake:
    """Takes the seconds that it is told to, with a noise that both have in a round."""

    def __init__(self, per_token, seed, calls):
        self.rng, self.per_token, self.calls = np.random.default_rng(seed), per_token, calls

    def write(self, texts, new_tokens):
        self.calls.append((id(self), tuple(texts)))
        steps = self.per_token * self.rng.uniform(0.95, 1.05, new_tokens - 1)
        return WritingTimes(first=5 * self.per_token, steps=steps.tolist())


def compared(slower, seed=0):
    calls = []
    writers = [Fake(1.0, 2 * seed, calls), Fake(slower, 2 * seed + 1, calls)]
    ours, theirs = rounds_of(writers, TEXTS, BenchSettings(rounds=20, seed=seed), 1)
    return times_faster(theirs, ours, seed=seed), calls


def test_a_model_against_itself_has_an_interval_that_contains_1():
    ratios = [compared(1.0, seed)[0] for seed in range(30)]
    assert sum(ratio.low <= 1 <= ratio.high for ratio in ratios) >= 26


def test_a_fifth_more_per_token_is_found():
    ratio, _ = compared(1.2)
    assert ratio.high < 0.95
    assert ratio.median == pytest.approx(1 / 1.2, rel=0.03)


def test_every_round_all_have_the_same_texts_in_another_order():
    _, calls = compared(1.0)
    pairs = [calls[at : at + 2] for at in range(0, len(calls), 2)]
    assert len(pairs) == 20 + 3
    assert all(one[1] == other[1] and one[0] != other[0] for one, other in pairs)
    assert len({pair[0][0] for pair in pairs}) == 2


def tokenizer():
    return train_tokenizer(["a river begins as rain on high ground"], 280)


def writer_of(model, forward="llmgym"):
    return ModelWriter(model.eval(), tokenizer(), rows=2, tokens=40, forward=forward)


class Slower:
    """A writer, and after each of its tokens a pause of a fifth of it on the clock that counts."""

    def __init__(self, writer):
        self.rows, self.advance = writer._rows, writer._rows.advance

    def __call__(self, tokens, live):
        now = timing.clock()
        began = now()
        self.advance(tokens, live)
        end = now() + 0.2 * (now() - began)
        while now() < end:
            pass


def test_a_pause_of_a_fifth_in_a_real_model_is_found_and_none_is_not(monkeypatch):
    torch.set_num_threads(1)
    model = llama(vocab_size=280, hidden_size=128, intermediate_size=512)
    plain, same, slow = (writer_of(model) for _ in range(3))
    slow._rows.advance = Slower(slow)
    ask = BenchSettings(new_tokens=16, rounds=30)
    times = rounds_of([plain, same, slow], ["a river", "rain on"], ask, 1)
    equal = times_faster(times[1], times[0], seed=0)
    assert equal.low - 0.02 <= 1 <= equal.high + 0.02
    assert times_faster(times[2], times[0], seed=0).high < 0.95


@pytest.mark.parametrize("forward", ["llmgym", "transformers"])
def test_what_is_written_is_the_most_likely_and_the_same_each_time(forward):
    model = llama(vocab_size=280)
    writer = writer_of(model, forward)
    assert writer.forward == forward
    first = writer.write(["a river", "rain on hi"], 5)
    again = writer.write(["a river", "rain on hi"], 5)
    assert first.tokens == again.tokens
    assert len(first.steps) == 4
    assert first.total == first.first + sum(first.steps)
    ids = tokenizer()(["a river", "rain on hi"])["input_ids"]
    length = min(map(len, ids))
    for row, written in zip(sorted(one[:length] for one in ids), first.tokens, strict=True):
        for at, token in enumerate(written):
            with torch.no_grad():
                logits = model(torch.tensor([[*row, *written[:at]]])).logits[0, -1]
            assert logits[token] > logits.max() - 1e-4


def test_prompts_are_cut_to_their_tokens_and_differ():
    texts = bench_texts(tokenizer(), 30)
    assert len(set(texts)) == len(texts)
    assert all(28 <= len(tokenizer()(text)["input_ids"]) <= 32 for text in texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("bench") / "model"))


@pytest.fixture(scope="module")
def result(folder):
    return bench_models([folder, folder], FAST)


def test_a_model_is_measured_in_every_type_and_against_each(result, folder):
    assert [(one.name, one.dtype) for one in result.models] == [
        (folder, "float32"), (folder, "bfloat16"), (folder, "int8"), (folder, "float32"),
    ]  # fmt: skip
    for figures in result.models:
        assert list(figures.faster) == ["float32", "bfloat16", "int8"]
        own = figures.faster[figures.dtype]
        assert figures.first_token > figures.per_token[0] > 0
        assert figures.per_token[1] >= figures.per_token[0]
        assert list(figures.requests_per_second) == [1, 2]
        assert figures.facts["peak_bytes"] > figures.facts["memory_before_bytes"]
        assert own.rounds == 10
    first = result.models[0]
    assert (first.faster["float32"].low, first.faster["float32"].high) == (1.0, 1.0)
    assert first.disk_bytes
    assert result.models[1].disk_bytes is None
    assert result.models[1].facts["weight_bytes"] < first.facts["weight_bytes"]


def test_the_record_is_json_and_names_what_a_time_depends_on(result):
    record = json.loads(json.dumps(result.record()))
    assert record["machine"].keys() >= {"processor", "cores", "threads", "clock", "torch"}
    assert record["settings"]["rounds"] == 10
    assert record["models"][0]["faster"]["bfloat16"].keys() == {"median", "low", "high", "rounds"}


def test_the_table_has_a_line_per_model_and_its_ratios(result):
    lines = model_lines(result)
    assert len([line for line in lines if "(float32)" in line]) == 4
    assert "1.00 [1.00, 1.00]" in "\n".join(lines)
    assert "10 rounds in random order after 3" in "\n".join(lines)


def test_int8_that_the_processor_lacks_is_skipped_with_the_reason(folder, monkeypatch):
    monkeypatch.setattr("trainers.models.int8.INT8_KERNEL", "of_nobody")
    forms, skipped = forms_of([folder], FAST)
    assert [form[1] for form in forms] == ["float32", "bfloat16"]
    assert "no int8 kernels" in skipped["int8"]


def test_a_context_that_is_too_short_is_refused_before_a_process_starts(folder, monkeypatch):
    monkeypatch.setattr(models, "ModelProcess", None)
    with pytest.raises(ConfigError, match="takes 64 tokens, and 60 of the prompt and 5 new"):
        bench_models([folder], BenchSettings(prompt_tokens=60, new_tokens=5))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 9}, "rounds must be at least 10"),
        ({"warmups": 2}, "warmups must be at least 3"),
        ({"new_tokens": 1}, "new_tokens must be at least 2"),
        ({"concurrency": (0,)}, "concurrency counts rows"),
        ({"max_load": 0.0}, "max_load must be above 0"),
    ],
)
def test_too_little_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        BenchSettings(**changes)


def test_a_busy_machine_is_refused_with_the_way_to_measure_all_the_same(monkeypatch):
    def busy(limit):
        raise MeasurementError("2 processes per core ran.")

    monkeypatch.setattr(settings, "check_idle", busy)
    with pytest.raises(MeasurementError, match="--max-load inf"):
        refuse_load(0.5)
    refuse_load(math.inf)


def test_a_process_that_ends_is_named_with_what_it_printed(folder):
    spec = models._spec(folder, "float32", folder, FAST)
    process = ModelProcess("a model", spec)
    process._process.kill()
    process._process.wait()
    with pytest.raises(MeasurementError, match=r"the process of a model ended[^$]*exit code -9"):
        process.write(["a"], 3)
    process.close()


def test_a_model_that_does_not_load_is_wrong_usage(folder, capsys):
    assert cli.main(["bench", "runs/no_such_run"]) == 2
    assert "neither a run folder nor a model folder" in capsys.readouterr().err
    assert cli.main(["bench"]) == 2
    assert "name what is measured" in capsys.readouterr().err


def test_time_is_that_of_the_processor_on_one_thread():
    torch.set_num_threads(1)
    assert timing.clock() is time.thread_time
