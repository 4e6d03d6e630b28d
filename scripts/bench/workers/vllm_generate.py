"""Worker: responses to the prompts of a shape by vLLM on a CPU, with their log-probabilities."""

import os

# Before vllm is imported, which reads these once.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from transformers import AutoTokenizer
from vllm import LLM, SamplingParams  # pyright: ignore

from scripts.bench.shapes import Shape
from scripts.bench.turns import Turns


def main() -> None:
    """Write until the pipe is closed."""
    turns = Turns()
    folder = turns.shape.pop("folder")
    shape = Shape.of(turns.shape)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [
        [{"role": "user", "content": shape.prompt(row // shape.group)}] for row in range(shape.rows)
    ]
    prompts = [
        {
            "prompt_token_ids": tokenizer.apply_chat_template(message, add_generation_prompt=True)[
                "input_ids"
            ]
        }
        for message in messages
    ]
    engine = LLM(
        model=folder,
        dtype=shape.dtype,
        max_model_len=shape.prompt_tokens + shape.max_tokens,
        max_num_seqs=shape.rows,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    sampling = [
        SamplingParams(
            temperature=1.0, max_tokens=length, ignore_eos=True, logprobs=0, detokenize=False
        )
        for length in shape.lengths
    ]
    turns.begin()
    while True:
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        turns.end(tokens=sum(len(output.outputs[0].token_ids) for output in outputs))


if __name__ == "__main__":
    main()
