import inspect
import math

import pytest
import torch

from trainers.functional.advantages import GAE_CHUNK, gae

F64 = torch.float64


def oracle(given, gamma, gae_lambda):
    """Equation 16 as a sum: (gamma * lambda)^l delta_{t+l}, l up to the end of the episode."""
    columns = ("rewards", "values", "next_values", "terminated", "boundary")
    rewards, values, next_values, terminated, boundary = (given[name].tolist() for name in columns)
    advantages = torch.zeros(given["rewards"].shape, dtype=F64)
    for row, col in torch.cartesian_prod(*map(torch.arange, advantages.shape)).tolist():
        total = 0.0
        for step in range(col, advantages.shape[1]):
            future = 0.0 if terminated[row][step] else next_values[row][step]
            delta = rewards[row][step] + gamma * future - values[row][step]
            total += (gamma * gae_lambda) ** (step - col) * delta
            if boundary[row][step]:
                break
        advantages[row, col] = total
    return advantages


def case(rows, length, seed, *, dtype=F64):
    """Random figures; episodes end at random places, some by termination."""
    rng = torch.Generator().manual_seed(seed)
    rewards, values, next_values = torch.randn(3, rows, length, generator=rng, dtype=dtype)
    ends = torch.rand(rows, length, generator=rng)
    boundary = ends < min(0.3, 4 / length)
    boundary[:, -1] |= ends[:, -1] < 0.5
    terminated = boundary & (torch.rand(rows, length, generator=rng) < 0.5)
    return {
        "rewards": rewards,
        "values": values,
        "next_values": next_values,
        "terminated": terminated,
        "boundary": boundary,
    }


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
def test_gae_equals_the_sum_of_the_definition(gamma, gae_lambda, length):
    given = case(2, length, seed=length)

    advantages, returns = gae(**given, gamma=gamma, gae_lambda=gae_lambda)

    expected = oracle(given, gamma, gae_lambda)
    torch.testing.assert_close(advantages, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(returns, expected + given["values"], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [3, 64, 128, 200])
@pytest.mark.parametrize("boundaries", ["none", "every", "chunk edges"])
def test_gae_equals_the_sum_where_episodes_meet_the_chunks(length, boundaries):
    given = case(2, length, seed=7)
    chosen = torch.zeros(2, length, dtype=torch.bool)
    if boundaries == "every":
        chosen[:] = True
    elif boundaries == "chunk edges":
        chosen[0, GAE_CHUNK - 1 :: GAE_CHUNK] = True
        chosen[1, GAE_CHUNK::GAE_CHUNK] = True
    given |= {"boundary": chosen, "terminated": chosen & given["terminated"]}

    advantages, _ = gae(**given, gamma=0.99, gae_lambda=0.97)

    expected = oracle(given, 0.99, 0.97)
    torch.testing.assert_close(advantages, expected, rtol=1e-11, atol=1e-11)


def test_gae_in_float32_is_close_to_float64_over_a_long_row():
    given = case(2, 1000, seed=3)
    single = {name: value.float() if value.is_floating_point() else value
              for name, value in given.items()}  # fmt: skip

    advantages, _ = gae(**single, gamma=1.0, gae_lambda=0.95)

    assert advantages.dtype == torch.float32
    exact, _ = gae(**given, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(advantages.double(), exact, rtol=1e-4, atol=1e-4)


def test_lambda_one_is_monte_carlo():
    given = case(3, 90, seed=4)
    given["boundary"] = torch.zeros(3, 90, dtype=torch.bool)
    given["boundary"][:, -1] = True
    given["terminated"] = given["boundary"]
    given["next_values"] = given["values"].roll(-1, dims=1)

    _, returns = gae(**given, gamma=0.9, gae_lambda=1.0)

    discounts = torch.tensor([0.9**step for step in range(90)], dtype=F64)
    monte_carlo = torch.stack(
        [(given["rewards"][:, t:] * discounts[: 90 - t]).sum(1) for t in range(90)], dim=1
    )
    torch.testing.assert_close(returns, monte_carlo)


def test_lambda_zero_is_the_one_step_error():
    given = case(2, 70, seed=5)
    advantages, _ = gae(**given, gamma=0.9, gae_lambda=0.0)

    future = given["next_values"].masked_fill(given["terminated"], 0.0)
    torch.testing.assert_close(advantages, given["rewards"] + 0.9 * future - given["values"])


def test_gae_bootstraps_truncation_but_not_termination():
    row = {
        "rewards": torch.tensor([[1.0, 2.0]]),
        "values": torch.tensor([[0.5, 0.25]]),
        "next_values": torch.tensor([[0.25, 4.0]]),
        "boundary": torch.tensor([[False, True]]),
    }
    cut, _ = gae(**row, terminated=torch.tensor([[False, False]]), gamma=0.9, gae_lambda=0.8)
    ended, _ = gae(**row, terminated=torch.tensor([[False, True]]), gamma=0.9, gae_lambda=0.8)

    assert cut[0, 1] - ended[0, 1] == pytest.approx(0.9 * 4.0)
    assert ended[0, 1] == pytest.approx(2.0 - 0.25)
    assert ended[0, 0] == pytest.approx(1.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * 1.75)


def test_true_values_of_a_two_step_process_leave_no_error():
    # s0 -> s1 with reward 1, s1 -> end with reward 10: V(s1) = 10, V(s0) = 1 + 0.5 * 10.
    values = torch.tensor([[6.0, 10.0]])
    advantages, returns = gae(
        rewards=torch.tensor([[1.0, 10.0]]),
        values=values,
        next_values=torch.tensor([[10.0, 777.0]]),
        terminated=torch.tensor([[False, True]]),
        boundary=torch.tensor([[False, True]]),
        gamma=0.5,
        gae_lambda=0.95,
    )
    assert advantages.tolist() == [[0.0, 0.0]]
    assert torch.equal(returns, values)


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_what_stands_after_a_termination_is_not_read(poison):
    given = case(2, 80, seed=6)
    clean, _ = gae(**given, gamma=0.99, gae_lambda=0.95)
    given["next_values"] = given["next_values"].masked_fill(given["terminated"], poison)

    poisoned, _ = gae(**given, gamma=0.99, gae_lambda=0.95)

    assert torch.equal(clean, poisoned)


def test_nothing_crosses_a_boundary():
    given = case(1, 150, seed=8)
    given["boundary"] = torch.zeros(1, 150, dtype=torch.bool)
    given["boundary"][0, 99] = True
    before, _ = gae(**given, gamma=1.0, gae_lambda=1.0)
    given["rewards"] = given["rewards"].clone()
    given["rewards"][0, 100:] += 50.0

    after, _ = gae(**given, gamma=1.0, gae_lambda=1.0)

    assert torch.equal(before[:, :100], after[:, :100])
    assert (after[:, 100:] > before[:, 100:] + 49).all()


@pytest.mark.parametrize("name", ["values", "next_values", "terminated", "boundary"])
def test_a_shape_that_differs_is_named(name):
    # The tests' own check of shapes, where it is on, would speak first: hence the bare function.
    given = case(2, 5, seed=9)
    given[name] = given[name][:, :4]

    with pytest.raises(ValueError, match=rf"{name} must be \(2, 5\) like rewards, got \(2, 4\)"):
        inspect.unwrap(gae)(**given, gamma=1.0, gae_lambda=1.0)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_no_rows_and_no_actions_give_none(shape):
    given = case(3, 5, seed=10)
    given = {name: value[: shape[0], : shape[1]] for name, value in given.items()}

    assert gae(**given, gamma=1.0, gae_lambda=1.0)[0].shape == shape
