"""PPO on two ranks with unequal rows, against one process with all of them.

One launch runs every scenario; the tests read what came of it.
"""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tests import tiny
from tests.distributed.ranks import run_ranks
from trainers.batch import Metrics
from trainers.errors import NonFiniteError
from trainers.functional.ppo_metrics import describe
from trainers.learner import evaluated
from trainers.ppo import learn, make_experience, minibatches, update

ROWS = [[6, 0, 3], [1, 2, 4, 5, 7]]
"""The rows of each rank: unequal in number, in tokens and, under a small budget, in passes."""
RATES = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2}
MODES = {
    "token": {},
    "sequence": {"loss_aggregation": "sequence"},
    "constant": {"loss_aggregation": "constant"},
    "shared": {"critic": "shared", "entropy_coef": 0.2},
    "no critic": {"critic": "none"},
    "small budget": {"tokens": 12},
    "shared, small budget": {"critic": "shared", "tokens": 12, "critic_reads_logprobs": True},
    "every term": {
        "tokens": 30,
        "entropy_coef": 0.2,
        "kl_placement": "loss",
        "kl_loss_coef": 0.5,
        "mismatch_correction": "tis",
    },
}


def mine(made):
    """This rank's rows; all of them when alone."""
    rows = ROWS[dist.get_rank()] if dist.is_initialized() else range(8)
    return made.rows(torch.tensor(list(rows)))


def my_rollout():
    """This rank's part of the ragged rollout."""
    made = tiny.rollout()
    rows = torch.tensor(ROWS[dist.get_rank()] if dist.is_initialized() else [*range(8)])
    names = made.__dataclass_fields__
    columns = {
        name: value[rows]
        for name in names
        if isinstance(value := getattr(made, name), torch.Tensor)
    }
    return replace(made, inputs=made.inputs.rows(rows), **columns)


def prepared():
    """Whitened advantages by sequence index, and their description."""
    experience = make_experience(my_rollout(), tiny.settings().ppo)
    rows = dict(zip(experience.index.tolist(), experience.advantages, strict=True))
    return rows, describe(experience)


def updated(**options):
    """The gradient of an update and its metrics."""
    config = tiny.settings(**options)
    learner = tiny.learner(config)
    found = tiny.gradients_of(learner, mine(tiny.experience()), config)
    return found, update(learner, mine(tiny.experience()), config).values()


def lonely():
    """A minibatch that lies on one rank alone."""
    config = tiny.settings()
    row = torch.tensor([2])
    made = tiny.experience()
    rows = mine(made)
    return tiny.gradients_of(
        tiny.learner(config), rows.rows(torch.where(rows.index == row)[0]), config
    )


def learned(**options):
    """Epochs of minibatches, most of which leave a rank without a row."""
    config = tiny.settings(num_minibatches=8, num_epochs=2, target_kl=None, **RATES, **options)
    learner = tiny.learner(config)
    metrics = learn(learner, mine(tiny.experience()), config, iteration=0)
    return metrics.values(), tiny.weights(learner), learner.policy_version


def memberships():
    """The sequence indices of this rank in each minibatch."""
    made = mine(tiny.experience())
    config = tiny.settings(num_minibatches=4)
    return [made.index[rows].tolist() for rows in minibatches(made, config, 3, 1)]


def strayed(target):
    """Epochs run when the rows of rank 1 alone are far from the policy, and the KL seen."""
    config = tiny.settings(target_kl=target, learning_rate=0.0, critic_learning_rate=0.0)
    learner = tiny.learner(config)
    made = mine(tiny.on_policy(learner, tiny.experience()))
    if dist.get_rank() == 1:
        gap = 0.5 * made.response_mask.float()
        made = replace(made, old_logprobs=made.old_logprobs - gap)
    metrics = learn(learner, made, config, iteration=0).values()
    return metrics["policy/epochs"], metrics["policy/approxkl_avg"]


def broken(where):
    """What is raised when one rank alone has a number that is not finite; weights before, after."""
    config = tiny.settings(**RATES)
    learner = tiny.learner(config)
    before = tiny.weights(learner)
    made = mine(tiny.experience())
    bad = dist.get_rank() == 1
    if where == "returns" and bad:
        made = replace(made, returns=made.returns + torch.nan)
    if where == "gradient" and bad:
        head = learner.policy_module.model.lm_head.weight
        head.register_hook(lambda gradient: gradient * torch.nan)
    said = ""
    try:
        update(learner, made, config)
    except NonFiniteError as error:
        said = str(error)
    return said, before, tiny.weights(learner)


def warmed():
    """A step of the critic alone, then one of both."""
    config = tiny.settings(tokens=12, **RATES)
    learner = tiny.learner(config)
    update(learner, mine(tiny.experience()), config, critic_only=True)
    update(learner, mine(tiny.experience()), config)
    return tiny.weights(learner)


