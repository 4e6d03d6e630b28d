"""The vllm engine without vLLM: what it sends, what it takes back, and what it refuses."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from tests.tiny import llama
from tests.unit.trainers.generation.serving.fakes import ROOT, Served
from trainers.config import Config, GenerationConfig, LoRAConfig, VllmConfig
from trainers.errors import ConfigError, GenerationError, LostServerError
from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.sampling import stream_seed
from trainers.generation.serving.protocol import read_records
from trainers.generation.vllm import check_engine, described, make_generator
from trainers.models.adapters import adapt
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic import SharedActorCritic
from trainers.runner.generators import check_generator

EOS = (7, 9)


@pytest.fixture
def served():
    made = Served(takes_paths=False)
    yield made
    made.close()


def config_of(*servers, **generation):
    return Config(generation=GenerationConfig(engine="vllm", servers=list(servers), **generation))


def parts_of(policy=None, **changes):
    policy = policy or CausalPolicy(llama(), temperature=1.0, chunk=64)
    made = GeneratorParts(policy=policy, eos_token_ids=EOS, pad_token_id=0, batch_size=4,
                          config=config_of(), tokenizer="abc", max_tokens=20)  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def generator(served):
    made = make_generator(parts_of(config=config_of(served.url)))
    yield made
    made.close()


def test_every_weight_of_the_language_model_is_sent_under_its_own_name(
    served, tmp_path, monkeypatch
):
    shared = SharedActorCritic(llama(), temperature=1.0, chunk=64)
    kept = []
    generator = make_generator(parts_of(shared, config=config_of(served.url)))
    monkeypatch.setattr(served.engine, "update", lambda path, v: kept.extend(read_records(path, v)))
    generator.load_weights(((n, p.detach()) for n, p in shared.named_parameters()), 4)
    assert {r.name: r.shape for r in kept} == {
        name: tuple(weight.shape) for name, weight in shared.model.named_parameters()
    }
    assert (generator.policy_version, {r.dtype for r in kept}) == (4, {"float32"})
    generator.close()


def test_weights_are_sent_in_the_type_of_the_trainers_forward(served, monkeypatch):
    policy, kept = CausalPolicy(llama(), temperature=1.0, chunk=64), []
    parts = parts_of(policy, config=config_of(served.url), autocast=torch.bfloat16)
    generator = make_generator(parts)
    monkeypatch.setattr(served.engine, "update", lambda path, v: kept.extend(read_records(path, v)))
    generator.load_weights(policy.named_parameters(), 0)
    assert {record.dtype for record in kept} == {"bfloat16"}
    assert described(parts)["engine"]["dtype"] == "bfloat16"
    generator.close()


def loaded(generator, served, value=-0.5):
    policy = generator._names
    tensors = ((name, torch.full((2,), -value)) for name in policy)
    generator.load_weights(tensors, 3)
    return generator


def test_a_response_ends_with_its_end_token_and_keeps_it(generator, served, monkeypatch):
    loaded(generator, served)
    finished = {0: [1, 2, 9], 1: [1, 2, 3], 2: [7]}

    def step():
        done = [(key, finished[key], [-0.5] * len(finished[key])) for key in served.engine.requests]
        served.engine.requests.clear()
        return done

    monkeypatch.setattr(served.engine, "step", step)
    requests = [Request(token_ids=[1], index=i, max_new_tokens=3) for i in range(3)]
    responses = generator.generate(requests, Sampling())
    assert [list(r.token_ids) for r in responses] == list(finished.values())
    assert [r.finish_reason for r in responses] == ["stop", "length", "stop"]
    assert {r.policy_version for r in responses} == {3}
    assert all(r.logprobs == (-0.5,) * len(r.token_ids) for r in responses)


def test_each_request_has_the_seed_of_its_place_and_the_sampling_that_was_asked_for(
    generator, served, monkeypatch
):
    loaded(generator, served)
    added = []
    add = served.engine.add
    monkeypatch.setattr(
        served.engine, "add", lambda key, *given: (added.append(given), add(key, *given))
    )
    sampling = Sampling(temperature=0.7, seed=5, iteration=2, greedy=True, top_k=3, top_p=0.5)
    requests = [Request(token_ids=[1], index=i, position=i, max_new_tokens=1) for i in range(3)]
    generator.generate(requests, sampling)
    assert [one["seed"] for one, _ in added] == [stream_seed(5, 2, i, i) for i in range(3)]
    assert added[0][1] == {"temperature": 0.7, "top_p": 0.5, "top_k": 3, "greedy": True}


def test_seeds_differ_by_every_part_of_their_key_and_fit_63_bits():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    seeds = {stream_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_logprobs_that_are_not_finite_are_refused(generator, served):
    loaded(generator, served, value=math.nan)
    with pytest.raises(GenerationError, match="not finite"):
        generator.generate([Request(token_ids=[1], index=0, max_new_tokens=1)], Sampling())


def test_weights_that_are_refused_leave_no_version(generator, served, monkeypatch):
    loaded(generator, served)

    def refuse(path, version):
        raise ValueError("no weights came for b")

    monkeypatch.setattr(served.engine, "update", refuse)
    with pytest.raises(GenerationError, match="no weights came for b"):
        loaded(generator, served)
    assert generator.policy_version == -1


def test_the_description_is_json_and_says_what_ends_and_what_is_absent():
    policy = CausalPolicy(llama(), temperature=1.0, chunk=64, absent=((5, 7),))
    config = config_of(vllm=VllmConfig(cache_gb=2.0, options={"enforce_eager": True}))
    made = json.loads(json.dumps(described(parts_of(policy, config=config))))
    assert made["model"]["architectures"] == ["LlamaForCausalLM"]
    assert made["tokenizer"] == "abc"
    assert made["engine"] == {
        "dtype": "float32", "max_model_len": 20, "max_num_seqs": 256, "cache_gb": 2.0,
        "eos_token_ids": [7, 9], "absent": [[5, 7]], "options": {"enforce_eager": True},
    }  # fmt: skip


def test_a_server_with_another_model_is_refused_before_anything_is_sent(served):
    make_generator(parts_of(config=config_of(served.url))).close()
    other = CausalPolicy(llama(intermediate_size=24), temperature=1.0, chunk=64)
    with pytest.raises(GenerationError, match="another model: intermediate_size"):
        make_generator(parts_of(other, config=config_of(served.url)))
    with pytest.raises(GenerationError, match="another tokenizer"):
        make_generator(parts_of(config=config_of(served.url), tokenizer="xyz"))


def test_it_says_that_it_is_not_exact(generator):
    assert generator.exact is False
    assert "fake 1, not exact" in generator.describe()


@torch.no_grad()
def test_adapters_are_sent_merged_layer_by_layer(served, monkeypatch):
    policy = CausalPolicy(llama(), temperature=1.0, chunk=64)
    adapt(policy.model, LoRAConfig(rank=4, alpha=8.0, targets=["all-linear"]), seed=0)
    for name, weight in policy.named_parameters():
        if ".lora_B." in name:
            weight.normal_(std=0.1)
    tokens = torch.arange(1, 9)[None]
    expected = policy.model(tokens).logits
    assert (llama()(tokens).logits - expected).abs().max() > 0.1
    sent = {}

    def update(path, version):
        for record in read_records(path, version):
            content = path.read_bytes()[record.offset : record.offset + record.size]
            numbers = torch.frombuffer(bytearray(content), dtype=getattr(torch, record.dtype))
            sent[record.name] = numbers.reshape(record.shape)

    generator = make_generator(parts_of(policy, config=config_of(served.url)))
    monkeypatch.setattr(served.engine, "update", update)
    generator.load_weights(((n, p.detach()) for n, p in policy.named_parameters()), 1)
    generator.close()
    merged = llama(seed=1)
    assert set(sent) == {name for name, _ in merged.named_parameters()}
    merged.load_state_dict(sent, strict=False)
    assert torch.allclose(merged(tokens).logits, expected, atol=1e-5)


def test_a_server_that_is_down_is_named_before_weights_load():
    with pytest.raises(LostServerError, match=r"generation.servers: http://127.0.0.1:1 .*Start it"):
        check_engine(config_of("http://127.0.0.1:1"))


def test_an_environment_that_is_not_there_or_lacks_vllm_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMGYM_VLLM_PYTHON", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"is no file.*make engines"):
        check_engine(config_of())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(ConfigError, match=r"lacks something \(AssertionError: vllm\)"):
        check_engine(config_of(vllm=VllmConfig(python=sys.executable)))


def test_the_engine_that_is_set_is_checked_and_no_other(monkeypatch):
    monkeypatch.setenv("LLMGYM_VLLM_PYTHON", "/nowhere")
    check_generator(Config())
    with pytest.raises(ConfigError, match="/nowhere is no file"):
        check_generator(config_of())


@pytest.mark.parametrize(
    "url", ["localhost:8100", "http://host", "https://host:1", "http://h:1/v1"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="must be http://HOST:PORT"):
        GenerationConfig(servers=[url])
