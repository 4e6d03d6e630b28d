"""Plain transformers writes what was demonstrated, with SentencePiece-like tokenizers as well."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.unit.trainers.models.grid import tokenizer
from trainers.config.files import read
from trainers.runner.run import run

SAID = [{"role": "user", "content": "What?"}]


@pytest.mark.parametrize(
    ("backend", "template"), [("first", "zephyr"), ("always", "zephyr"), ("prepend", "inst")]
)
def test_a_response_is_written_as_it_was_demonstrated(backend, template, tmp_path):
    fast, folder = tokenizer(backend, template), tmp_path / "model"
    size = max(fast.get_vocab().values()) + 1
    model = tiny.llama(vocab_size=size, bos_token_id=None, eos_token_id=fast.eos_token_id)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "What?", "response": "Red."}) + "\n")
    settings = {
        "run.dir": str(tmp_path), "run.name": "a", "model.path": str(folder),
        "data.path": str(tmp_path / "p.jsonl"), "sft.num_epochs": 40, "sft.learning_rate": 1e-2,
        "sft.holdout": 0.0, "ppo.num_iterations": 0, "log.wandb.enabled": False,
    }  # fmt: skip

    made = run(read([], settings), loggers=[]).run_dir / "model"

    learned = AutoModelForCausalLM.from_pretrained(made)
    mine = AutoTokenizer.from_pretrained(made)
    prompt = mine.apply_chat_template(SAID, tokenize=False, add_generation_prompt=True)
    ids = mine(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    written = learned.generate(ids, do_sample=False, max_new_tokens=8)[0].tolist()
    answered = [*SAID, {"role": "assistant", "content": "Red."}]
    whole = mine(mine.apply_chat_template(answered, tokenize=False), add_special_tokens=False)
    end = written.index(mine.eos_token_id, ids.shape[1]) + 1
    assert written[:end] == whole.input_ids[:end]
