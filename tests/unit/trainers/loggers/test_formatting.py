"""Figures as they are printed."""

from trainers.loggers.formatting import rounded_number


def test_figures_have_three_digits_that_matter():
    assert [rounded_number(one) for one in (0.12345, 1234.5, -0.5, 2e9)] == [
        "0.123",
        "1234",
        "-0.5",
        "2e+09",
    ]
