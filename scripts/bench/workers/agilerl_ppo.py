"""Worker: iterations of AgileRL's PPO for language models, which trains adapters on both heads.

Tokens are actions, as here. Without vLLM it calls `generate` for one prompt at a time. Activations
are kept. Its extra `cpu-llm` installs the Liger kernels, which need a GPU, and puts them into any
model: here it is told that they are not there.
"""

import agilerl  # pyright: ignore
import torch
from transformers import AutoTokenizer

from scripts.bench.shapes import Shape
from scripts.bench.turns import Turns
from scripts.bench.workers.planting import planted

agilerl.HAS_LIGER_KERNEL = False  # read as its other modules are imported
from agilerl.algorithms.ppo_llm import PPO  # noqa: E402  # pyright: ignore

BATCHES = 4


def main() -> None:
    """Train until the pipe is closed."""
    turns = Turns()
    folder = turns.shape.pop("folder")
    shape = Shape.of(turns.shape)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    agent = PPO(
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        model_name=folder,
        batch_size=shape.rows,
        micro_batch_size_per_gpu=shape.rows,
        mini_batch_size=shape.rows,
        update_epochs=shape.epochs,
        beta=0.0,
        lr_actor=3e-6,
        lr_critic=1e-5,
        top_k=0,
        max_output_tokens=shape.max_tokens,
        max_model_len=shape.prompt_tokens + shape.max_tokens,
        hf_generate_chunk_size=shape.rows,
        advantage_granularity="token",
        gradient_checkpointing=False,
        use_liger_loss=False,
        device="cpu",
    )
    figures: dict[str, int] = {}
    generate = turns.timed("rollout", agent.actor.generate)
    agent.actor.generate = planted(generate, shape, tokenizer, figures)
    prompts = []
    for number in range(BATCHES * shape.num_prompts):
        message = [{"role": "user", "content": shape.prompt(number)}]
        prompts.append(
            dict(
                tokenizer.apply_chat_template(
                    message, add_generation_prompt=True, return_tensors="pt", return_dict=True
                )
            )
        )
    turns.begin()
    iteration = 0
    while True:
        first = iteration % BATCHES * shape.num_prompts
        batch = [
            row for row in prompts[first : first + shape.num_prompts] for _ in range(shape.group)
        ]
        action = agent.get_action(batch)
        rewards = torch.tensor([ids.shape[-1] % 7 / 7 for ids in action.token_ids])
        agent.learn((action.token_ids, action.action_masks, rewards))
        iteration += 1
        turns.end(**figures)


if __name__ == "__main__":
    main()
