"""The process of one measured model: a line of JSON asks, a line of JSON answers.

Run by `process.py`. A process of its own, so that peak memory is that of one model.
"""

import json
import os
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trainers.bench.writing import ModelWriter, load_as, weight_bytes
from trainers.config import Config, ModelConfig
from trainers.errors import ConfigError
from trainers.models.hf_logging import without_progress_bars
from trainers.models.loading import load_tokenizer


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far.

    On Linux `getrusage` counts what the parent had as it started this process: it is not asked.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def loaded(spec: dict[str, Any]) -> tuple[ModelWriter, dict[str, Any]]:
    """Load the model of a request and return it with what is known of it then."""
    torch.set_num_threads(spec["threads"])
    without_progress_bars()
    before, began = peak_bytes(), time.perf_counter()
    model = load_as(spec["model"], spec["dtype"])
    tokenizer = load_tokenizer(Config(model=ModelConfig(path=spec["tokenizer"])))
    writer = ModelWriter(
        model, tokenizer, rows=spec["rows"], tokens=spec["tokens"], forward=spec["forward"]
    )
    return writer, {
        "load_seconds": time.perf_counter() - began,
        "memory_before_bytes": before,
        "weight_bytes": weight_bytes(model),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "forward": writer.forward,
    }


def serve_requests() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), mode="w")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        writer, facts = loaded(json.loads(sys.stdin.readline()))
    except ConfigError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        times = writer.write(request["texts"], request["new_tokens"])
        answer = {**asdict(times), "peak_bytes": peak_bytes()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve_requests()
