"""Limit strings: those of `limits`, money, and calls in flight."""

from __future__ import annotations

import pytest

from ratelimit_ext import ConfigurationError
from ratelimit_ext.web.item import PLAIN, limit_of
from ratelimit_ext.web.limit_string import items_of


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("30/minute", [(30, 60, "requests", "fixed-window", "30 per 1 minute")]),
        ("5 usd/day", [(5_000_000, 86400, "usd", "fixed-window", "5 usd per 1 day")]),
        ("0.50 USD per 2 hours", [(500_000, 7200, "usd", "fixed-window", "0.5 usd per 2 hour")]),
        ("0.0000001 usd/day", [(1, 86400, "usd", "fixed-window", "0.000001 usd per 1 day")]),
        ("4 in flight", [(4, 1, "calls", "concurrency", "4 in flight")]),
        (
            "1 usd/hour; 5 usd/day",
            [
                (1_000_000, 3600, "usd", "fixed-window", "1 usd per 1 hour"),
                (5_000_000, 86400, "usd", "fixed-window", "5 usd per 1 day"),
            ],
        ),
    ],
)
def test_what_a_string_states(text: str, stated: list[tuple[int, int, str, str, str]]) -> None:
    """Amount, period, unit and strategy, and how it is shown to a person."""
    items = items_of(text, PLAIN)
    limits = [limit_of(item, "fixed-window") for item in items]
    assert [
        (limit.amount, limit.period_us // 1_000_000, limit.unit, limit.strategy, str(item))
        for limit, item in zip(limits, items, strict=True)
    ] == stated


@pytest.mark.parametrize(
    "text", ["usd/day", "-5 usd/day", "5 usd", "5 usd/fortnight", "in flight", "2.5 in flight"]
)
def test_what_is_no_limit(text: str) -> None:
    """Half a limit is refused, not guessed."""
    with pytest.raises(ValueError, match=r"."):
        items_of(text, PLAIN)


def test_a_unit_that_contradicts_the_string() -> None:
    """Dollars are not tokens."""
    with pytest.raises(ValueError, match="'5 usd/day' is in usd, and its unit 'tokens'"):
        items_of("5 usd/day", PLAIN._replace(unit="tokens"))


def test_calls_in_flight_have_their_own_words() -> None:
    """A rate cannot be a concurrency: the message says how to write it."""
    (item,) = items_of("4/minute", PLAIN._replace(strategy="concurrency"))
    with pytest.raises(ConfigurationError, match="Write 'N in flight'"):
        limit_of(item, "fixed-window")
