"""Speculative decoding writes what the target alone writes: the same tokens, or their law."""

from itertools import pairwise, product

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from llmgym.speculative.observing import OBSERVATION_NAMES, DraftView
from tests.unit.trainers.generation.test_transformers_generator import generator, gpt2, llama
from trainers.errors import ConfigError
from trainers.generation import drafting
from trainers.generation.base import Request, Sampling
from trainers.generation.drafting import (
    RowDrawing,
    RowPair,
    RowReader,
    acceptance,
    controller_rule,
    entropy_rule,
    fixed_length,
    logit_features,
    residual,
)

ENDS = (2,)
GREEDY = Sampling(greedy=True)


def view(longest=4):
    return DraftView(longest=longest, draft_cost=0.1, verify_cost=1.2)


def scattered(seen):
    """A rule that looks at what was drafted, and stops anywhere."""
    return (seen.position + 3 * seen.depth + int(100 * sum(map(sum, seen.drafted)))) % 4 > 0


RULES = {
    "none": fixed_length(0),
    "one": fixed_length(1),
    "four": fixed_length(4),
    "entropy": entropy_rule(3.0),
    "scattered": scattered,
    "cycle": controller_rule(lambda obs: int(abs(obs).sum() * 10) % 5, "cycle"),
    "token": controller_rule(lambda obs: int(obs[OBSERVATION_NAMES.index("depth")] < 0.6), "token"),
}


def requests(count):
    return [
        Request(
            token_ids=[3 + (5 * i + j) % 50 for j in range(1 + i % 9)],
            index=i,
            position=i % 3,
            max_new_tokens=12 - i % 5,
        )
        for i in range(count)
    ]


def write(target, drafter, request, rule, sampling=GREEDY):
    pair = RowPair(
        target=RowReader(target),
        drafter=RowReader(drafter),
        rule=rule,
        ends=ENDS,
        drawing=RowDrawing(sampling, request),
        view=view(),
    )
    return pair.write(request)


@pytest.fixture(scope="module")
def models():
    target = llama().eval()
    torch.manual_seed(5)
    drafter = llama().eval()  # nearly the target: some drafts are right
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return target, drafter


@pytest.mark.parametrize("rule", RULES)
def test_greedy_text_is_the_targets_own_whatever_is_drafted(models, rule):
    rows = requests(30)
    plain = generator(models[0]).generate(rows, GREEDY)
    for request, expected in zip(rows, plain, strict=True):
        done = write(*models, request, RULES[rule])
        assert tuple(done.token_ids) == expected.token_ids
        assert done.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert done.kept <= done.drafts


def test_some_drafts_are_kept_and_some_are_not(models):
    done = [write(*models, request, fixed_length(4)) for request in requests(30)]
    kept, drafts = (sum(getattr(row, name) for row in done) for name in ("kept", "drafts"))
    assert 0.1 * drafts < kept < 0.9 * drafts


def test_a_drafter_that_is_the_target_is_always_kept(models):
    target, _ = models
    for request in requests(10):
        for sampling in (GREEDY, Sampling(seed=3)):
            done = write(target, target, request, fixed_length(4), sampling)
            assert done.kept in (done.drafts, done.drafts - 1), "an end cuts what follows"
            assert done.cycles <= -(-request.max_new_tokens // 5) + 1


def test_without_drafts_the_row_is_what_the_exact_engine_draws(models):
    rows, sampling = requests(20), Sampling(seed=7, iteration=2, temperature=1.0)
    plain = generator(models[0]).generate(rows, sampling)
    for request, expected in zip(rows, plain, strict=True):
        done = write(*models, request, fixed_length(0), sampling)
        assert tuple(done.token_ids) == expected.token_ids
        assert done.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_log_probabilities_are_the_targets(models, rule):
    target, _ = models
    request, sampling = requests(9)[8], Sampling(seed=1, temperature=0.7)
    done = write(*models, request, RULES[rule], sampling)
    row = torch.tensor([[*request.token_ids, *done.token_ids]])
    table = (target(row).logits[0].detach().double() / 0.7).log_softmax(-1)
    begin = len(request.token_ids) - 1
    expected = [float(table[begin + i, token]) for i, token in enumerate(done.token_ids)]
    assert done.logprobs == pytest.approx(expected, abs=1e-4)


def test_another_family_drafts_with_its_own_cache():
    target, drafter = llama().eval(), gpt2().eval()
    rows = requests(6)
    plain = generator(target).generate(rows, GREEDY)
    for request, expected in zip(rows, plain, strict=True):
        done = write(target, drafter, request, fixed_length(3))
        assert tuple(done.token_ids) == expected.token_ids


class Table:
    """Reads rows as a Markov chain: logits [V, V] by the last token."""

    def __init__(self, logits):
        self.logits, self.length = logits, 0

    def read(self, row):
        new, self.length = row[self.length :], len(row)
        return self.logits[list(new)]

    def keep(self, length):
        self.length = min(self.length, length)


class Branches:
    """Takes one branch at each draw, and knows its probability."""

    def __init__(self, script):
        self.script, self.taken, self.options, self.weight = script, 0, [], 1.0

    def choose(self, weights):
        choice = self.script[self.taken] if self.taken < len(self.script) else 0
        self.taken += 1
        self.options.append(len(weights))
        self.weight *= weights[choice]
        return choice

    def probabilities(self, logits):
        return torch.softmax(logits.double(), -1)

    def token(self, logits, position, stream=0):
        return self.choose(self.probabilities(logits).tolist()), 0.0

    def keeps(self, token, p, q, position):
        kept = acceptance(p, q, token)
        return self.choose([kept, 1 - kept]) == 0

    def redrawn(self, p, q, position):
        rest = residual(p, q)
        return self.choose((rest / rest.sum()).tolist())

    def logprob(self, token, logits):
        return float(torch.log_softmax(logits.double(), -1)[token])


def law(target, drafter, rule, new=3):
    """The probability of every response, by trying every branch."""
    found, script = {}, []
    while True:
        draws = Branches(script)
        pair = RowPair(
            target=Table(target),
            drafter=Table(drafter),
            rule=rule,
            ends=(0,),
            drawing=draws,
            view=view(2),
        )
        ids = tuple(pair.write(Request(token_ids=[1], index=0, max_new_tokens=new)).token_ids)
        found[ids] = found.get(ids, 0.0) + draws.weight
        script = script[: draws.taken] + [0] * (draws.taken - len(script))
        while script and script[-1] + 1 == draws.options[len(script) - 1]:
            script.pop()
        if not script:
            return found
        script[-1] += 1


def own_law(target, new=3):
    """The probability of every response of the target alone."""
    table, found = torch.softmax(target.double(), -1), {}
    for ids in product(range(len(target)), repeat=new):
        end = ids.index(0) + 1 if 0 in ids else new
        row, weight = (1, *ids[:end]), 1.0
        for before, token in pairwise(row):
            weight *= float(table[before, token])
        found[ids[:end]] = weight
    return found


def tables(seed):
    rng = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(3, 3, generator=rng) for _ in range(2)]


