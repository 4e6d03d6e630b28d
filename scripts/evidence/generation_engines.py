"""Tokens per CPU second of the generation engines, and of transformers' generate.

64 prompts of 64 tokens, 64 tokens each, none ends early; bfloat16; engines take turns. CPU seconds
are those of the process that writes, vLLM's worker included; weights are sent before.

Run: OMP_NUM_THREADS=1 .venv/bin/python scripts/evidence/generation_engines.py models/smollm2
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.config import Config, GenerationConfig
from trainers.generation import transformers as own
from trainers.generation import vllm
from trainers.generation.base import Generator, GeneratorParts, Request, Sampling
from trainers.models.causal_lm import CausalPolicy

COUNT, LENGTH, REPEATS = 64, 64, 3
TOPICS = ("the sea", "a clock", "bread", "trains", "winter", "a garden", "music", "a bridge")
TICKS = os.sysconf("SC_CLK_TCK")


def prompts(folder: str) -> list[list[int]]:
    """Return COUNT chat prompts of LENGTH tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for number in range(COUNT):
        topic = TOPICS[number % len(TOPICS)]
        text = f"Write {number + 2} sentences about {topic}, and give each of them a title. " * 8
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        rows.append(list(ids)[:LENGTH])
    return rows


def children_seconds() -> float:
    """Return the CPU seconds of the processes that this one started and that still run."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == os.getpid():
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def measured(write: Callable[[], None]) -> tuple[float, float]:
    """Return CPU seconds, this process and its children, and wall seconds of a call."""
    cpu, wall = time.process_time() + children_seconds(), time.perf_counter()
    write()
    return time.process_time() + children_seconds() - cpu, time.perf_counter() - wall


def writer(generator: Generator, rows: list[list[int]]) -> Callable[[], None]:
    """Return a call that answers every prompt."""
    requests = [
        Request(token_ids=ids, index=i, max_new_tokens=LENGTH) for i, ids in enumerate(rows)
    ]

    def write() -> None:
        for response in generator.generate(requests, Sampling()):
            assert len(response.token_ids) == LENGTH

    return write


def main() -> None:
    """Print a row per engine."""
    folder = sys.argv[1]
    rows = prompts(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    parts = GeneratorParts(
        policy=policy,
        eos_token_ids=(),
        pad_token_id=0,
        batch_size=COUNT,
        autocast=torch.bfloat16,
        config=Config(generation=GenerationConfig(engine="vllm")),
        max_tokens=2 * LENGTH,
    )
    served = vllm.make_generator(parts)
    weights = ((name, tensor.detach()) for name, tensor in policy.named_parameters())
    seconds = measured(lambda: served.load_weights(weights, 0))[1]
    print(f"weights sent in {seconds:.2f} s")
    low: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.tensor(rows)

    @torch.no_grad()
    def generate() -> None:
        low.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
            max_new_tokens=LENGTH, min_new_tokens=LENGTH, pad_token_id=0,
        )  # fmt: skip

    engines = {
        "vllm": writer(served, rows),
        "transformers": writer(own.make_generator(parts), rows),
        "generate": generate,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for turn in range(REPEATS + 1):
        for name, write in engines.items():
            figures = measured(write)
            if turn:  # the first is not counted: kernels are built
                taken[name].append(figures)
    served.close()
    tokens = COUNT * LENGTH
    print("| engine | tokens per CPU s | tokens per s | spread of CPU s |")
    print("| --- | --- | --- | --- |")
    for name, figures in taken.items():
        cpu, wall = zip(*figures, strict=True)
        middle = [statistics.median(numbers) for numbers in (cpu, wall)]
        spread = f"{min(cpu):.1f} to {max(cpu):.1f}"
        print(f"| `{name}` | {tokens / middle[0]:.0f} | {tokens / middle[1]:.0f} | {spread} |")


if __name__ == "__main__":
    main()
