"""Reward models: every tokenizer, template and padding side scores as if each text were alone."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from llmgym.errors import RewardError
from llmgym.rewards.base import resolve, score_samples
from llmgym.rewards.model import RewardModel
from tests.judges import RESPONSES, bert, chatml_tokenizer, decoder, letters_tokenizer, said
from tests.tiny import save_model

SAMPLES = [said(one) for one in RESPONSES]


def values(reward, samples):
    scores = score_samples(reward, samples)
    assert [score.status for score in scores] == ["ok"] * len(samples)
    return np.array([score.value for score in scores])


def alone(folder, samples, column=0, text=None):
    """The oracle: plain transformers, a text at a time, no padding, nothing of ours."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for sample in samples:
        ids = torch.tensor([text(tokenizer, sample)])
        with torch.no_grad():
            found.append(float(model(input_ids=ids).logits[0, column]))
    return np.array(found)


def plain(tokenizer, sample):
    space = " " if sample.response else ""
    return tokenizer(f"{sample.messages[0].content}{space}{sample.response}").input_ids


def chatml(tokenizer, sample):
    text = (
        f"<|im_start|>user\n{sample.messages[0].content}<|im_end|>\n"
        f"<|im_start|>assistant\n{sample.response}<|im_end|>\n"
    )
    return tokenizer(text, add_special_tokens=False).input_ids


