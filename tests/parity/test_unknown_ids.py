"""Ids that the tokenizer does not hold: counted, and masked in sampling and scoring alike."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from trainers.functional.logprobs import linear_logprobs
from trainers.generation.base import Request, Sampling
from trainers.inference.loading import load_for_inference
from trainers.inference.targets import target_of
from trainers.runner.run import run

PADDING = 80
"""Rows of the embedding that no token has; a third of what an untrained policy samples."""


def padded(folder):
    tiny.save_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size + PADDING, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def played(tmp_path, **changes):
    config = tiny.run_settings(padded(tmp_path / "model"), tmp_path, **changes)
    return run(config, reward=tiny.letters, loggers=[])


def test_sampled_ids_beyond_the_tokenizer_are_counted(tmp_path):
    assert played(tmp_path).metrics["completions/unknown_ratio"] > 0.05


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_masked_ids_are_masked_for_policy_old_policy_reference_and_generator(tmp_path, critic):
    still = {"ppo.learning_rate": 0.0, "ppo.critic_learning_rate": 0.0, "ppo.critic": critic}
    kl = {"ppo.kl_placement": "loss", "generation.temperature": 0.7}
    result = played(tmp_path, **{"generation.mask_unknown": True, **still, **kl})

    figures = result.metrics
    assert figures["completions/unknown_ratio"] == 0.0
    tiny.assert_on_policy(figures)
    assert figures["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    apart = [value for key, value in figures.items() if key.startswith("policy/generator_logp")]
    assert apart
    assert max(apart) < 1e-5


def test_masked_ids_are_masked_where_a_run_is_evaluated_and_played(tmp_path):
    result = played(tmp_path, **{"generation.mask_unknown": True, "ppo.entropy_coef": 0.01})
    speaker = load_for_inference(target_of(str(result.run_dir)), Sampling())
    known = max(speaker.chat.tokenizer.get_vocab().values())
    assert speaker.policy.scorer.absent == ((known + 1, known + 1 + PADDING),)
    prompt = speaker.chat.prompt_ids([{"role": "user", "content": "1"}])
    asked = [Request(token_ids=prompt, index=i, max_new_tokens=8) for i in range(32)]
    drawn = [
        token for one in speaker.generator.generate(asked, Sampling()) for token in one.token_ids
    ]
    assert max(drawn) <= known
    weights = [one for one in speaker.policy.parameters() if not one.isfinite().all()]
    assert not weights  # the entropy of a policy with impossible tokens has a finite gradient


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [2, 512])
def test_absent_ids_have_no_probability_and_no_gradient(softcap, chunk):
    rng = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 4, generator=rng).requires_grad_() for size in (5, 7))
    targets = torch.tensor([0, 1, 3, 4, 0])
    absent, temperature = ((2, 3), (5, 7)), 0.7

    found, entropy = linear_logprobs(
        hidden, weight, None, targets,
        temperature=temperature, chunk=chunk, entropy="loss", softcap=softcap, absent=absent,
    )  # fmt: skip

    kept = [0, 1, 3, 4]
    logits = hidden @ weight[kept].T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    every = (logits / temperature).log_softmax(-1)
    place = torch.tensor([kept.index(one) for one in targets])[:, None]
    assert torch.allclose(found, every.gather(-1, place)[:, 0], atol=1e-6)
    assert torch.allclose(entropy, -(every.exp() * every).sum(-1), atol=1e-6)
    (found.sum() + entropy.sum()).backward()
    assert weight.grad.isfinite().all()
    assert not weight.grad[[2, 5, 6]].any()
