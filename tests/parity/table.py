"""The parity table: one run in every place it can be trained in, held against one process of torch.

    .venv/bin/python -m tests.parity.table [--iterations 10]

The first run records what it samples. Every other writes text with its own weights, which is
compared token by token, and then goes on with the recorded text, so that all learn from the same
rollouts: its losses, KL and gradient norms are those of the first, but for rounding. Two ranks
over gloo on CPUs, float32, small tensors shared out as well at stage 3. About 7 CPU minutes.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch

from tests import tiny
from tests.distributed.ranks import run_ranks
from trainers.generation.probe import check_rows
from trainers.generation.sampling import uniforms
from trainers.generation.transformers import TransformersGenerator
from trainers.loggers.jsonl import JsonlLogger
from trainers.run_dir.record import lines
from trainers.runner.run import run

ALONE = "torch x 1"
PLACES = {
    "DDP x 2": {},
    "ZeRO 0 x 2": {"backend.zero.stage": 0},
    "ZeRO 1 x 2": {"backend.zero.stage": 1},
    "ZeRO 2 x 2": {"backend.zero.stage": 2},
    "ZeRO 3 x 2": {"backend.zero.stage": 3},
    "ZeRO 2 x 2, optimizer offloaded": {
        "backend.zero.stage": 2,
        "backend.zero.offload": "optimizer",
    },
    "ZeRO 3 x 2, all offloaded": {"backend.zero.stage": 3, "backend.zero.offload": "params"},
}
LEARNS = {
    "separate critic": {},
    "shared trunk": {"ppo.critic": "shared", "ppo.value_coef": 0.5},
    "LoRA": {"model.lora.rank": 3},
}
SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
FIGURES = {
    "losses": ("loss/total", "loss/policy_avg", "loss/value_avg"),
    "KL": ("objective/kl", "policy/approxkl_avg"),
    "norms": ("policy/grad_norm", "value/grad_norm"),
}
NEAR = 1e-5
"""A token may differ only where its uniform lies this close to a boundary between two tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """How far a run is from the recorded one.

    Attributes:
        apart: by group of figures, the largest |a - b| / max(1, |b|) of all iterations.
        num_tokens: that were compared.
        flips: (iteration, row, position, distance to the nearest boundary) where text differs.
    """

    apart: dict[str, float]
    num_tokens: int
    flips: list[tuple[int, int, int, float]]


def distances(generator, request, response, sampling):
    """How far each token's uniform [T] lies from the nearest boundary of its distribution."""
    ids = [*request.token_ids, *response.token_ids]
    with torch.no_grad():
        logits = generator._policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits
    before = logits[0, len(request.token_ids) - 1 : -1] / sampling.temperature
    bounds = before.double().softmax(-1).cumsum(-1)
    count = len(response.token_ids)
    index = torch.full((count,), request.index)
    position = request.position + torch.arange(count)
    drawn = uniforms(sampling.seed, sampling.iteration, index, position)
    return (bounds - drawn[:, None]).abs().min(-1).values.tolist()


def replayed(changes, recorded=None, resume=False):
    """Run on this rank: what was sampled, or, where that is given, (row, own and recorded ids)."""
    kept, seen = {}, []
    generate = TransformersGenerator.generate

    def generated(self, requests, sampling):
        made = generate(self, requests, sampling)
        keys = [(sampling.iteration, one.index, one.position) for one in requests]
        if recorded is None:
            for key, one, response in zip(keys, requests, made, strict=True):
                kept[key] = response, distances(self, one, response, sampling)
            return made
        seen.extend((key, one.token_ids) for key, one in zip(keys, made, strict=True))
        return [replace(recorded[key][0], policy_version=self.policy_version) for key in keys]

    config = tiny.run_settings(changes["model.path"], changes["run.dir"], **changes)
    check_rows(config.model.path)  # tries the model once a process, by the generator as it is
    with mock.patch.object(TransformersGenerator, "generate", generated):
        run(config, reward=tiny.letters, resume=resume, loggers=[JsonlLogger()])
    return kept if recorded is None else seen


def logged(folder):
    """The figures of each iteration."""
    return [one for one in lines(Path(folder) / "a" / "metrics.jsonl") if "loss/total" in one]


def flip_of(key, mine, recorded):
    """Where a row's text first differs from the recorded one, and how near a boundary; or None."""
    response, near = recorded[key]
    pairs = list(zip(mine, response.token_ids, strict=False))
    apart = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if apart is None and len(mine) != len(response.token_ids):
        apart = len(pairs) - 1  # its last token ended one of them
    return None if apart is None else (key[0], key[1], apart, near[apart])


def measure(places, learns, iterations, folder):
    """Run every place with every way to learn: {(place, way): cell}."""
    model = str(tiny.save_model(folder / "model"))
    user = folder / "user.json"
    user.write_text(json.dumps(SHARD_ALL), encoding="utf-8")
    cells = {}
    for way in learns:
        base = {"model.path": model, "ppo.num_iterations": iterations, **LEARNS[way]}
        alone = folder / f"alone {way}"
        recorded = replayed({**base, "run.dir": str(alone)})
        wanted = logged(alone)
        assert len(wanted) == iterations
        for place in places:
            changes = {**base, "run.dir": str(folder / f"{place} {way}"), **PLACES[place]}
            if PLACES[place]:
                changes["backend.name"] = "deepspeed"
            if changes.get("backend.zero.stage") == 3:
                changes["backend.zero.config"] = str(user)
            seen = [one for rank in run_ranks(replayed, changes, recorded, timeout=500)
                    for one in rank]  # fmt: skip
            assert {key for key, _ in seen} == recorded.keys()
            flips = [found for key, ids in seen if (found := flip_of(key, ids, recorded))]
            cells[place, way] = Cell(
                apart=apart_of(logged(changes["run.dir"]), wanted),
                num_tokens=sum(len(ids) for _, ids in seen),
                flips=flips,
            )
    return cells


def apart_of(got, wanted):
    """The largest distance of each group of figures."""
    found = {}
    for group, names in FIGURES.items():
        present = [name for name in names if name in wanted[0]]
        assert present, f"no figure of {group} was logged"
        found[group] = max(
            abs(one[name] - other[name]) / max(1.0, abs(other[name]))
            for one, other in zip(got, wanted, strict=True)
            for name in present
        )
    return found


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cells = measure(PLACES, LEARNS, options.iterations, Path(folder))
    print(f"| against {ALONE} | {' | '.join(LEARNS)} |")  # noqa: T201 - the result
    print("| --- " * (1 + len(LEARNS)) + "|")  # noqa: T201
    for place in PLACES:
        row = [place]
        for way in LEARNS:
            cell = cells[place, way]
            row.append(", ".join(f"{value:.0e}" for value in cell.apart.values()))
        print(f"| {' | '.join(row)} |")  # noqa: T201
    flips = [(place, *flip) for (place, _), cell in cells.items() for flip in cell.flips]
    print(f"\n{sum(cell.num_tokens for cell in cells.values())} tokens, {len(flips)} differ")  # noqa: T201
    for flip in flips:
        print(*flip)  # noqa: T201


if __name__ == "__main__":
    main()
