import numpy as np
import pytest
import torch

from trainers.generation.base import Sampling
from trainers.generation.sampling import BLOCK, draw_tokens, mix, uniforms

WORD = 2**64 - 1
F64 = torch.float64


def sample(logits, u, sampling):
    return draw_tokens(logits, u, sampling).tokens


def splitmix(word: int) -> int:
    """The published finalizer, on Python's unbounded integers."""
    word = (word + 0x9E3779B97F4A7C15) & WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def test_mixing_equals_the_published_function_on_unbounded_integers():
    words = [0, 1, 2, 2**62, 2**63 - 1, -1, -(2**63), 123456789]

    mixed = mix(torch.tensor(words)).tolist()

    assert [one & WORD for one in mixed] == [splitmix(one & WORD) for one in words]


def test_the_first_output_of_splitmix_is_the_published_one():
    # Seed 0 of the reference implementation begins with this word.
    assert int(mix(torch.tensor(0))) & WORD == 0xE220A8397B1DCDAF


def test_uniforms_are_in_range_even_and_uncorrelated():
    u = uniforms(7, 3, torch.arange(400)[:, None], torch.arange(250)).numpy()

    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    chi_square = ((counts - u.size / 20) ** 2 / (u.size / 20)).sum()
    assert chi_square < 43.8  # 99.9 % of chi-square with 19 degrees of freedom
    for one, other in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015


def test_every_number_of_the_key_changes_the_draw():
    index, base = torch.tensor([5]), (1, 2, 3)
    values = {float(uniforms(*base[:2], index, base[2]))}
    values |= {float(uniforms(seed, 2, index, 3)) for seed in (2, -1, 2**40)}
    values |= {float(uniforms(1, iteration, index, 3)) for iteration in (1, 3)}
    values |= {float(uniforms(1, 2, torch.tensor([i]), 3)) for i in (2, 4, 6)}
    values |= {float(uniforms(1, 2, index, position)) for position in (2, 4, 5)}

    assert len(values) == 1 + 3 + 2 + 3 + 3


def test_swapping_the_numbers_of_the_key_gives_another_draw():
    one = uniforms(0, 1, torch.tensor([2]), 3)
    other = uniforms(1, 0, torch.tensor([3]), 2)

    assert float(one) != float(other)


def test_a_draw_does_not_depend_on_the_rows_beside_it():
    index = torch.arange(100)
    together = uniforms(0, 9, index, index * 3)

    alone = [float(uniforms(0, 9, one[None], int(one) * 3)) for one in index]

    assert together.tolist() == alone


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_tempered_softmax(temperature):
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -float("inf"), 0.5])
    n = 60000
    u = uniforms(0, 0, torch.arange(n), 0)

    drawn = sample(logits.expand(n, -1), u, Sampling(temperature=temperature))

    probs = np.exp(logits.double().numpy() / temperature)
    probs /= probs.sum()
    frequencies = np.bincount(drawn.numpy(), minlength=6) / n
    assert np.abs(frequencies - probs).max() < 4 * np.sqrt(0.25 / n)
    assert frequencies[4] == 0


def test_a_token_of_probability_zero_is_never_drawn_at_any_boundary():
    zero = -float("inf")
    logits = torch.tensor([zero, 0.0, zero, zero, 0.0, zero])
    boundaries = torch.tensor([0.0, 2**-52, 0.5 - 2**-53, 0.5, 0.5 + 2**-53, 1 - 2**-52], dtype=F64)

    drawn = sample(logits.expand(6, -1), boundaries, Sampling())

    assert drawn.tolist() == [1, 1, 1, 4, 4, 4]


@pytest.mark.parametrize("vocab", [3, 10, 1000, 50000])
def test_the_largest_uniform_stays_inside_the_vocabulary(vocab):
    torch.manual_seed(vocab)
    u = torch.full((8,), 1 - 2**-52, dtype=torch.float64)

    drawn = sample(torch.randn(8, vocab) * 5, u, Sampling())

    assert int(drawn.max()) < vocab


def test_the_inverse_of_the_distribution_function_is_as_computed_by_hand():
    logits = torch.tensor([0.2, 0.3, 0.5]).log()
    u = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51, 0.99], dtype=F64)

    assert sample(logits.expand(6, -1), u, Sampling()).tolist() == [0, 0, 1, 1, 2, 2]


