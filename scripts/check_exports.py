"""Check the exports of `llmgym.export` with the libraries they are for, where these are installed.

Run: python scripts/check_exports.py trl        (or: verifiers, verl; exit code 1 on a failure)
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Python looks for packages in scripts/ and not in the checkout.
sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium

import llmgym.export
from llmgym.addresses import load_module
from llmgym.env import core_env

ONE_TURN, TURNS = "llmgym/Arithmetic-v0", "llmgym/GuessNumber-v0"


def tiny_model() -> tuple[Any, Any]:
    """Return a random model of two layers, and a tokenizer with a template that calls tools."""
    transformers = load_module("transformers")
    train_tokenizer = load_module("trainers.models.chat").train_tokenizer
    tokenizer = train_tokenizer(["a number of words: 0 1 2 3 4 5 6 7 8 9"] * 4, 400)
    templates = Path(str(load_module("trl").__file__)).parent / "chat_templates"
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text("utf-8")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.LlamaForCausalLM(config), tokenizer


def check_trl() -> None:
    """Train three steps of GRPO on an export of one turn, and on one of several turns."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    trl = load_module("trl")
    letters = {"name": "language", "kwargs": {"script": "latin"}}  # pays a random model, too
    for id, kwargs in ((ONE_TURN, {"reward": letters}), (TURNS, {})):
        made = llmgym.export.trl(id, size=16, **kwargs)
        model, tokenizer = tiny_model()
        with tempfile.TemporaryDirectory() as folder:
            arguments = trl.GRPOConfig(
                output_dir=folder,
                max_steps=3,
                per_device_train_batch_size=4,
                num_generations=4,
                max_completion_length=8,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            )
            trainer = trl.GRPOTrainer(
                model=model,
                processing_class=tokenizer,
                args=arguments,
                train_dataset=made.dataset,
                reward_funcs=made.reward,
                environment_factory=made.environment_factory,
            )
            steps = trainer.train().global_step
        rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
        assert steps == 3, steps
        assert len(rewards) == 3, trainer.state.log_history
        assert not kwargs or max(rewards) > 0, rewards
        print(f"trl {trl.__version__}: GRPO trained {steps} steps on {id}, rewards {rewards}")


class Oracle(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server whose model knows every perfect response."""

    answers: Mapping[str, str] = {}

    def do_POST(self) -> None:
        """Answer a request for a chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = self.answers.get(json.dumps([m["content"] for m in body["messages"]]), "?")
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        fields = {"id": "0", "object": "chat.completion", "created": 0, "model": body["model"]}
        answer = json.dumps({**fields, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def oracle(id: str, size: int, **kwargs: Any) -> Iterator[str]:
    """Serve the perfect responses of the first tasks of an id; yield the address."""
    answers: dict[str, str] = {}
    env = gymnasium.make(id, **kwargs)
    for index in range(size):
        observation, _ = env.reset(seed=index, options={"index": index})
        over = False
        while not over:
            text = core_env(env).solve() or ""
            answers[json.dumps([message["content"] for message in observation])] = text
            observation, _, terminated, truncated, _ = env.step(text)
            over = terminated or truncated
    handler = type("Answers", (Oracle,), {"answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def check_verifiers() -> None:
    """Let verifiers evaluate exports with a served model that knows every perfect response."""
    vf = load_module("verifiers")
    os.environ["CHECK_KEY"] = "none"
    for id in (ONE_TURN, TURNS):
        made = llmgym.export.verifiers(id, size=8, eval_size=4)
        with oracle(id, 4, split="test") as url:
            client = vf.ClientConfig(api_base_url=url, api_key_var="CHECK_KEY")
            results = asyncio.run(
                made.evaluate(client, model="oracle", num_examples=4, rollouts_per_example=1)
            )
        rewards = [float(output["reward"]) for output in results["outputs"]]
        assert rewards == [1.0] * 4, rewards
        print(f"verifiers {vf.__version__}: rewards of perfect responses to {id}: {rewards}")


def check_verl() -> None:
    """Read the file of an export as verl does, and score a perfect response and another one."""
    datasets = load_module("datasets")
    for_verl = load_module("llmgym.export.for_verl")
    env = gymnasium.make(ONE_TURN)
    with tempfile.TemporaryDirectory() as folder:
        path = llmgym.export.verl(ONE_TURN, Path(folder) / "train.parquet", size=8)
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train")
        expected = {"data_source", "prompt", "ability", "reward_model", "extra_info"}
        assert set(rows.column_names) == expected, rows.column_names
        for row in rows:
            env.reset(options={"index": row["extra_info"]["index"]})
            keys = ("data_source", "extra_info")
            fields = {key: row[key] for key in keys}
            truth = row["reward_model"]["ground_truth"]
            for text, paid in ((core_env(env).solve(), 1.0), ("no", 0.0)):
                scored = for_verl.compute_score(solution_str=text, ground_truth=truth, **fields)
                assert scored == paid, (row, text)
    print(f"verl: {len(rows)} rows with the columns {', '.join(rows.column_names)}")


CHECKS = {"trl": check_trl, "verifiers": check_verifiers, "verl": check_verl}


def main(argv: Sequence[str]) -> int:
    """Check one export."""
    parser = argparse.ArgumentParser(description="Check an export with the library it is for.")
    parser.add_argument("peer", choices=CHECKS)
    CHECKS[parser.parse_args(argv).peer]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
