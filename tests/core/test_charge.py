"""A cost is a whole number from 0 up, or an error that names the limit."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ratelimit_ext.core.charge import checked_cost


@pytest.mark.parametrize("cost", [-1, -0.5, 1.5, float("nan"), float("inf"), "3", None, True, b"1"])
def test_what_is_no_cost_names_the_limit(cost: object) -> None:
    """Negative, fractional, NaN, infinite or not a number: a ValueError with limit and value."""
    with pytest.raises(ValueError, match="5 per 1 minute") as refusal:
        checked_cost(cost, "5 per 1 minute")
    assert repr(cost) in str(refusal.value)


@pytest.mark.parametrize(("cost", "units"), [(0, 0), (3, 3), (3.0, 3), (10**30, 10**30)])
def test_whole_numbers_pass(cost: object, units: int) -> None:
    """A float that is whole is one; so is a number that no limit could hold."""
    assert checked_cost(cost, "x") == units


def test_a_decimal_is_no_cost() -> None:
    """Money is counted in millionths, as integers; a Decimal would hide which unit is meant."""
    with pytest.raises(ValueError, match="whole number"):
        checked_cost(Decimal(3), "x")
