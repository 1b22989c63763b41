"""The error of estimates, as metrics read it."""

from __future__ import annotations

import pytest

from chatapp.estimates.accuracy import RATIO_BOUNDS, Accuracy, Ratios


def test_ratios_are_counted() -> None:
    """Count, mean and buckets tell how calls compared with their estimates."""
    accuracy = Accuracy()
    for actual in (50, 100, 150, 1_000):
        accuracy.observe("gpt-4o", "output", estimated=100, actual=actual)
    ratios = accuracy.snapshot()["gpt-4o", "output"]
    assert ratios.count == 4
    assert ratios.mean == pytest.approx((0.5 + 1 + 1.5 + 10) / 4)
    counted = dict(zip((*RATIO_BOUNDS, float("inf")), ratios.buckets, strict=True))
    assert {bound for bound, count in counted.items() if count} == {0.5, 1.0, 1.5, float("inf")}


def test_nothing_estimated_is_no_division() -> None:
    """An estimate or a usage of nothing, or less, is counted all the same."""
    accuracy = Accuracy()
    assert accuracy.observe("offline", "input", estimated=0, actual=5) == 5
    assert accuracy.observe("offline", "input", estimated=10, actual=-5) == 0


def test_nothing_observed_has_no_mean() -> None:
    """A model without calls does not break a metric."""
    assert Ratios().mean == 0
    assert Accuracy().snapshot() == {}
