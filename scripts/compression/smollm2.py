"""Slice SmolLM2-135M, write it as a plain folder and load that with transformers alone.

Run: python -m scripts.compression.smollm2 MODEL GSM8K_TRAIN_JSONL OUT
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from trainers.compress.database import Database
from trainers.compress.slicing import slice_model
from trainers.compress.token_rows import Splits, TokenRows, pad_rows
from trainers.compress.units import uniform_plan
from trainers.compress.variants import WANDA
from trainers.export.smaller import ExpectedLogits, export_smaller

TOKENS = 128
PROMPT = "Natalia sold clips to 48 of her friends in April. She"


def rows_of(tokenizer: PreTrainedTokenizerBase, lines: list[str]) -> TokenRows:
    """Return problems with their solutions as rows of at most 128 tokens."""
    problems = [json.loads(line) for line in lines]
    texts = [f"{problem['question']}\n{problem['answer']}" for problem in problems]
    return pad_rows([tokenizer(text)["input_ids"][:TOKENS] for text in texts])


def main(source: str, data: str, out: str) -> None:
    """Print quality before and after, sizes, and a text of the folder that was written."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    lines = Path(data).read_text("utf-8").splitlines()
    splits = Splits(
        calibration=rows_of(tokenizer, lines[:56]),
        selection=rows_of(tokenizer, lines[90:98]),
        report=rows_of(tokenizer, lines[100:108]),
    )
    database = Database(model, splits)
    influences = torch.tensor(database.block_influences())
    dropped = influences.argsort()[:2].tolist()
    plan = uniform_plan(database.variants.geometry, groups=2, channels=1344, dropped=dropped)
    kls = [database.evaluate([plan])[0], database.evaluate([plan], method=WANDA)[0]]
    print(f"layers {dropped} dropped; KL {kls[0]:.4f}, without compensation {kls[1]:.4f}")
    print(f"KL on report {database.report_kl(plan):.4f}")
    smaller: Any = slice_model(model, plan, database.variants.variant)
    rows = splits.report[:2]
    rows = TokenRows(rows.tokens[:, :24], rows.mask[:, :24], rows.counted[:, :24])
    for dtype in (torch.float32, torch.bfloat16):
        smaller = smaller.to(dtype)
        with torch.no_grad():
            cast = smaller(input_ids=rows.tokens).logits
        logits = database.logits(plan, rows) if dtype == torch.float32 else cast
        expected = ExpectedLogits(tokens=rows.tokens, mask=rows.mask, logits=logits)
        folder = Path(out) / str(dtype).removeprefix("torch.")
        card = {"title": "SmolLM2-135M, smaller", "base_model": source}
        size = export_smaller(folder, smaller, expected, card, tokenizer=Path(source))
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        count = sum(weight.numel() for weight in loaded.parameters())
        ids = tokenizer(PROMPT, return_tensors="pt")
        text = tokenizer.decode(loaded.generate(**ids, max_new_tokens=24, do_sample=False)[0])
        print(f"{folder}: {loaded.config.model_type}, {count:,} parameters, {size:,} bytes")
        print(f"  {text!r}")
    print(f"{time.process_time():.0f} s of CPU")


if __name__ == "__main__":
    main(*sys.argv[1:])
