"""Worker: TRL's GRPO on two-digit addition, 64 prompts of 8 responses per rollout."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore
from trl.trainer.grpo_trainer import Dataset  # pyright: ignore

from scripts.evidence.time_to_90.clock import EVERY, RESPONSE_TOKENS, ROLLOUTS, Job, is_right
from scripts.evidence.time_to_90.greedy import accuracy

MINIBATCHES, GROUP = 4, 8


def reward(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Return 1.0 for the right number and nothing else."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(is_right(text, right)) for text, right in zip(texts, answer, strict=True)]


def main() -> None:
    """Train until the run ends."""
    job = Job()
    folder, epochs = job.settings["model"], job.settings["epochs"]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    held_out = job.sums("test")
    steps = MINIBATCHES * epochs

    class Judge(TrainerCallback):
        """Judges the model after every third rollout."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            job.start()
            job.judge(0, lambda: accuracy(model, tokenizer, held_out))

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401
            del args
            rollouts, rest = divmod(state.global_step, steps)
            if not rest and not rollouts % EVERY:
                job.judge(rollouts, lambda: accuracy(model, tokenizer, held_out))

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=512 // MINIBATCHES,
        gradient_accumulation_steps=1,
        steps_per_generation=MINIBATCHES,
        num_iterations=epochs,
        num_generations=GROUP,
        max_completion_length=RESPONSE_TOKENS,
        max_steps=ROLLOUTS * steps,
        learning_rate=job.settings["rate"],
        seed=job.settings["seed"],
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]}
        for row in job.sums("train")
    ]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Judge()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
