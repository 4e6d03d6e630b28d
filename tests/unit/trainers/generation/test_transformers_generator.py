import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trainers.errors import GenerationError
from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.transformers import TransformersGenerator
from trainers.models.causal_lm import CausalPolicy

VOCAB = 60


def llama(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        **changes,
    )
    return LlamaForCausalLM(config)


def gpt2():
    torch.manual_seed(0)
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, **none)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(20)
        model.transformer.wte.weight.mul_(10)
    return model


MODELS = {"llama": llama, "gpt2": gpt2}


def generator(model, *, eos=(2,), pad=0, batch_size=64):
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    return TransformersGenerator(
        GeneratorParts(policy=policy, eos_token_ids=eos, pad_token_id=pad, batch_size=batch_size)
    )


def requests(count=12, *, longest=9, new=10):
    return [
        Request(
            token_ids=[3 + (5 * i + j) % 50 for j in range(1 + i % longest)],
            index=i,
            max_new_tokens=new - i % 3,
        )
        for i in range(count)
    ]


def force(model, token):
    """Make the model say `token` at every position."""
    logits = torch.full((VOCAB,), -30.0)
    logits[token] = 30.0
    model.lm_head.register_forward_hook(lambda _, __, output: logits.expand(output.shape))


def full_forward_logprobs(model, prompt, response, temperature):
    tokens = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits[0].double() / temperature
    logprobs = torch.log_softmax(logits, -1)
    return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(response)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_full_forward_without_a_cache_token_by_token(name, temperature):
    model = MODELS[name]()
    asked = requests()

    responses = generator(model).generate(asked, Sampling(temperature=temperature))

    worst = 0.0
    for request, response in zip(asked, responses, strict=True):
        wanted = full_forward_logprobs(model, request.token_ids, response.token_ids, temperature)
        worst = max([worst, *(abs(a - b) for a, b in zip(response.logprobs, wanted, strict=True))])
    assert worst < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_draws_do_not_depend_on_the_batch_or_its_order(name):
    model, asked = MODELS[name](), requests(20)
    sampling = Sampling(seed=4, iteration=2)

    together = generator(model).generate(asked, sampling)
    in_threes = generator(model, batch_size=3).generate(asked, sampling)
    backwards = generator(model, batch_size=7).generate(asked[::-1], sampling)[::-1]
    alone = [generator(model).generate([one], sampling)[0] for one in asked]

    ids = [one.token_ids for one in together]
    for other in (in_threes, backwards, alone):
        assert [one.token_ids for one in other] == ids


def test_a_later_turn_goes_on_in_the_stream_of_its_sequence():
    model = llama()
    prompt = [5, 6, 7]
    whole = generator(model, eos=()).generate(
        [Request(token_ids=prompt, index=3, max_new_tokens=8)], Sampling()
    )[0]
    start = [*prompt, *whole.token_ids[:5]]

    rest = generator(model, eos=()).generate(
        [Request(token_ids=start, index=3, position=5, max_new_tokens=3)], Sampling()
    )[0]

    assert rest.token_ids == whole.token_ids[5:]


def test_seed_and_iteration_change_the_draws_and_samples_differ():
    asked = [Request(token_ids=[5, 6], index=i, max_new_tokens=8) for i in range(8)]
    texts = {
        (seed, iteration): tuple(
            one.token_ids
            for one in generator(llama()).generate(asked, Sampling(seed=seed, iteration=iteration))
        )
        for seed in (0, 1)
        for iteration in (0, 1)
    }

    assert len(set(texts.values())) == 4
    assert len(set(texts[0, 0])) > 4


def test_greedy_takes_the_most_likely_token_of_each_step():
    model = llama()
    response = generator(model).generate(
        [Request(token_ids=[5, 6, 7], index=0, max_new_tokens=6)], Sampling(greedy=True)
    )[0]

    tokens = [5, 6, 7]
    for token in response.token_ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        assert token == int(logits.argmax())
        tokens.append(token)