MODELS = {
    "encoder, padded right, no template": (bert, {"head": "logit[good]"}, 1, plain),
    "decoder, padded left, ChatML": (decoder, {}, 0, chatml),
    "decoder with absolute positions": (lambda at: decoder(at, "gpt2"), {}, 0, chatml),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_batch_scores_as_plain_transformers_does_one_by_one(tmp_path, name, batch_size):
    make, settings, column, text = MODELS[name]
    reward = RewardModel(make(tmp_path / "rm"), batch_size=batch_size, **settings)
    expected = alone(tmp_path / "rm", SAMPLES, column, text)
    assert expected.std() > 0.05
    np.testing.assert_allclose(values(reward, SAMPLES), expected, atol=1e-5)
    each = [values(reward, [sample])[0] for sample in SAMPLES]
    np.testing.assert_allclose(each, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_shuffled_batch_scores_alike(tmp_path, name):
    make, settings, *_ = MODELS[name]
    reward = RewardModel(make(tmp_path / "rm"), batch_size=3, **settings)
    order = np.random.default_rng(0).permutation(len(SAMPLES))
    shuffled = values(reward, [SAMPLES[i] for i in order])
    np.testing.assert_allclose(shuffled, values(reward, SAMPLES)[order], atol=1e-6)


def test_heads_read_the_class_that_is_named(tmp_path):
    folder = bert(tmp_path / "rm")
    bad, good = (values(RewardModel(folder, head=f"logit[{i}]"), SAMPLES) for i in (0, 1))
    np.testing.assert_allclose(
        values(RewardModel(folder, head="softmax[good]"), SAMPLES),
        np.exp(good) / (np.exp(bad) + np.exp(good)),
        atol=1e-6,
    )
    odds = values(RewardModel(folder, head="log_odds[good]"), SAMPLES)
    np.testing.assert_allclose(odds, good - bad, atol=1e-6)


def test_a_response_goes_on_with_the_assistants_own_beginning(tmp_path):
    reward = RewardModel(bert(tmp_path / "rm"), head="logit[good]")
    begun = said(", do.", prompt="i really", role="assistant")
    whole = replace(SAMPLES[0], messages=(), text="i really, do.")
    assert values(reward, [begun])[0] == pytest.approx(values(reward, [whole])[0], abs=1e-6)
    asked = said(", do.", prompt="i really")
    assert values(reward, [asked])[0] != pytest.approx(values(reward, [whole])[0], abs=1e-3)


def test_nothing_is_loaded_before_the_first_score(tmp_path):
    folder = bert(tmp_path / "rm")
    reward = RewardModel(folder, head="logit[good]")
    for file in list(folder.iterdir()):
        file.rename(tmp_path / file.name)
    copy = pickle.loads(pickle.dumps(reward))
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / file).rename(folder / file)
    assert values(reward, SAMPLES).tolist() == values(copy, SAMPLES).tolist()


def test_scoring_leaves_the_random_state_alone(tmp_path):
    folder = bert(tmp_path / "rm")
    before = torch.get_rng_state()
    values(RewardModel(folder, head="logit[good]"), SAMPLES)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_text_over_the_context_is_an_error_and_the_others_are_not(tmp_path):
    reward = RewardModel(bert(tmp_path / "rm"), head="logit[good]")
    long = said("a" * 60)
    scores = score_samples(reward, [SAMPLES[1], long, SAMPLES[2]])
    assert [score.status for score in scores] == ["ok", "error", "ok"]
    assert "have 73 tokens" in scores[1].error
    assert "takes 48" in scores[1].error
    expected = values(reward, [SAMPLES[1], SAMPLES[2]])
    np.testing.assert_allclose([scores[0].value, scores[2].value], expected, atol=1e-6)
    shorter = RewardModel(tmp_path / "rm", head="logit[good]", max_length=20)
    assert "takes 20" in score_samples(shorter, [SAMPLES[2]])[0].error


def test_a_context_under_another_name_is_seen(tmp_path):
    folder = bert(tmp_path / "rm")
    size = max(AutoTokenizer.from_pretrained(folder).get_vocab().values()) + 1
    sizes = {"vocab_size": size, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 48}
    GPT2ForSequenceClassification(GPT2Config(num_labels=1, **sizes)).save_pretrained(folder)
    scores = score_samples(RewardModel(folder), [SAMPLES[1], said("a" * 60)])
    assert [score.status for score in scores] == ["ok", "error"]
    assert "takes 48" in scores[1].error


def test_running_statistics_stand_still_until_the_rollout_is_over(tmp_path):
    folder = bert(tmp_path / "rm")
    raw = values(RewardModel(folder, head="logit[good]"), SAMPLES)
    reward = RewardModel(folder, head="logit[good]", normalize="running")
    np.testing.assert_allclose(values(reward, SAMPLES), raw, atol=1e-6)
    np.testing.assert_allclose(values(reward, SAMPLES), raw, atol=1e-6)
    reward.scale.observed()
    values(reward, SAMPLES)
    reward.scale.absorb(reward.scale.observed())
    scores = score_samples(reward, SAMPLES)
    np.testing.assert_allclose(
        [score.value for score in scores], (raw - raw.mean()) / raw.std(), atol=1e-5
    )
    np.testing.assert_allclose([score.parts["raw"] for score in scores], raw, atol=1e-6)


def test_an_engine_may_compute_the_outputs(tmp_path):
    folder = bert(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    calls = []

    def forward(ids, mask):
        calls.append(tuple(ids.shape))
        return model(input_ids=ids, attention_mask=mask).logits

    (folder / "model.safetensors").unlink()
    reward = RewardModel(folder, head="logit[good]", forward=forward, batch_size=4)
    assert reward.collective
    assert len(values(reward, SAMPLES)) == len(SAMPLES)
    (first, wide), (second, narrow) = calls[-2:]
    assert (first, second) == (4, 3)
    assert wide > narrow


def test_a_config_names_a_reward_model_among_rules(tmp_path):
    folder = str(bert(tmp_path / "rm"))
    entries = [
        {"model": folder, "weight": 0.5, "kwargs": {"head": "logit[good]", "name": "kind"}},
        {"name": "regex", "weight": 2.0, "kwargs": {"pattern": "cat"}},
    ]
    scores = score_samples(resolve(entries), SAMPLES)
    kind = values(RewardModel(folder, head="logit[good]"), SAMPLES)
    for sample, score, worth in zip(SAMPLES, scores, kind, strict=True):
        has_cat = float("cat" in sample.text)
        assert score.value == pytest.approx(0.5 * worth + 2.0 * has_cat, abs=1e-5)
        assert score.parts["kind"] == pytest.approx(worth, abs=1e-5)
        assert score.parts["regex"] == has_cat
    (single,) = score_samples(resolve([{"model": folder, "kwargs": {"head": "logit[0]"}}]),
                              SAMPLES[:1])  # fmt: skip
    assert single.parts == {"reward_model": single.value}


def without_pad(folder):
    bert(folder)
    tokenizer = letters_tokenizer(pad_token=None)
    tokenizer.save_pretrained(folder)


def with_a_larger_tokenizer(folder):
    bert(folder)
    chatml_tokenizer().save_pretrained(folder)


def without_config(folder):
    folder.mkdir()


def with_a_broken_config(folder):
    bert(folder)
    (folder / "config.json").write_text("{")


def cut(folder):
    bert(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-400])


def without_a_head(folder):
    bert(folder)
    file = folder / "model.safetensors"
    kept = {name: one for name, one in load_file(file).items() if "classifier" not in name}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "kwargs", "message"),
    [
        (bert, {"head": "logit"}, r"has 2 labels \(bad, good\).*'log_odds\[good\]'"),
        (bert, {"head": "logit[god]"}, r'no label "god".*Did you mean good'),
        (bert, {"head": "softmx[1]"}, "no head 'softmx"),
        (bert, {"head": "softmax"}, "does not say which"),
        (decoder, {"head": "softmax[0]"}, "one label.*logit or sigmoid"),
        (bert, {"head": "logit[0]", "normalize": "fixed"}, "mean and std"),
        (bert, {"head": "logit[0]", "normalize": "often"}, "normalize is"),
        (bert, {"head": "logit[0]", "batch_size": 0}, "batch_size must be 1 or more"),
        (bert, {"head": "logit[0]", "sharp": 1}, "unexpected keyword argument 'sharp'"),
        (without_pad, {"head": "logit[0]"}, "no pad token.*save_pretrained"),
        (with_a_larger_tokenizer, {"head": "logit[0]"}, "ids up to .* embeds only 34"),
        (without_config, {}, "no config.json.*llmgym reward-model"),
        (with_a_broken_config, {}, "does not load"),
    ],
)
def test_what_is_wrong_is_said_before_any_weights_are_read(tmp_path, spoil, kwargs, message):
    spoil(tmp_path / "rm")
    (tmp_path / "rm" / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(RewardError, match=f"(?s){message}"):
        resolve({"model": str(tmp_path / "rm"), "kwargs": kwargs})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "does not load"),
        (without_a_head, "no trained reward model.*classifier.*would be random"),
        (save_model, "no trained reward model.*score.*would be random"),
    ],
)
def test_weights_that_are_not_a_reward_model_are_refused(tmp_path, spoil, message):
    spoil(tmp_path / "rm")
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    head = "logit[0]" if "id2label" in config or spoil is save_model else "logit"
    reward = RewardModel(tmp_path / "rm", head=head)
    with pytest.raises(RewardError, match=f"(?s){message}"):
        score_samples(reward, SAMPLES)


def test_a_model_that_mixes_the_texts_of_a_batch_is_refused(tmp_path):
    folder = bert(tmp_path / "rm")

    def forward(ids, mask):
        del mask
        return (ids.float() + ids.float().mean(0)).sum(1, keepdim=True).repeat(1, 2)

    reward = RewardModel(folder, head="logit[good]", forward=forward)
    with pytest.raises(RewardError, match="scores a text differently"):
        score_samples(reward, SAMPLES)