def passes():
    """How often each rank runs the model to score unequal numbers of rows."""
    made = mine(tiny.experience())
    calls = []

    def run(micro, rows):
        calls.append(len(rows))
        return micro.actions * 1.0

    scored = evaluated(made.inputs, run, budget=12, packed_up_to=0.0, device=tiny.CPU)
    real = made.response_mask
    return len(calls), torch.equal(scored[real], made.inputs.actions[real] * 1.0)


def started():
    """The weights of learners that began differently."""
    return tiny.weights(tiny.learner(tiny.settings(), seed=dist.get_rank()))


def scenarios():
    """Everything above, on this rank."""
    return {
        "prepared": prepared(),
        "updated": {mode: updated(**options) for mode, options in MODES.items()},
        "lonely": lonely(),
        "learned": learned(),
        "memberships": memberships(),
        "strayed": {target: strayed(target) for target in (0.01, 1.0)},
        "broken": {where: broken(where) for where in ("returns", "gradient")},
        "warmed": warmed(),
        "passes": passes(),
        "started": started(),
    }


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(scenarios, timeout=240)


def equal_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_with_unequal_rows_have_the_gradient_of_one(ranks, mode):
    alone, _ = updated(**MODES[mode])
    (one, _), (other, _) = (rank["updated"][mode] for rank in ranks)

    assert equal_bits(one, other)
    assert tiny.difference(alone, one) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_metrics_do_not_depend_on_the_ranks(ranks, mode):
    _, alone = updated(**MODES[mode])
    (_, one), (_, other) = (rank["updated"][mode] for rank in ranks)

    assert one == other
    assert one == pytest.approx(alone, rel=1e-5, abs=1e-6)


def test_whitening_and_its_description_do_not_depend_on_the_ranks(ranks):
    rows, figures = prepared()
    (one, seen), (other, also) = (rank["prepared"] for rank in ranks)

    assert seen == also
    assert isinstance(seen, Metrics)
    assert seen.values() == pytest.approx(figures.values(), rel=1e-5, abs=1e-6)
    assert (one | other).keys() == rows.keys()
    for index, advantages in (one | other).items():
        torch.testing.assert_close(advantages, rows[index], rtol=1e-6, atol=1e-6)


def test_the_members_of_a_minibatch_do_not_depend_on_the_ranks(ranks):
    one, other = (rank["memberships"] for rank in ranks)
    assert [sorted(a + b) for a, b in zip(one, other, strict=True)] == [
        sorted(rows) for rows in memberships()
    ]


def test_a_minibatch_that_lies_on_one_rank_has_its_gradient_on_both(ranks):
    one, other = (rank["lonely"] for rank in ranks)

    assert equal_bits(one, other)
    assert tiny.difference(lonely(), one) < 1e-6


def test_ranks_without_rows_keep_in_step_and_learn_the_same(ranks):
    (one, weights, version), (other, also, _) = (rank["learned"] for rank in ranks)
    alone, expected, _ = learned()

    assert one == other
    assert version == 16
    assert equal_bits(weights, also)
    assert one["loss/total"] == pytest.approx(alone["loss/total"], rel=1e-3)
    assert tiny.difference(expected, weights) < 1e-3


def test_a_target_crossed_on_one_rank_alone_is_judged_by_all(ranks):
    for target, epochs in ((0.01, 1), (1.0, 4)):
        one, other = (rank["strayed"][target] for rank in ranks)
        assert one == other
        assert one[0] == epochs
        assert 0.01 < one[1] < 0.2, "rank 0 is at 0, rank 1 above the mean"


@pytest.mark.parametrize(
    ("where", "said"), [("returns", "loss/value_avg"), ("gradient", "lm_head")]
)
def test_a_number_that_is_not_finite_on_one_rank_stops_both_before_a_weight_moves(
    ranks, where, said
):
    for rank in ranks:
        message, before, after = rank["broken"][where]
        assert "not finite" in message
        assert said in message
        assert equal_bits(before, after)


def test_a_warm_up_of_the_critic_leaves_the_ranks_in_step(ranks):
    one, other = (rank["warmed"] for rank in ranks)

    assert equal_bits(one, other)
    assert tiny.difference(warmed(), one) < 1e-3


def test_every_rank_runs_the_model_equally_often_however_many_rows_it_has(ranks):
    (one, right), (other, also) = (rank["passes"] for rank in ranks)

    assert one == other == 5, "rank 0 has work for 3"
    assert right
    assert also


def test_every_rank_begins_with_the_weights_of_the_first(ranks):
    one, other = (rank["started"] for rank in ranks)
    assert equal_bits(one, other)
    assert equal_bits(one, tiny.weights(tiny.learner(tiny.settings(), seed=0)))
