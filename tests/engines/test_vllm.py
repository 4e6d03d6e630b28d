"""vLLM itself: its log-probabilities against the trainer's forward, and its weights kept apart."""

import os
import signal
import threading

import pytest
import torch

from tests.tiny import llama
from trainers.config import Config, GenerationConfig, LoRAConfig
from trainers.errors import GenerationError, RolloutStoppedError
from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.vllm import make_generator
from trainers.models.adapters import adapt
from trainers.models.causal_lm import CausalPolicy

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
VOCAB, EOS, ABSENT = 300, (2, 3, 4, 5, 6, 7, 8, 9), (280, 300)
LONG = [(7 * i) % 271 + 10 for i in range(150)]
"""Longer than a block of vLLM's cache, whose keys and values are then shared by requests."""
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}


def policy_of(seed, temperature=1.0):
    model = llama(seed=seed, **SIZES).eval()
    return CausalPolicy(model, temperature=temperature, chunk=512, absent=(ABSENT,))


def started(policy, **changes):
    config = Config(generation=GenerationConfig(engine="vllm"))
    return make_generator(
        GeneratorParts(policy=policy, eos_token_ids=EOS, pad_token_id=0, batch_size=16,
                       config=config, tokenizer="abc", max_tokens=200, **changes)
    )  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def served(request):
    policy = CausalPolicy(
        llama(**SIZES, tie_word_embeddings=request.param).eval(),
        temperature=1.0, chunk=512, absent=(ABSENT,),
    )  # fmt: skip
    generator = started(policy)
    yield policy, generator
    generator.close()


def load(policy, generator, seed, version):
    source = llama(seed=seed, **SIZES).state_dict()
    policy.model.load_state_dict(source, strict=False)
    generator.load_weights(((n, p.detach()) for n, p in policy.named_parameters()), version)


def requests(prompt, count=8, new=24):
    return [Request(token_ids=[*prompt, 20 + i], index=i, max_new_tokens=new) for i in range(count)]


@torch.no_grad()
def reference(policy, request, response, temperature):
    """Give log-probabilities [T, V] by one forward over the row, without a cache."""
    row = torch.tensor([[*request.token_ids, *response.token_ids]])
    logits = policy.model(row).logits[0, len(request.token_ids) - 1 : -1].float() / temperature
    logits[:, ABSENT[0] : ABSENT[1]] = -torch.inf
    return torch.log_softmax(logits, -1)


def gaps(policy, asked, responses, temperature):
    return torch.tensor([
        abs(float(row[token]) - logprob)
        for request, response in zip(asked, responses, strict=True)
        for row, token, logprob in zip(
            reference(policy, request, response, temperature),
            response.token_ids, response.logprobs, strict=True,
        )
    ])  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_tempered_forward_after_every_update(served, temperature):
    policy, generator = served
    for seed in (1, 2):
        load(policy, generator, seed, version := generator.policy_version + 1)
        for asked in (requests([11]), requests(LONG)):
            sampling = Sampling(temperature=temperature, seed=3)
            responses = generator.generate(asked, sampling)
            assert gaps(policy, asked, responses, temperature).max() < 1e-4
            assert {response.policy_version for response in responses} == {version}


def test_greedy_takes_the_most_likely_token(served):
    policy, generator = served
    load(policy, generator, 1, generator.policy_version + 1)
    asked = requests([11])
    for request, response in zip(
        asked, generator.generate(asked, Sampling(greedy=True)), strict=True
    ):
        rows = reference(policy, request, response, 1.0)
        best, own = rows.max(-1).values, rows.gather(1, torch.tensor(response.token_ids)[:, None])
        assert (best - own[:, 0]).max() < 1e-4  # the argmax, or as likely up to rounding


def test_a_response_ends_with_any_end_token_or_at_its_limit(served):
    policy, generator = served
    load(policy, generator, 1, generator.policy_version + 1)
    responses = generator.generate(requests([11], count=64), Sampling(seed=1))
    ends = {r.token_ids[-1] for r in responses if r.finish_reason == "stop"}
    assert len(ends) > 1
    assert ends <= set(EOS)
    for response in responses:
        assert not set(response.token_ids[:-1]) & set(EOS)
        assert response.finish_reason == "stop" or len(response.token_ids) == 24
        assert max(response.token_ids) < ABSENT[0]


def test_the_same_seeds_draw_the_same_and_others_do_not(served):
    policy, generator = served
    load(policy, generator, 1, generator.policy_version + 1)
    first, again, other = (
        [r.token_ids for r in generator.generate(requests([11]), Sampling(seed=seed))]
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other
    assert len(set(first)) == len(first)


def test_heads_that_cpu_kernels_lack_are_refused_before_the_engine_starts():
    policy = CausalPolicy(llama(**{**SIZES, "num_attention_heads": 4}), temperature=1.0, chunk=64)
    with pytest.raises(GenerationError, match=r"take heads of 32, .* this model has heads of 16"):
        started(policy)


def test_bfloat16_is_within_the_tolerance():
    policy = policy_of(1)
    generator = started(policy, autocast=torch.bfloat16)
    generator.load_weights(((n, p.detach()) for n, p in policy.named_parameters()), 0)
    asked = requests([11])
    gap = gaps(policy, asked, generator.generate(asked, Sampling()), 1.0)
    generator.close()
    assert 0 < gap.mean() < GenerationConfig().tolerance


@torch.no_grad()
def test_adapters_count_and_a_rollout_that_is_not_needed_ends_soon():
    policy = policy_of(1)
    plain = policy_of(1)
    adapt(policy.model, LoRAConfig(rank=4, alpha=8.0, targets=["all-linear"]), seed=0)
    for name, weight in policy.named_parameters():
        if ".lora_B." in name:
            weight.normal_(std=0.1)
    generator = started(policy)
    generator.load_weights(((n, p.detach()) for n, p in policy.named_parameters()), 0)
    asked = requests([11])
    responses = generator.generate(asked, Sampling())
    assert gaps(policy, asked, responses, 1.0).max() < 1e-4
    assert gaps(plain, asked, responses, 1.0).max() > 0.1
    timer = threading.Timer(0.5, generator.stop)
    timer.start()
    with pytest.raises(RolloutStoppedError):
        generator.generate(requests([11], count=2000, new=150), Sampling())
    generator.close()


def test_a_rollout_outlives_a_worker_that_is_killed_in_its_midst():
    policy = policy_of(1)
    generator = started(policy)
    generator.load_weights(((n, p.detach()) for n, p in policy.named_parameters()), 7)
    worker = generator._pool._endpoints[0].worker
    asked = requests([11], count=64, new=150)
    generator.generate(asked[:1], Sampling())  # kernels are built
    killed = worker.pid
    killer = threading.Timer(0.3, os.kill, (killed, signal.SIGKILL))
    killer.start()
    responses = generator.generate(asked, Sampling(seed=2))
    killer.join()
    assert worker.pid != killed
    assert {response.policy_version for response in responses} == {7}
    assert gaps(policy, asked, responses, 1.0).max() < 1e-4
    generator.close()