def same(one, other):
    return one.keys() >= other.keys() and all(
        one[ids] == pytest.approx(other.get(ids, 0.0), abs=1e-12) for ids in one
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", ["none", "one", "four", "entropy", "scattered"])
def test_the_law_of_every_response_is_the_targets_own(seed, rule):
    target, drafter = tables(seed)
    assert same(own_law(target), law(target, drafter, RULES[rule]))


def test_a_drafter_that_proposes_nothing_likely_does_no_harm():
    target = torch.tensor([[0.0, 0.0, -50.0]] * 3)
    drafter = torch.tensor([[-50.0, -50.0, 0.0]] * 3)
    assert same(own_law(target), law(target, drafter, fixed_length(2)))


def test_a_draft_that_is_thrown_away_unverified_would_change_the_law(monkeypatch):
    """Stopping may depend on what was drafted; dropping what was seen may not."""
    draft = RowPair._draft

    def dropping(self, row, most, position):
        drafts, guesses = draft(self, row, most, position)
        return (drafts[:-1], guesses[:-1]) if drafts and drafts[-1] == 0 else (drafts, guesses)

    monkeypatch.setattr(RowPair, "_draft", dropping)
    target, drafter = tables(0)
    assert not same(own_law(target), law(target, drafter, fixed_length(2)))


@pytest.mark.slow
def test_drawn_tokens_have_the_targets_frequencies():
    """Chi-square of 100,000 first tokens behind a draft, vocabulary of 8."""
    rng = torch.Generator().manual_seed(0)
    target, drafter = (1.5 * torch.randn(8, 8, generator=rng) for _ in range(2))
    counts, number = torch.zeros(8, dtype=torch.float64), 100_000
    for index in range(number):
        request = Request(token_ids=[1], index=index, max_new_tokens=2)
        pair = RowPair(
            target=Table(target),
            drafter=Table(drafter),
            rule=fixed_length(1),
            ends=(),
            drawing=RowDrawing(Sampling(seed=11), request),
            view=view(1),
        )
        counts[pair.write(request).token_ids[0]] += 1
    due = number * torch.softmax(target[1].double(), -1)
    statistic = ((counts - due) ** 2 / due).sum()
    chance = torch.special.gammaincc(torch.tensor(3.5, dtype=torch.float64), statistic / 2)
    assert chance > 1e-3


def test_uniforms_of_one_position_do_not_repeat_each_other():
    request = Request(token_ids=[1], index=4, max_new_tokens=9)
    drawing = RowDrawing(Sampling(seed=1), request)
    streams = (0, drafting.DRAFT, drafting.ACCEPT, drafting.REDRAW)
    drawn = [float(drawing._uniform(p, stream)) for p in range(50) for stream in streams]
    assert len(set(drawn)) == 200


def test_features_are_those_of_the_distribution():
    best, entropy, margin = logit_features(torch.tensor([0.0, 1.0, 3.0]).log().clamp(min=-1e9))
    assert best == pytest.approx(torch.tensor(0.75).log().item())
    assert entropy == pytest.approx(0.5623351446)
    assert margin == pytest.approx(torch.tensor(3.0).log().item())


def test_a_model_that_cannot_forget_is_refused():
    config = MistralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=8,
    )
    with pytest.raises(ConfigError, match="cannot be taken back"):
        RowReader(MistralForCausalLM(config))


def test_a_narrowed_distribution_is_refused():
    with pytest.raises(ConfigError, match="top_p and top_k"):
        RowDrawing(Sampling(top_p=0.9), requests(1)[0])
