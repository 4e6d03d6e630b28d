"""Calibration against a slow oracle."""

import math

import pytest
import torch

from trainers.functional.calibration import NUM_BINS, calibration_error, reliability


def oracle(confidence, correct):
    """Sum the gaps of the bins, one judgement at a time."""
    bins = {}
    for sure, right in zip(confidence, correct, strict=True):
        bins.setdefault(min(int(sure * NUM_BINS), NUM_BINS - 1), []).append((sure, right))
    gaps = [abs(sum(s for s, _ in one) - sum(r for _, r in one)) for one in bins.values()]
    return sum(gaps) / len(confidence)


def test_the_error_equals_the_oracles():
    rng = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=rng, dtype=torch.float64)
    correct = (torch.rand(500, generator=rng) < 0.7).double()
    expected = oracle(confidence.tolist(), correct.tolist())
    assert calibration_error(reliability(confidence, correct)) == pytest.approx(expected, abs=1e-12)


def test_who_is_always_sure_and_right_is_calibrated_and_who_is_wrong_is_not():
    sure = torch.ones(4)
    assert calibration_error(reliability(sure, torch.ones(4))) == 0.0
    assert calibration_error(reliability(sure, torch.zeros(4))) == 1.0
    assert reliability(sure, torch.ones(4))[-1].tolist() == [4, 4, 4]


def test_parts_add_up_to_the_whole():
    confidence, correct = torch.tensor([0.11, 0.55, 0.58, 0.99]), torch.tensor([0.0, 1.0, 0.5, 1.0])
    parts = reliability(confidence[:1], correct[:1]) + reliability(confidence[1:], correct[1:])
    torch.testing.assert_close(parts, reliability(confidence, correct), rtol=0, atol=0)


def test_nothing_judged_is_no_figure():
    assert math.isnan(calibration_error(reliability(torch.zeros(0), torch.zeros(0))))
