"""A cost is a whole number from 0 up, or an error that names the limit."""

import os
from decimal import Decimal

import pytest

from ratelimit_ext.core.charge import checked_cost, new_hold


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_no_two_workers_hold_under_one_id() -> None:
    """Workers are forked from one process, and the ids of each are its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        ids = [new_hold(1).id for _ in range(1000)]
        os.write(writing, b"".join(each.to_bytes(6, "little") for each in ids))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        sent = pipe.read()
    os.waitpid(child, 0)
    theirs = {int.from_bytes(sent[at : at + 6], "little") for at in range(0, len(sent), 6)}
    ours = {new_hold(1).id for _ in range(1000)}
    assert len(theirs) == len(ours) == 1000
    assert not theirs & ours
