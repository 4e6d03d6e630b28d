"""GGUF: the weights and tokens of the model it was made of, plain folders, refusals in time."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tests.tiny import letters, run_settings
from trainers.cli.main import main
from trainers.config import Config, ModelConfig, TokenizerConfig
from trainers.errors import ConfigError
from trainers.models import gguf as door
from trainers.models.chat import train_tokenizer
from trainers.models.loading import load_causal_lm, load_chat, load_config, load_tokenizer
from trainers.runner.run import run

pytestmark = pytest.mark.gguf
TOKENS = torch.arange(6, 36)[None]
TEXT = "12 + 34 = 46, isn't it?\n\n  <|user|> 7"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file, and the model and tokenizer it was made of."""
    from tests.unit.trainers.models.gguf_files import save_gguf  # noqa: PLC0415 - needs gguf

    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return file, *save_gguf(file)


def saved(folder, **changes):
    from tests.unit.trainers.models.gguf_files import save_gguf  # noqa: PLC0415 - needs gguf

    save_gguf(folder / "tiny.gguf", **changes)
    return str(folder / "tiny.gguf")


def config_of(source):
    return Config(model=ModelConfig(path=str(source)))


def test_a_gguf_file_gives_the_logits_and_the_tokens_of_the_model_it_was_made_of(made):
    file, model, tokenizer = made
    loaded = load_causal_lm(str(file)).eval()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits)
    assert load_tokenizer(config_of(file))(TEXT).input_ids == tokenizer(TEXT).input_ids
    chat = load_chat(config_of(file), load_tokenizer(config_of(file)), env="x")
    assert chat.eos_token_ids == (tokenizer.eos_token_id,)


def test_quantized_weights_become_plain_ones_that_learn_and_save(tmp_path):
    loaded = load_causal_lm(saved(tmp_path, kind="Q8_0"))
    loaded(TOKENS, labels=TOKENS).loss.backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in loaded.parameters())
    loaded.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, loaded.eval()(TOKENS).logits)


def test_what_lies_beside_a_gguf_file_is_not_read(made, tmp_path):
    file, _, tokenizer = made
    copy = tmp_path / "tiny.gguf"
    copy.write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("other")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    train_tokenizer(["a b c"], 300).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_config(str(copy)).model_type == "llama"
    assert load_tokenizer(config_of(copy))(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert load_tokenizer(config_of(copy)).chat_template == tokenizer.chat_template


@pytest.mark.parametrize("changes", [{}, {"ppo.critic": "shared"}, {"model.lora.rank": 2}])
def test_a_run_from_gguf_trains_and_exports_a_plain_folder(made, tmp_path, changes):
    settings = run_settings(made[0], tmp_path, **changes)
    run(settings, reward=letters)
    folder = tmp_path / "a" / "model"
    trained = AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    before = load_causal_lm(str(made[0])).state_dict()
    moved = [name for name, one in trained.state_dict().items() if not one.equal(before[name])]
    assert moved


def test_supervised_and_reward_model_stages_start_from_gguf(made, tmp_path):
    rows = [{"prompt": f"{i} + 1 =", "response": f"{i + 1}", "chosen": "1", "rejected": "2"}
            for i in range(8)]  # fmt: skip
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ["--model.path", str(made[0]), "--data", str(data), "--run.dir", str(tmp_path)]
    assert main(["sft", *said, "--name", "s", "--sft.holdout", "0.25"]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "s" / "model")
    assert main(["reward-model", *said, "--name", "r", "--reward-model.holdout", "0.25"]) == 0
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r" / "model")
    assert judge.config.num_labels == 1


def test_export_writes_a_gguf_file_as_a_folder_and_eval_and_play_read_it(made, tmp_path, capsys):
    out = tmp_path / "plain"
    assert main(["export", str(made[0]), "--out", str(out)]) == 0
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(out).eval()
        torch.testing.assert_close(loaded(TOKENS).logits, made[1](TOKENS).logits)
    assert AutoTokenizer.from_pretrained(out)(TEXT).input_ids == made[2](TEXT).input_ids
    assert main(["export", str(made[0]), "--out", str(out)]) == 2
    assert f"{out} exists" in capsys.readouterr().err
    assert main(["eval", str(made[0]), "--n", "2", "--json"]) == 0
    assert '"mean"' in capsys.readouterr().out


def test_without_the_package_the_error_names_the_extra(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r'pip install "llmgym-rl\[train,gguf\]"'):
        load_config(str(made[0]))


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_a_file_that_is_cut_off_is_refused_before_weights_load(made, tmp_path, share):
    whole = made[0].read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ConfigError, match=r"cut.gguf is damaged or no GGUF file: .*Copy"):
        load_config(str(file))


@pytest.mark.parametrize("junk", [b"PK\x03\x04" * 100, b"GGUF" + b"\xff" * 400, b"\x00" * 64])
def test_a_file_of_another_format_is_refused(tmp_path, junk):
    file = tmp_path / "other.gguf"
    file.write_bytes(junk)
    with pytest.raises(ConfigError, match="is damaged or no GGUF file"):
        load_tokenizer(config_of(file))


def test_a_file_that_is_not_there_names_one_that_is(made):
    with pytest.raises(ConfigError, match=r"there is no file .*tinny.gguf. Did you mean .*tiny"):
        load_causal_lm(str(made[0].with_name("tinny.gguf")))


def test_an_unknown_architecture_is_refused_before_weights_load(tmp_path):
    with pytest.raises(ConfigError, match=r"tiny.gguf does not load: .*newfangled"):
        load_config(saved(tmp_path, architecture="newfangled"))


@pytest.mark.parametrize("pre", ["", "default", "deepseek-llm"])
def test_a_tokenizer_that_would_split_text_otherwise_is_refused(made, tmp_path, pre):
    source = saved(tmp_path, pre=pre)
    with pytest.raises(ConfigError, match=r"Set --tokenizer\.path to the model's own"):
        load_tokenizer(config_of(source))
    made[2].save_pretrained(tmp_path / "own")
    tokenizer = TokenizerConfig(path=str(tmp_path / "own"))
    own = Config(model=ModelConfig(path=source), tokenizer=tokenizer)
    assert load_tokenizer(own)(TEXT).input_ids == made[2](TEXT).input_ids


def test_positions_scaled_by_a_tensor_that_transformers_leaves_out_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight, which transformers leaves out"):
        load_config(saved(tmp_path, extra=["rope_freqs.weight"]))


def test_a_gguf_file_that_changes_is_checked_again(made, tmp_path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(made[0].read_bytes())
    load_config(str(file))
    file.write_bytes(made[0].read_bytes()[:-100])
    with pytest.raises(ConfigError, match="damaged"):
        load_config(str(file))


@pytest.mark.parametrize("name", ["a.gguf", "A.GGUF", "./x/y.gguf"])
def test_a_gguf_file_is_known_by_its_name(name):
    assert door.is_gguf(name)
    assert not door.is_gguf(str(Path(name).with_suffix(".bin")))
