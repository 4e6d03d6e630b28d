import inspect
import math

import pytest

from trainers.functional.schedules import rate_factor


@pytest.mark.parametrize(
    ("schedule", "closed_form"),
    [
        ("constant", lambda _: 1.0),
        ("linear", lambda progress: 1.0 - progress),
        ("cosine", lambda progress: (1.0 + math.cos(math.pi * progress)) / 2),
    ],
)
def test_without_warm_up_the_factor_is_its_closed_form(schedule, closed_form):
    for progress in (0.0, 0.1, 0.5, 0.99):
        assert rate_factor(progress, schedule) == pytest.approx(closed_form(progress))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_warm_up_rises_linearly_to_the_peak(schedule):
    factors = [rate_factor(progress, schedule, warmup=0.2) for progress in (0.0, 0.05, 0.1, 0.2)]
    assert factors == pytest.approx([0.0, 0.25, 0.5, 1.0])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_warm_up_the_course_spans_what_is_left(schedule):
    middle = rate_factor(0.6, schedule, warmup=0.2)
    assert middle == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_factor_ends_at_the_floor(schedule):
    assert rate_factor(1.0, schedule, floor=0.1) == pytest.approx(0.1)
    assert rate_factor(0.5, schedule, floor=0.1) == pytest.approx(0.55)
    assert rate_factor(1.0, "constant", floor=0.1) == 1.0


def test_a_run_that_is_all_warm_up_never_divides_by_zero():
    factors = [rate_factor(progress, "linear", warmup=1.0) for progress in (0.0, 0.5, 0.99, 1.0)]
    assert factors == pytest.approx([0.0, 0.5, 0.99, 0.0])


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(KeyError):
        inspect.unwrap(rate_factor)(0.5, "square")
