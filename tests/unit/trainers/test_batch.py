import pytest
import torch

from tests import tiny
from trainers.batch import ControlInputs, Metrics


def control(rows=3, steps=4, *, actions=()):
    return ControlInputs(
        obs=tiny.noise((rows, steps, 2), 1), actions=tiny.noise((rows, steps, *actions), 2)
    )


def test_actions_of_text_stand_after_the_prompt():
    inputs = tiny.text((2, 1), (1, 2))
    assert torch.equal(inputs.actions, inputs.tokens[:, 2:])
    assert inputs.sizes.tolist() == [[2, 1], [1, 2]]


def test_an_empty_response_still_takes_a_column():
    inputs = tiny.text((2, 1), (0, 0))
    assert inputs.sizes.tolist() == [[2, 1], [1, 1]]
    assert inputs.window() == (0, 0)


@pytest.mark.parametrize("spare", [(0, 0), (3, 0), (0, 2), (3, 2)])
def test_trimming_removes_the_columns_that_no_row_needs_and_nothing_else(spare):
    inputs = tiny.text((2, 1), (1, 3), spare=spare)

    assert inputs.window() == spare
    trimmed, exact = inputs.narrowed(*spare), tiny.text((2, 1), (1, 3))
    assert trimmed.num_prompt == 2
    assert torch.equal(trimmed.attention_mask, exact.attention_mask)
    real = exact.attention_mask
    assert torch.equal(trimmed.tokens[real], exact.tokens[real])


def test_a_trimmed_experience_keeps_every_figure_of_every_action():
    made = tiny.experience()
    short = made.rows(torch.tensor([0, 2, 7])).trimmed()

    assert short.response_mask.shape == (3, 2)
    assert short.inputs.tokens.shape == (3, 7)
    for name, column in made.columns().items():
        assert torch.equal(short.columns()[name], column[[0, 2, 7], :2]), name
    assert short.index.tolist() == [0, 2, 7]


def test_a_blank_row_has_one_prompt_and_one_response_token_and_no_action():
    blank = tiny.experience().blank().trimmed()

    assert len(blank) == 1
    assert blank.inputs.tokens.tolist() == [[0, 0]]
    assert blank.inputs.attention_mask.all()
    assert not blank.response_mask.any()
    assert not any(column.any() for column in blank.columns().values())


def test_a_blank_row_comes_of_no_rows_as_well():
    none = tiny.experience().rows(torch.zeros(0, dtype=torch.long))
    assert len(none) == 0
    assert len(none.blank()) == 1


@pytest.mark.parametrize("actions", [(), (2,)])
def test_steps_of_an_environment_become_rows_in_order(actions):
    inputs = control(actions=actions)
    shape = (3, 4)
    columns = dict.fromkeys(("old_logprobs", "old_values", "advantages", "returns"))
    made = tiny.experience(
        inputs=inputs,
        response_mask=torch.ones(shape, dtype=torch.bool),
        ref_logprobs=None,
        generator_logprobs=None,
        index=torch.tensor([4, 5, 9]),
        **{name: tiny.noise(shape, seed) for seed, name in enumerate(columns)},
    )

    flat = made.flat()

    assert len(flat) == 12
    assert flat.index.tolist() == [*range(16, 24), *range(36, 40)]
    assert torch.equal(flat.inputs.obs[5, 0], inputs.obs[1, 1])
    assert torch.equal(flat.inputs.actions[5, 0], inputs.actions[1, 1])
    assert float(flat.advantages[5, 0]) == float(made.advantages[1, 1])
    assert len(flat.trimmed()) == 12
    assert flat.blank().inputs.obs.shape == (1, 1, 2)


def test_metrics_divide_once_at_the_end():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, torch.nan]])
    parts = [Metrics.masked({"a": values[row : row + 1]}, mask[row : row + 1]) for row in (0, 1)]

    assert (parts[0] + parts[1]).values() == {"a": 4.0}


def test_what_was_counted_for_nothing_is_left_out():
    nothing = Metrics.masked({"a": torch.tensor([[torch.nan]])}, torch.tensor([[False]]))

    assert nothing.values() == {}
    assert (nothing + Metrics.scalars({"a": 3.0})).values() == {"a": 3.0}


def test_extremes_are_kept_over_all_that_was_seen_whatever_the_names():
    one = Metrics(maxima={"high": 1.0, "only": 5.0}, minima={"low": -1.0})
    other = Metrics(maxima={"high": 2.0}, minima={"low": 0.0})

    assert (one + other).values() == {"high": 2.0, "only": 5.0, "low": -1.0}
    assert (other + one).values() == (one + other).values()


def test_joining_two_sets_of_metrics_takes_the_right_one():
    joined = Metrics.scalars({"a": 1.0, "b": 1.0}) | Metrics.scalars({"b": 2.0})
    assert joined.values() == {"a": 1.0, "b": 2.0}