def test_each_of_two_end_tokens_stops_and_is_part_of_the_response():
    model = llama()
    free = generator(model, eos=()).generate(requests(30), Sampling())
    first, second = 17, 23
    stopped = generator(model, eos=(first, second)).generate(requests(30), Sampling())

    seen = set()
    for long, cut in zip(free, stopped, strict=True):
        ends = [i for i, token in enumerate(long.token_ids) if token in (first, second)]
        length = ends[0] + 1 if ends else len(long.token_ids)
        assert cut.token_ids == long.token_ids[:length]
        assert cut.logprobs == pytest.approx(long.logprobs[:length], abs=1e-5)
        assert cut.finish_reason == ("stop" if ends else "length")
        seen.add(cut.token_ids[-1] if ends else None)
    assert seen == {first, second, None}


def test_every_row_may_end_at_its_first_token():
    model = llama()
    force(model, 2)
    responses = generator(model).generate(requests(), Sampling())

    assert {one.token_ids for one in responses} == {(2,)}
    assert {one.finish_reason for one in responses} == {"stop"}


def test_without_an_end_each_row_stops_at_its_own_limit():
    asked = requests()
    responses = generator(llama(), eos=()).generate(asked, Sampling())

    assert [len(one.token_ids) for one in responses] == [one.max_new_tokens for one in asked]
    assert {one.finish_reason for one in responses} == {"length"}


def test_the_first_end_token_counts_where_it_is_the_padding_token_too():
    model = llama()
    force(model, 0)
    responses = generator(model, eos=(0,), pad=0).generate(requests(), Sampling())

    assert {one.token_ids for one in responses} == {(0,)}
    assert {len(one.logprobs) for one in responses} == {1}


@pytest.mark.parametrize("name", MODELS)
def test_what_fills_the_padding_never_matters(name):
    model, asked = MODELS[name](), requests(16)

    zero = generator(model, pad=0).generate(asked, Sampling())
    other = generator(model, pad=41).generate(asked, Sampling())

    assert [one.token_ids for one in zero] == [one.token_ids for one in other]


def test_a_finished_row_does_not_run_past_the_positions_of_the_model():
    # The long prompt may add 2 tokens up to the model's last position; the short one goes on.
    asked = [
        Request(token_ids=[5] * 62, index=0, max_new_tokens=2),
        *(Request(token_ids=[6], index=i, max_new_tokens=30) for i in range(1, 20)),
    ]
    responses = generator(gpt2(), eos=()).generate(asked, Sampling())

    assert [len(one.token_ids) for one in responses] == [2] + [30] * 19


def test_the_settings_of_the_models_own_generation_change_nothing():
    model, asked = llama(), requests()
    wanted = generator(model).generate(asked, Sampling())
    model.generation_config.update(
        do_sample=False, top_k=1, repetition_penalty=5.0, min_length=30, eos_token_id=7
    )
    model.config.use_cache = False

    assert generator(model).generate(asked, Sampling()) == wanted


def test_gradient_checkpointing_is_off_inside_and_as_before_after():
    model, asked = llama(), requests()
    wanted = generator(model).generate(asked, Sampling())
    model.train()
    model.activation_checkpointing_enable()

    responses = generator(model).generate(asked, Sampling())

    assert responses == wanted
    assert model.is_activation_checkpointing


def test_gradient_checkpointing_is_restored_after_a_failure():
    model = llama()
    model.train()
    model.activation_checkpointing_enable()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))

    with pytest.raises(GenerationError, match="not finite for 12 of 12 prompts"):
        generator(model).generate(requests(), Sampling())

    assert model.is_activation_checkpointing


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_stay_and_the_module_still_trains(training):
    model = llama()
    model.train(training)
    before = torch.random.get_rng_state()

    generator(model).generate(requests(), Sampling())

    assert model.training is training
    assert torch.equal(torch.random.get_rng_state(), before)
    model(input_ids=torch.tensor([[5, 6]])).logits.sum().backward()
    assert all(one.grad is not None for one in model.parameters())


def test_loading_shared_weights_records_the_version_that_responses_carry():
    model = llama()
    writer = generator(model)
    assert writer.policy_version == 0

    writer.load_weights(model.named_parameters(), 5)

    assert writer.policy_version == 5
    assert {one.policy_version for one in writer.generate(requests(), Sampling())} == {5}


def test_loading_weights_of_another_model_is_refused():
    with pytest.raises(AssertionError, match="is not shared with the policy"):
        generator(llama()).load_weights(llama().named_parameters(), 1)


def test_no_requests_give_no_responses():
    assert generator(llama()).generate([], Sampling()) == []
