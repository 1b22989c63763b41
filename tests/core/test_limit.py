"""A limit refuses, when it is made, what no strategy could carry out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import (
    LONGEST_PERIOD_US,
    MOST_AMOUNT,
    Limit,
    LimitKeywords,
    LimitOptions,
)

MINUTE = 60_000_000


def test_signatures_have_the_keywords_of_a_limit() -> None:
    """With their types; the core's limit has a field for each."""
    assert get_type_hints(LimitKeywords) == get_type_hints(LimitOptions)
    # A session's idle time is the limit's period.
    words = {each.name for each in fields(LimitOptions)} - {"idle"}
    assert words < {each.name for each in fields(Limit)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"amount": -1}, "amount is -1; a whole number from 0"),
        ({"amount": -5}, "amount is -5"),
        ({"amount": 1.5}, "amount is 1.5"),
        ({"amount": True}, "amount is True"),
        ({"amount": MOST_AMOUNT + 1}, f"to {MOST_AMOUNT} is allowed"),
        ({"period_us": 0}, "period_us is 0"),
        ({"period_us": LONGEST_PERIOD_US + 1}, f"to {LONGEST_PERIOD_US} is allowed"),
        ({"strategy": "token-bucket", "burst": 0}, "burst is 0"),
        ({"burst": 3}, "only 'token-bucket' has a burst"),
        ({"unit": "bananas"}, "unit is 'bananas'; allowed: 'requests'"),
        (
            {"strategy": "block", "unit": "tokens"},
            "unit is 'tokens'; the strategy 'block' counts 'requests'.",
        ),
        ({"strategy": "reported", "unit": "usd"}, "unit is 'usd'; the strategy 'reported' counts"),
        ({"unit": "calls"}, "Write '4 in flight'."),
        ({"strategy": "surge"}, "needs a multiple. Write '1 usd/hour or 20 x usual'."),
        ({"strategy": "leaky"}, "unknown strategy 'leaky'; known: block"),
        ({"mode": "off"}, "mode is 'off'; allowed: 'enforce', 'shadow'"),
        ({"anchor": "year"}, "anchor is 'year'; allowed: 'day', 'week', 'month'"),
        ({"strategy": "sliding-window", "anchor": "day"}, "only 'fixed-window' has an anchor"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(words: dict[str, Any], message: str) -> None:
    """The error names the word, what was found, and what is allowed."""
    with pytest.raises(ConfigurationError) as refusal:
        Limit(**{"amount": 5, "period_us": MINUTE, **words})
    assert message in str(refusal.value)


def test_the_capacity_is_the_burst_or_the_amount() -> None:
    """The largest cost that can ever pass."""
    assert Limit(30, MINUTE).capacity == 30
    assert Limit(30, MINUTE, "token-bucket", burst=10).capacity == 10
    assert Limit(30, MINUTE, "token-bucket", burst=100).capacity == 100


def test_a_limit_says_what_it_is() -> None:
    """As a message names it."""
    assert str(Limit(30, MINUTE, name="plan")) == "plan: 30 per 60 s"
    assert str(Limit(1, 1500)) == "1 per 0.0015 s"
    assert str(Limit(5_000_000, MINUTE, unit="usd")) == "5 usd per 60 s"
    assert str(Limit(4, MINUTE, "concurrency", unit="calls")) == "4 in flight"
    assert str(Limit(MOST_AMOUNT, MINUTE, "reported", name="quota")) == "quota: as reported"
