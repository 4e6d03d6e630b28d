"""Worker: responses to the prompts of a shape by transformers' own `generate`, tokens alone."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.bench.shapes import Shape
from scripts.bench.turns import Turns
from scripts.bench.workers.planting import planted


def main() -> None:
    """Write until the pipe is closed."""
    turns = Turns()
    folder = turns.shape.pop("folder")
    shape = Shape.of(turns.shape)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, shape.dtype))
    figures: dict[str, Any] = {}
    generate = planted(model.generate, shape, tokenizer, figures)
    messages = [
        [{"role": "user", "content": shape.prompt(row // shape.group)}] for row in range(shape.rows)
    ]
    prompts = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    turns.begin()
    while True:
        with torch.no_grad():
            generate(
                **prompts,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                max_new_tokens=shape.max_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        turns.end(**figures)


if __name__ == "__main__":
    main()
