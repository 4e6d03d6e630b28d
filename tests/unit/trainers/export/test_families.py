"""Each family of models from demonstrations through PPO to folders that plain transformers read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.unit.trainers.models.families import CHANGES, FAMILIES, GPT2, UNCLASSIFIED, WIDTH
from trainers.config.files import read
from trainers.errors import CheckpointError
from trainers.models.chat import train_tokenizer
from trainers.models.critic import classifier_of
from trainers.runner.run import run
from trainers.runner.stages import ppo_text as text
from trainers.runner.stages import steps

TOKENS = [[5, 9, 11, 3, 60, 7, 200]]
SETTINGS = {
    "run.name": "a",
    "data.num_examples": 12,
    "sft.num_epochs": 1,
    "sft.batch_size": 6,
    "sft.learning_rate": 1e-3,
    "ppo.num_iterations": 2,
    "ppo.num_prompts": 4,
    "ppo.samples_per_prompt": 2,
    "ppo.num_epochs": 1,
    "ppo.learning_rate": 1e-3,
    "ppo.critic_learning_rate": 1e-2,
    "generation.max_new_tokens": 4,
    "generation.max_prompt_tokens": 40,
    "eval.num_tasks": 0,
    "log.wandb.enabled": False,
}
READER = f"""
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification
kinds = dict(model=AutoModelForCausalLM, critic=AutoModelForTokenClassification)
found = dict()
for folder, part in json.loads(sys.argv[1]):
    module = kinds[part].from_pretrained(folder + "/" + part, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = module(input_ids=torch.tensor({TOKENS})).logits
    found[folder + "/" + part] = logits.contiguous()
assert not any(name.split(".")[0] in ("llmgym", "trainers") for name in sys.modules)
save_file(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save an untrained model of each family with a tokenizer and a chat template."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    sizes = {"vocab_size": max(tokenizer.get_vocab().values()) + 1}
    for family in FAMILIES:
        given = GPT2 if family == "gpt2" else {**WIDTH, **CHANGES[family]}
        given = {name: value for name, value in given.items() if value is not None} | sizes
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **given)
        AutoModelForCausalLM.from_config(config).save_pretrained(place / family)
        tokenizer.save_pretrained(place / family)
    return place


@pytest.fixture
def trained(folders, tmp_path, monkeypatch):
    """Run all stages from a family's folder; return the run's folder and the logits it ended at."""
    seen = {}
    before = text.TextTraining.export

    def export(self, names):
        before(self, names)
        seen["parts"] = self._policy, self.learner.critic_module

    monkeypatch.setattr(text.TextTraining, "export", export)

    def start(family, name=None, **changes):
        given = {"model.path": str(folders / family), "run.dir": str(tmp_path), **changes}
        config = read([], {**SETTINGS, "run.name": name or family, **given})
        folder = str(run(config, reward=letters).run_dir)
        policy, critic = seen["parts"]
        of = policy if critic is None else critic
        value = classifier_of(of.trunk, of.head)
        ids = torch.tensor(TOKENS)
        with torch.no_grad():
            logits = {
                "model": policy.model.eval()(input_ids=ids).logits,
                "critic": value.eval()(input_ids=ids).logits,
            }
        return folder, logits

    return start


def letters(response):
    """A reward with something to tell apart in any text."""
    return sum(map(ord, response)) % 11 / 10


def in_a_fresh_process(folders, tmp_path):
    """Return what plain transformers computes from the folders of runs."""
    parts = [[folder, part] for folder in folders for part in ("model", "critic")]
    file = tmp_path / "logits.safetensors"
    command = [sys.executable, "-c", READER, json.dumps(parts), str(file)]
    subprocess.run(command, check=True, timeout=240, cwd=tmp_path, capture_output=True)
    return load_file(file)


def test_plain_transformers_computes_what_each_family_learned(trained, folders, tmp_path):
    want = {}
    for family in FAMILIES:
        folder, logits = trained(family)
        want |= {f"{folder}/{part}": value for part, value in logits.items()}
        assert moved(folders / family, Path(folder) / "base"), "the demonstrations taught nothing"
        assert moved(Path(folder) / "base", Path(folder) / "model"), "PPO taught nothing"

    got = in_a_fresh_process([str(tmp_path / family) for family in FAMILIES], tmp_path)

    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=0, msg=name)
        assert value.abs().max() > 0, name


def moved(before, after):
    """Tell whether any weight differs between two model folders."""
    one, other = (load_file(path / "model.safetensors") for path in (before, after))
    assert one.keys() == other.keys()
    return any(not torch.equal(one[name], other[name]) for name in one)


def test_a_shared_critic_is_read_back_as_well(trained, tmp_path):
    folder, logits = trained("qwen3", **{"ppo.critic": "shared"})
    got = in_a_fresh_process([folder], tmp_path)
    for part, value in logits.items():
        torch.testing.assert_close(got[f"{folder}/{part}"], value, atol=1e-5, rtol=0)
        assert value.abs().max() > 0


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_recomputed_activations_change_no_weight(trained, monkeypatch, critic):
    recomputing = []
    before = steps.fit

    def train(engine, *args, **kwargs):
        layers = [vars(layer) for layer in engine.module.model.modules()]
        recomputing.append(any(layer.get("gradient_checkpointing") for layer in layers))
        return before(engine, *args, **kwargs)

    monkeypatch.setattr(steps, "fit", train)
    one, other = (
        trained("llama", name, **{"backend.gradient_checkpointing": on, "ppo.critic": critic})[1]
        for name, on in (("kept", False), ("recomputed", True))
    )
    assert recomputing == [False, True]
    for part, value in one.items():
        torch.testing.assert_close(other[part], value, atol=1e-5, rtol=0)


def test_a_run_that_failed_in_its_export_is_saved_by_a_resume(folders, tmp_path, monkeypatch):
    place = folders / "opt"
    config = AutoConfig.for_model("opt", **WIDTH | UNCLASSIFIED["opt"] | {"vocab_size": 280})
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(folders / "llama").save_pretrained(place)
    given = {"ppo.critic": "shared", "model.path": str(place), "run.dir": str(tmp_path)}
    settings = read([], {**SETTINGS, **given})
    with monkeypatch.context() as before:
        before.setattr(text, "export_critic", refused)
        with pytest.raises(CheckpointError, match="no classifier"):
            run(settings, reward=letters)
    assert not (tmp_path / "a" / "critic").exists()

    run(settings, reward=letters, resume=True)

    head = load_file(tmp_path / "a" / "critic" / "value_head.safetensors")
    assert head["weight"].shape == (1, 16)
    assert head["weight"].abs().max() > 0


def refused(*_args):
    raise CheckpointError("no classifier")
