"""The lease that an application configures."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ratelimit_ext import ConfigurationError
from ratelimit_ext.web.reservation import DEFAULT_LEASE_S, LEASE, lease_s
from tests.web.conftest import Maker


@pytest.mark.parametrize(
    "found", [-5, 0, math.nan, math.inf, 86_401, 10**400, "abc", "", None, True, [1]], ids=repr
)
def test_what_is_no_lease_stops_the_start(make: Maker, found: Any) -> None:
    """A negative one has switched limits on calls in flight off."""
    with pytest.raises(ConfigurationError, match=rf"{LEASE}: found .*; allowed: a number of sec"):
        make(config={LEASE: found})


@pytest.mark.parametrize(("found", "lease"), [(0.5, 0.5), (86_400, 86_400), ("90", 90)])
def test_a_lease_is_a_number_of_seconds(found: Any, lease: float) -> None:
    """As a number, or as an environment has it."""
    assert lease_s({LEASE: found}) == lease


def test_without_one_there_is_a_default() -> None:
    """Without configuration."""
    assert lease_s({}) == DEFAULT_LEASE_S