def test_greedy_takes_the_most_likely_token_and_draws_nothing():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])

    drawn = sample(logits, torch.tensor([0.99, 0.99]).double(), Sampling(greedy=True))

    assert drawn.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("settings", "support"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {3, 1}),
        ({"top_p": 0.45}, {3}),
        ({"top_p": 0.55}, {3, 1}),
        ({"top_p": 0.8}, {3, 1, 0}),
        ({"top_p": 0.85, "top_k": 2}, {3, 1}),
    ],
)
def test_top_k_and_top_p_keep_the_most_likely_tokens(settings, support):
    logits = torch.tensor([0.15, 0.25, 0.1, 0.5]).log()  # sums by rank: .5 .75 .9 1
    u = (torch.arange(1000).double() + 0.5) / 1000

    drawn = sample(logits.expand(1000, -1), u, Sampling(**settings))

    assert set(drawn.tolist()) == support


@pytest.mark.parametrize("with_memory", [False, True])
def test_logprobs_are_those_of_the_tempered_distribution_in_float32(with_memory):
    torch.manual_seed(0)
    logits = torch.randn(5, 40, dtype=torch.bfloat16) * 4
    before = logits.clone()
    memory = torch.full((7, 40), float("nan")) if with_memory else None

    drawn = draw_tokens(logits, torch.rand(5, dtype=F64), Sampling(temperature=0.7), memory)

    wide = logits.double().numpy() / 0.7
    wanted = [
        row[t] - np.log(np.exp(row).sum())
        for row, t in zip(wide, drawn.tokens.tolist(), strict=True)
    ]
    assert drawn.logprobs.dtype == torch.float32
    np.testing.assert_allclose(drawn.logprobs.numpy(), wanted, atol=1e-5)
    assert torch.equal(logits, before)


def test_the_logprob_of_a_token_that_is_nearly_impossible_is_exact():
    logits = torch.tensor([[0.0, -95.0, -200.0]])  # e^-95 is no normal float32

    drawn = draw_tokens(logits, torch.tensor([1 - 2**-52], dtype=F64), Sampling())

    forced = draw_tokens(logits.flip(1), torch.zeros(1, dtype=F64), Sampling())
    assert drawn.tokens.tolist() == [0]
    assert forced.tokens.tolist() == [1]
    assert forced.logprobs.item() == pytest.approx(-95.0, abs=1e-4)


@pytest.mark.parametrize("vocab", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_a_draw_is_the_first_token_whose_cumulated_probability_exceeds_u(vocab):
    torch.manual_seed(vocab)
    logits = torch.randn(300, vocab) * 3
    logits[:, vocab // 3 : vocab // 2] = -float("inf")
    u = torch.rand(300, dtype=F64)

    drawn = draw_tokens(logits, u, Sampling())

    cumulated = np.cumsum(torch.softmax(logits, -1).double().numpy(), axis=1)
    wanted = [
        int(np.argmax(row > x * row[-1])) for row, x in zip(cumulated, u.tolist(), strict=True)
    ]
    assert drawn.tokens.tolist() == wanted


def test_a_draw_at_the_boundary_of_two_blocks_has_a_probability():
    probs = torch.zeros(1, 3 * BLOCK)
    probs[0, [5, BLOCK - 2, 2 * BLOCK + 3]] = torch.tensor([0.1, 0.2, 0.7])
    edge = float(probs.double().cumsum(1)[0, BLOCK - 1] / probs.double().sum())
    around = [edge * (1 + k * 2.0**-52) for k in range(-3, 4)]

    for u in around:
        token = draw_tokens(probs.log(), torch.tensor([u], dtype=F64), Sampling()).tokens
        assert int(token) in (BLOCK - 2, 2 * BLOCK + 3)


def test_the_support_is_not_narrowed_to_fifty_tokens():
    n = 5000
    u = uniforms(1, 0, torch.arange(n), 0)

    drawn = sample(torch.zeros(1, 200).expand(n, -1), u, Sampling())

    assert len(set(drawn.tolist())) == 200
