"""Worker: iterations of TRL's PPO trainer (`trl.experimental.ppo`), as shipped or without its gc.

What it is given is what the other side is: the same model folder, 64 prompts as ids, a reference, a
separate value model, rewards that cost nothing. Its group of prompts is as many single prompts. The
option `gc` false makes the calls of `gc.collect` and `empty_cache` in its file do nothing.
"""

import copy
import tempfile
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # pyright: ignore

from scripts.bench.shapes import Shape
from scripts.bench.turns import Turns
from scripts.bench.workers.planting import planted

BATCHES = 4
ENDLESS = 1_000_000


class FreeBackbone(nn.Module):
    """Takes the place of a reward model's body, and computes nothing."""

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Return the ids [B, L] as hidden states [B, L, 1]."""
        return SimpleNamespace(hidden_states=[input_ids.float()[..., None]])


class FreeReward(nn.Module):
    """A reward model that costs nothing: a function of the last token."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        """Make the body."""
        super().__init__()
        self.body = FreeBackbone()

    def score(self, hidden: Tensor) -> Tensor:
        """Return [B, L, 1] in [0, 1) of hidden states [B, L, 1]."""
        return hidden % 7 / 7


class Clock(TrainerCallback):
    """Ends an iteration wherever the trainer ends a step."""

    def __init__(self, turns: Turns, figures: Mapping[str, Any]) -> None:
        """Take the worker's turns, and what a record holds besides."""
        self._turns = turns
        self._figures = figures

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin: models are built, nothing was generated."""
        self._turns.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Write the record of an iteration."""
        self._turns.end(**self._figures)


def main() -> None:
    """Train until the pipe is closed."""
    turns = Turns()
    folder = turns.shape.pop("folder")
    has_gc, is_bf16 = turns.shape.pop("gc", True), turns.shape.pop("bf16", False)
    shape = Shape.of(turns.shape)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    dtype = {"dtype": torch.float32}
    policy: Any = AutoModelForCausalLM.from_pretrained(folder, **dtype)
    value = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **dtype)
    figures: dict[str, Any] = {}
    policy.generate = planted(policy.generate, shape, tokenizer, figures)
    if not has_gc:
        ppo_trainer.gc = SimpleNamespace(collect=lambda: 0)
        ppo_trainer.empty_cache = lambda: None
    ppo_trainer.batch_generation = turns.timed("rollout", ppo_trainer.batch_generation)
    prompts = [
        [{"role": "user", "content": shape.prompt(number // shape.group)}]
        for number in range(BATCHES * shape.rows)
    ]
    ids = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        for prompt in prompts
    ]
    assert {len(row) for row in ids} == {shape.prompt_tokens}, "prompts of another length"
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.micro_rows,
        gradient_accumulation_steps=shape.rows // shape.micro_rows,
        local_rollout_forward_batch_size=shape.micro_rows,
        num_mini_batches=1,
        num_ppo_epochs=shape.epochs,
        total_episodes=ENDLESS * shape.rows,
        response_length=shape.max_tokens,
        stop_token="eos",
        temperature=1.0,
        learning_rate=3e-6,
        num_sample_generations=0,
        use_cpu=True,
        bf16=is_bf16,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=FreeReward(),
        value_model=value,
        train_dataset=[{"input_ids": row} for row in ids],
        eval_dataset=[{"input_ids": row} for row in ids[: shape.rows]],
        callbacks=[Clock(turns, figures)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
