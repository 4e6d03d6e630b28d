"""A dense model of 50,000 parameters with text for it, and a compression of seconds."""

import random

import torch

from tests import tiny
from trainers.compress import latency
from trainers.compress.latency import Fit, LatencyTable, Workload
from trainers.compress.units import KINDS, UnitKind, geometry_of
from trainers.config.compression import CompressionSettings
from trainers.config.files import read
from trainers.export import int8, self_test, smaller
from trainers.models.chat import train_tokenizer
from trainers.models.loading import load_causal_lm
from trainers.runner.compression import measuring
from trainers.runner.compression.driver import compress

SMALL = {
    "row_tokens": 60,
    "calibration_tokens": 2000,
    "selection_tokens": 1500,
    "report_tokens": 1000,
    "evaluations": 90,
    "finalists": 3,
    "score_tasks": 0,
    "int8": False,
}


def sentence(rng):
    """Words of numbers, no two alike."""
    a, b, c = (rng.randrange(1000) for _ in range(3))
    return f"{a} + {b} = {a + b}, and {b} - {c} is {b - c}; so it goes with {a * b}."


def write_text(file, *, count=150, seed=0):
    """Write paragraphs; return the file."""
    rng = random.Random(seed)
    file.write_text("\n\n".join(sentence(rng) for _ in range(count)), "utf-8")
    return file


def save_dense(folder, **changes):
    """Save a Llama of three layers, four KV groups of two heads each, with its tokenizer."""
    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4}
    sizes |= {"vocab_size": max(tokenizer.get_vocab().values()) + 1, "head_dim": 4}
    model = tiny.llama(**{**sizes, **changes})
    for held in (model.config, model.generation_config):
        held.eos_token_id = held.bos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def dense_config(folder, **changes):
    """Settings that name the dense model."""
    return read([], {"model.path": str(folder), "log.wandb.enabled": False, **changes})


def settings(folder, **changes):
    """Settings of a compression below `folder`."""
    values = {**SMALL, "dir": str(folder / "runs"), "budget": ("params=0.75",), **changes}
    if "data" not in values:
        values["data"] = str(folder / "text.txt")
    return CompressionSettings(**values)


def run(folder, **changes):
    """Compress the model in `folder`/dense."""
    return compress(dense_config(folder / "dense"), settings(folder, **changes), has_env=False)


def fast(monkeypatch):
    """Test exports in this process, and take times as they would be on a machine of our own."""

    def check(folder, expected):
        with smaller.TemporaryDirectory() as aside:
            path = smaller.Path(aside) / "expected.safetensors"
            mask = expected.mask.to(smaller.torch.uint8).contiguous()
            tensors = {"tokens": expected.tokens.contiguous(), "mask": mask}
            smaller.save_file({**tensors, "logits": expected.logits.contiguous()}, path)
            fault = self_test.fault_of(folder, path)
        assert fault is None, fault

    monkeypatch.setattr(smaller, "check_in_fresh_process", check)
    monkeypatch.setattr(int8, "check_in_fresh_process", loads_as_int8)
    monkeypatch.setattr(measuring, "measure_latency", made_up_latency)
    monkeypatch.setattr(measuring, "PAIRS", 10)


def loads_as_int8(folder, expected, *, module):
    """The reader of int8 folders gives the logits that were expected."""
    model = load_causal_lm(str(folder)).eval()
    logits = model(input_ids=expected.tokens).logits
    torch.testing.assert_close(logits, expected.logits, atol=1e-2, rtol=1e-2)


def seconds_of(kind, size, full):
    """What a unit costs: a little for being there, the rest by its size."""
    return {"attention": 3.0, "mlp": 2.0}[kind] * (0.5 + 0.5 * size / full) if size else 0.0


def made_up_latency(config, workload=None, *, rounds=60, models=12, seed=0):
    """The table of those costs, which predicts twelve models well."""
    geometry = geometry_of(config)
    units: dict[tuple[UnitKind, int], float] = {
        (kind, size): seconds_of(kind, size, geometry.full(kind))
        for kind in KINDS
        for size in (0, *geometry.sizes(kind))
    }
    rows = tuple((1.0 + at, 1.0 + at) for at in range(latency.LEAST_MODELS))
    fit = Fit(r2=1.0, largest_error=0.01, rows=rows)
    return LatencyTable(
        constant=1.0, units=units, fit=fit, workload=workload or Workload(), record={}
    )
