"""Worker: TRL's PPO on two-digit addition, with a value model and a reference of its own."""

import copy
import tempfile
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
from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore

from scripts.evidence.time_to_90.clock import EVERY, RESPONSE_TOKENS, Job, is_right
from scripts.evidence.time_to_90.greedy import accuracy, encoded

MINIBATCHES = 4


class Texts(nn.Module):
    """Takes the place of a reward model's body: hidden states are the score of each row."""

    def __init__(self, tokenizer: Any, answers: dict[tuple[int, ...], str]) -> None:  # noqa: ANN401
        """Take the tokenizer, and the answer to each prompt by its ids."""
        super().__init__()
        self._tokenizer = tokenizer
        self._answers = answers
        self._widths = sorted({len(prompt) for prompt in answers})

    def _score(self, row: list[int]) -> float:
        ids = row[next(i for i, token in enumerate(row) if token != self._tokenizer.pad_token_id) :]
        for width in self._widths:
            answer = self._answers.get(tuple(ids[:width]))
            if answer is not None:
                text = self._tokenizer.decode(ids[width:], skip_special_tokens=True)
                return float(is_right(text, answer))
        raise LookupError("a row begins with no prompt")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        """Return the score of rows [B, L] as hidden states [B, L, 1]."""
        shown = input_ids.masked_fill(attention_mask == 0, self._tokenizer.pad_token_id)
        scores = torch.tensor([self._score(row) for row in shown.tolist()])
        return SimpleNamespace(
            hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1)]
        )


class SumReward(nn.Module):
    """A reward model that is a function of the text."""

    base_model_prefix = "body"

    def __init__(self, body: Texts) -> None:
        """Take the body."""
        super().__init__()
        self.body = body

    def score(self, hidden: Tensor) -> Tensor:
        """Return the scores, which the body has made."""
        return hidden


def main() -> None:
    """Train until the run ends."""
    job = Job()
    folder, rate = job.settings["model"], job.settings["rate"]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    dtype = {"dtype": torch.float32}
    policy: Any = AutoModelForCausalLM.from_pretrained(folder, **dtype)
    value = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **dtype)
    train, held_out = job.sums("train"), job.sums("test")
    ids = encoded(tokenizer, [row["prompt"] for row in train])
    answers = {tuple(row): shown["answer"] for row, shown in zip(ids, train, strict=True)}

    class Judge(TrainerCallback):
        """Judges the policy after every third rollout."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            job.start()
            job.judge(0, lambda: accuracy(policy, tokenizer, held_out))

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401
            del args
            if not state.global_step % EVERY:
                job.judge(state.global_step, lambda: accuracy(policy, tokenizer, held_out))

    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=512,  # a rollout; a minibatch is one pass of 128
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=512,
        num_mini_batches=MINIBATCHES,
        num_ppo_epochs=job.settings["epochs"],
        total_episodes=len(ids),
        response_length=RESPONSE_TOKENS,
        stop_token="eos",
        temperature=1.0,
        kl_coef=0.01,
        lam=1.0,
        learning_rate=rate,
        seed=job.settings["seed"],
        num_sample_generations=0,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=SumReward(Texts(tokenizer, answers)),
        value_model=value,
        train_dataset=[{"input_ids": row} for row in ids],
        eval_dataset=[{"input_ids": row} for row in ids[:512]],
        callbacks=[Judge()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
