"""Bytes that a rank holds of one model, counted on the tensors that are there, and as forecast.

.venv/bin/python -m tests.distributed.census [--ranks 2]
"""

import argparse
import gc

import torch
import torch.distributed as dist

from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.distributed.zero import PLACES, engines
from trainers.backends.base import learning
from trainers.plan.state import Holding

DTYPES = ("float32", "bfloat16")
SIZES = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 12, "vocab_size": 256}
"""A Llama of 2.2 M parameters, in tensors of which none has more than 2 % of them."""
KINDS = ("weights", "masters, moments", "gradients")
BUCKET = 2_000
"""Numbers of a bucket that gradients are reduced in: next to none, so that it is not counted."""


def stored(tensors):
    """{storage: bytes} of tensors; one that several share is counted once."""
    found = {}
    for one in tensors:
        storage = one.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


def everywhere():
    """{storage: bytes} of every tensor of this process, and of its gradient."""
    gc.collect()
    there = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    grads = [one.grad for one in there if one.is_leaf and one.grad is not None]
    return stored([*there, *grads])


def counted(engine, before):
    """Bytes by kind of what an engine holds now; what was there `before` it is left out."""
    sharded = engine.is_sharded
    weights = stored(one.ds_tensor if sharded else one.data for _, one in learning(engine.module))
    states = engine._engine.basic_optimizer.state.values()
    moments = [one for state in states for one in state.values() if isinstance(one, torch.Tensor)]
    optimizer = stored([*engine._state._masters(), *moments])
    known = before | weights
    found = {kind: 0 for kind in KINDS}
    found["weights"] = sum(weights.values())
    found["masters, moments"] = sum(n for key, n in optimizer.items() if key not in known)
    known |= optimizer
    found["gradients"] = sum(n for key, n in everywhere().items() if key not in known)
    return found


def forecast(engine, ranks):
    """Bytes of an engine that `llmgym plan` counts on, without buckets, and its parameters."""
    sharded = engine.is_sharded
    numbers = sum(one.ds_numel if sharded else one.numel() for _, one in learning(engine.module))
    state = Holding(ranks=ranks, is_gpu=True, json=engine._engine.config).trained(numbers)
    return state.weights + state.optimizer + state.gradients + state.host, numbers


def held(cases):
    """For each (stage, offload, dtype): bytes at the fullest moment, forecast, and parameters.

    Looked at after each backward pass of two micro-batches, and between clip and step.
    """
    found = {}
    ids = torch.arange(16).view(2, 8) + 16 * dist.get_rank()
    for stage, offload, dtype in cases:
        before = everywhere()
        build = engines(stage, offload, getattr(torch, dtype), reduce_bucket_size=BUCKET)
        engine = build(tiny.llama(**SIZES), tiny.optimizer(tiny.settings(), 1e-3), "policy")
        moments = []
        for _ in range(2):  # moments come with the first step
            moments.clear()
            for last in (False, True):
                logits = engine.forward(input_ids=ids, last=last).logits
                engine.backward(logits.float().square().mean())
                del logits
                moments.append(counted(engine, before))
            engine.clip()
            moments.append(counted(engine, before))
            engine.step()
        most = max(moments, key=lambda one: sum(one.values()))
        found[stage, offload, dtype] = most, *forecast(engine, dist.get_world_size())
        del engine
        gc.collect()
    return found


def main():
    """Measure and print the table of rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    cases = [(*place, dtype) for dtype in DTYPES for place in PLACES]
    found = run_ranks(held, cases, size=options.ranks, timeout=900)[0]
    print(f"| stage | offload | type | {' | '.join(KINDS)} | sum | forecast | apart |")  # noqa: T201
    print("| --- " * 9 + "|")  # noqa: T201
    for case, (most, expected, numbers) in found.items():
        total = sum(most.values())
        figures = [f"{size / numbers:.2f}" for size in (*most.values(), total, expected)]
        row = [*map(str, case), *figures, f"{total / expected - 1:+.1%}"]
        print("|", " | ".join(row), "|")  # noqa: T201
    print(f"{numbers:,} parameters, {options.ranks} ranks")  # noqa: T201


if __name__ == "__main__":
    main()
