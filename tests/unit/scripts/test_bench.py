"""The bench: shapes of work are what they say, ends are where they were planted, falls are seen."""

import json

import pytest
import torch
from transformers import LogitsProcessorList

from scripts.bench import measured, page
from scripts.bench.rows import TABLES, Row
from scripts.bench.shapes import Model, Shape, forward_flops, update_flops
from scripts.bench.sittings import SITTINGS
from scripts.bench.workers.planting import PlantedEnds
from tests import tiny


def test_the_model_of_the_main_shape_has_as_many_parameters_as_are_counted():
    model = Model(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64, vocab=tiny.VOCAB)
    made = tiny.llama(tie_word_embeddings=True)
    assert model.parameters == sum(weight.numel() for weight in made.parameters())
    assert round(Model().parameters / 1e6, 1) == 4.2


def test_lengths_are_geometric_up_to_the_maximum():
    lengths = Shape(num_prompts=4096).lengths
    stays = [sum(length > t for length in lengths) / 4096 for t in (1, 32, 64, 128)]
    assert stays == pytest.approx([(63 / 64) ** t for t in (1, 32, 64, 128)], abs=1e-3)
    assert max(lengths) == 192
    assert sum(lengths) / 4096 == pytest.approx(sum((63 / 64) ** t for t in range(192)), abs=0.05)


def test_lengths_are_the_same_each_time_and_not_in_order():
    lengths = Shape().lengths
    assert lengths == Shape().lengths != sorted(lengths)
    assert Shape(max_tokens=64).lengths == [64] * 64


def test_flops_are_those_of_a_count_token_by_token():
    shape = Shape(model=Model(hidden=8, layers=3, heads=2, kv_heads=1, intermediate=16, vocab=11),
                  num_prompts=2, group=3, prompt_tokens=5, mean_tokens=2, max_tokens=4)  # fmt: skip
    square, keys = 8 * 8, 8 * 4
    weights = 2 * square + 2 * keys + 3 * 8 * 16
    total = 0
    for prompt in range(2):
        seen = list(range(1, 6))  # tokens that each token of the prompt attends to
        for length in shape.lengths[3 * prompt : 3 * prompt + 3]:
            seen += [5 + number for number in range(1, length + 1)]
        total += sum(3 * (2 * weights + 2 * 2 * 8 * count) for count in seen)
    assert forward_flops(shape, head=False) == total
    logits = 2 * 8 * 11 * sum(shape.lengths)
    assert forward_flops(shape, head=True) == total + logits
    assert update_flops(shape) == 4 * 3 * (2 * total + logits)
    assert update_flops(shape.changed(critic="shared", epochs=1)) == 3 * (total + logits)


def test_a_row_ends_where_it_is_planted_and_nowhere_before():
    lengths, eos, pad = (1, 6, 3, 2), 7, 0
    model = tiny.llama()
    ends = PlantedEnds(lengths, longest=6, eos=eos, banned=[pad])
    written = model.generate(
        torch.full((4, 3), 5), attention_mask=torch.ones(4, 3, dtype=torch.long), do_sample=True,
        max_new_tokens=6, eos_token_id=eos, pad_token_id=pad,
        logits_processor=LogitsProcessorList([ends]),
    )[:, 3:]  # fmt: skip
    for row, length in zip(written.tolist(), lengths, strict=True):
        assert row[length:] == [pad] * (6 - length)
        assert pad not in row[:length]
        assert [place for place, token in enumerate(row) if token == eos] == (
            [length - 1] if length < 6 else []
        )


def test_micro_rows_hold_no_more_logits_than_the_main_shape():
    assert Shape().micro_rows == 64
    assert Shape(num_prompts=256).micro_rows == 64
    assert Shape(model=Model(vocab=32768)).micro_rows == 8
    assert Shape(num_prompts=16).micro_rows == 16


def test_a_share_is_of_the_limit_of_its_own_type():
    row = Row(work="", sitting="ragged", ours="llmgym bf16", figure="share")
    sides = {
        "llmgym bf16": {"phases": {"update": 2.0}},
        "limit": {"float32": 80.0, "bfloat16": 200.0},
    }
    rate = update_flops(Shape()) / 2.0 / 1e9
    assert row.values(sides) == (200.0, rate, rate / 200.0)
    assert row.values({"limit": sides["limit"]}) is None


@pytest.mark.parametrize(("ratio", "lines"), [(1.71, 0), (1.69, 1)])
def test_a_fall_by_more_than_15_percent_is_seen(ratio, lines, tmp_path, monkeypatch):
    stored = tmp_path / "baseline.json"
    stored.write_text(json.dumps({"a": 2.0, "b": 9.0}), encoding="utf-8")
    monkeypatch.setattr(page, "BASELINE", stored)
    monkeypatch.setattr(page, "_ratios", lambda _: {"a": ratio, "c": 0.1})
    assert len(page.fallen("table")) == lines


def test_every_row_compares_sides_of_its_own_sitting():
    sides = {sitting.name: sitting.sides.keys() for sitting in SITTINGS}
    assert len(sides) == len(SITTINGS)
    for row in (row for table in TABLES.values() for rows in table.values() for row in rows):
        assert {row.ours, row.other or "limit"} <= sides[row.sitting], row


def test_a_page_keeps_the_rows_that_are_not_measured_anew(tmp_path, monkeypatch):
    row, other = TABLES["table"]["Iterations"][:2]
    file = tmp_path / "measured.json"
    rows = {one.key: {"other": 40.0, "ours": 20.0, "ratios": [2.0]} for one in (row, other)}
    file.write_text(json.dumps({"rows": rows, "sittings": {}, "control": []}), encoding="utf-8")
    sides = {
        row.ours: {"cpu": 10.0, "growth": 1.0},
        row.other: {"cpu": 30.0, "growth": 2.0},
    }
    record = {"rounds": [{"sides": sides, "load": 1.0, "time": 0.0}], "minutes": 2.0}
    monkeypatch.setattr(measured, "FILE", file)
    monkeypatch.setattr(measured.control, "FILE", tmp_path / "control.json")
    monkeypatch.setattr(
        measured,
        "kept",
        lambda name: {**record, "product": "abc"} if name == row.sitting else {"rounds": []},
    )

    measured.store()

    after = measured.read()
    assert after["rows"][row.key] == {"other": 30.0, "ours": 10.0, "ratios": [3.0]}
    assert after["rows"][other.key] == rows[other.key]
    assert after["sittings"][row.sitting]["code"] == "abc"
