"""Worker: iterations of TRL's trainers without a critic, GRPO and RLOO.

An iteration is a rollout and the optimizer steps on it: TRL's `num_iterations` is our `num_epochs`.
There is no reference on either side. Activations are kept, where TRL by default computes them
again: that takes it less time.
"""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import trl  # pyright: ignore
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.grpo_trainer import Dataset  # pyright: ignore

from scripts.bench.shapes import Shape
from scripts.bench.turns import Turns
from scripts.bench.workers.planting import planted

ENDLESS = 1_000_000
BATCHES = 4


class Clock(TrainerCallback):
    """Ends an iteration at every `epochs`-th step."""

    def __init__(self, turns: Turns, epochs: int, figures: Mapping[str, Any]) -> None:
        """Take the worker's turns, and what a record holds besides."""
        self._turns = turns
        self._figures = figures
        self._epochs = epochs

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin: the model is built, nothing was generated."""
        self._turns.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Write the record of an iteration."""
        del args
        if state.global_step % self._epochs == 0:
            self._turns.end(**self._figures)


def score(completions: Sequence[Any], **_: Any) -> list[float]:
    """Return one number in [0, 1) for each."""
    return [len(str(completion)) % 7 / 7 for completion in completions]


def main() -> None:
    """Train until the pipe is closed."""
    turns = Turns()
    folder = turns.shape.pop("folder")
    shape = Shape.of(turns.shape)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    figures: dict[str, Any] = {}
    generate = turns.timed("rollout", model.generate)
    model.generate = planted(generate, shape, tokenizer, figures)
    kind = shape.advantage.upper()
    config = getattr(trl, f"{kind}Config")(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.rows,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=shape.epochs,
        num_generations=shape.group,
        max_completion_length=shape.max_tokens,
        max_steps=ENDLESS,
        learning_rate=3e-6,
        beta=0.0,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    prompts = [
        {"prompt": [{"role": "user", "content": shape.prompt(number)}]}
        for number in range(BATCHES * shape.num_prompts)
    ]
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        reward_funcs=score,
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[Clock(turns, shape.epochs, figures)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
