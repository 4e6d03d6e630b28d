"""The share of held-out sums that a transformers model gets right, greedily."""

from collections.abc import Sequence
from typing import Any

import torch

from scripts.evidence.time_to_90.clock import RESPONSE_TOKENS, is_right


def encoded(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:  # noqa: ANN401
    """Return each prompt as the ids that a chat template makes of it."""
    rows = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [
        tokenizer.apply_chat_template(row, add_generation_prompt=True)["input_ids"] for row in rows
    ]


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, sums: Sequence[dict[str, str]]) -> float:  # noqa: ANN401
    """Return the share of sums that are answered with the right number and nothing else."""
    ids = encoded(tokenizer, [row["prompt"] for row in sums])
    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    was_training, width = model.training, batch["input_ids"].shape[1]
    model.eval()
    done = model.generate(
        **batch, do_sample=False, max_new_tokens=RESPONSE_TOKENS, temperature=None, top_k=None
    )
    model.train(was_training)
    texts = tokenizer.batch_decode(done[:, width:], skip_special_tokens=True)
    right = [is_right(text, row["answer"]) for text, row in zip(texts, sums, strict=True)]
    return sum(right) / len(right)
