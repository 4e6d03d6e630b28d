"""Continuous batching: what it writes is the policy's law, and the policy stays as it was."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig as HfGenerationConfig
from transformers import MambaConfig, MambaForCausalLM

from tests.tiny import run_settings
from tests.unit.trainers.generation.test_transformers_generator import (
    full_forward_logprobs,
    gpt2,
    llama,
    requests,
)
from trainers.errors import ConfigError, GenerationError, RolloutStoppedError
from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.continuous import check_engine, make_generator
from trainers.generation.transformers import TransformersGenerator
from trainers.models.causal_lm import CausalPolicy

ENGINE = "generation.engine"


def parts_of(model=None, *, eos=(2,), **changes):
    policy = CausalPolicy(model or llama(), temperature=1.0, chunk=64)
    made = GeneratorParts(policy=policy, eos_token_ids=eos, pad_token_id=0, batch_size=64)
    return replace(made, **changes)


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_tempered_full_forward(model, temperature):
    made, asked = model(), requests()
    responses = make_generator(parts_of(made)).generate(asked, Sampling(temperature=temperature))
    for request, response in zip(asked, responses, strict=True):
        expected = full_forward_logprobs(made, request.token_ids, response.token_ids, temperature)
        assert response.logprobs == pytest.approx(expected, abs=2e-5)


def test_every_response_ends_at_its_end_token_or_at_its_own_limit():
    asked = requests(30)
    ends = set(range(2, 40))
    responses = make_generator(parts_of(eos=ends)).generate(asked, Sampling())
    reasons = {response.finish_reason for response in responses}
    for request, response in zip(asked, responses, strict=True):
        stops = [token in ends for token in response.token_ids]
        assert not any(stops[:-1])
        assert response.finish_reason == ("stop" if stops[-1] else "length")
        assert stops[-1] or len(response.token_ids) == request.max_new_tokens
    assert "stop" in reasons


def test_greedy_responses_are_those_of_the_exact_engine():
    parts, asked = parts_of(), requests(20)
    greedy = Sampling(greedy=True)
    ours = make_generator(parts).generate(asked, greedy)
    theirs = TransformersGenerator(parts).generate(asked, greedy)
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]


def test_fewer_places_than_rows_write_the_same_greedy_responses():
    asked, greedy = requests(20), Sampling(greedy=True)
    many = make_generator(parts_of()).generate(asked, greedy)
    few = make_generator(parts_of(batch_size=3)).generate(asked, greedy)
    assert [r.token_ids for r in many] == [r.token_ids for r in few]


def test_a_rollout_repeats_itself_and_another_iteration_draws_anew():
    asked = requests(10)
    generator = make_generator(parts_of())
    first, again, other = (
        [r.token_ids for r in generator.generate(asked, Sampling(seed=3, iteration=i))]
        for i in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_samples_follow_the_law_of_the_first_token():
    parts, count = parts_of(), 4000
    asked = [Request(token_ids=[5, 6, 7], index=i, max_new_tokens=1) for i in range(count)]
    drawn = make_generator(parts).generate(asked, Sampling(temperature=1.5))
    with torch.no_grad():
        logits = parts.policy.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double()
    law = torch.softmax(logits / 1.5, -1)
    counts = torch.bincount(torch.tensor([r.token_ids[0] for r in drawn]), minlength=len(law))
    frequent = law * count >= 5
    rest = torch.stack([counts[~frequent].sum(), law[~frequent].sum() * count])
    terms = (counts[frequent] - law[frequent] * count).square() / (law[frequent] * count)
    statistic = float(terms.sum()) + float((rest[0] - rest[1]).square() / rest[1].clamp(min=1))
    freedom = int(frequent.sum())
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_ids_that_the_tokenizer_lacks_are_never_drawn_and_count_for_nothing():
    model = llama()
    policy = CausalPolicy(model, temperature=1.0, chunk=64)
    policy.scorer = replace(policy.scorer, absent=((0, 30),))
    parts = parts_of(model, policy=policy)
    asked = requests(8)
    for request, response in zip(
        asked, make_generator(parts).generate(asked, Sampling()), strict=True
    ):
        assert min(response.token_ids) >= 30
        tokens = torch.tensor([[*request.token_ids, *response.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, len(request.token_ids) - 1 : -1].double()
        logits[:, :30] = -math.inf
        expected = torch.log_softmax(logits, -1)[range(len(response.token_ids)), response.token_ids]
        assert response.logprobs == pytest.approx(expected.tolist(), abs=2e-5)


def test_the_models_own_generation_settings_are_not_read():
    model, asked = llama(), requests(6)
    expected = make_generator(parts_of(model)).generate(asked, Sampling())
    model.generation_config = HfGenerationConfig(
        repetition_penalty=5.0, top_k=1, max_new_tokens=1, do_sample=False, eos_token_id=[5, 6, 7]
    )
    assert make_generator(parts_of(model)).generate(asked, Sampling()) == expected


def test_the_policy_and_the_generators_of_torch_stay_as_they_were():
    model = llama()
    model.train()
    model.config._attn_implementation = "eager"
    parts, state = parts_of(model), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    make_generator(parts).generate(requests(4), Sampling())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())
    assert model.config._attn_implementation == "eager"
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_shared_weights_are_read_in_place():
    parts, greedy, asked = parts_of(), Sampling(greedy=True), requests(6)
    generator = make_generator(parts)
    generator.generate(asked, greedy)
    with torch.no_grad():
        for weight in parts.policy.model.parameters():
            weight.mul_(-1.3)
    generator.load_weights(parts.policy.named_parameters(), 4)
    ours = generator.generate(asked, greedy)
    assert ours[0].policy_version == 4
    theirs = TransformersGenerator(parts).generate(asked, greedy)
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]


def test_a_forward_in_bfloat16_writes_with_a_copy_that_each_version_fills():
    parts = parts_of(autocast=torch.bfloat16)
    generator = make_generator(parts)
    generator.load_weights(parts.policy.named_parameters(), 1)
    asked = requests(6)
    worst = 0.0
    for request, response in zip(asked, generator.generate(asked, Sampling()), strict=True):
        model = parts.policy.model
        expected = full_forward_logprobs(model, request.token_ids, response.token_ids, 1.0)
        gaps = [abs(a - b) for a, b in zip(response.logprobs, expected, strict=True)]
        worst = max([worst, *gaps])
    assert 1e-5 < worst < 0.3
    assert {weight.dtype for weight in parts.policy.model.parameters()} == {torch.float32}
    generator.sleep()
    assert generator.policy_version == -1
    generator.load_weights(parts.policy.named_parameters(), 2)
    assert generator.generate(asked, Sampling())[0].policy_version == 2


def test_broken_weights_are_an_error():
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(GenerationError, match="earlier checkpoint"):
        make_generator(parts_of(model)).generate(requests(3), Sampling())


def test_a_generator_that_is_stopped_writes_no_further_rollout():
    generator = make_generator(parts_of())
    generator.stop()
    with pytest.raises(RolloutStoppedError):
        generator.generate(requests(3), Sampling())


def test_a_recurrent_model_is_refused():
    config = MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError, match=r"Mamba.*engine transformers"):
        make_generator(parts_of(MambaForCausalLM(config)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"backend.name": "deepspeed", "backend.zero.stage": 3}, "zero.stage 2"),
        ({"generation.ahead": 1}, "ahead 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        check_engine(run_settings("model", "runs", **{ENGINE: "continuous", **changes}))


def test_a_former_transformers_is_refused(monkeypatch):
    monkeypatch.setattr(
        "trainers.generation.continuous.ContinuousBatchingConfig.__dataclass_fields__", {}
    )
    with pytest.raises(ConfigError, match=r"transformers 5\.17"):
        check_engine(run_settings("model", "runs", **{ENGINE: "continuous"}))
