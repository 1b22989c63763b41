"""Anthropic's quotas in valid and invalid headers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from chatapp.providers import Quota
from chatapp.providers.anthropic import quotas

# A clock that is not ours.
DATE = {"date": "Wed, 21 Oct 2015 07:28:00 GMT"}


def told(what: str, limit: str, remaining: str, reset: str | None = None) -> dict[str, str]:
    """The headers of one quota."""
    figures = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-{what}-{k}": v for k, v in figures.items() if v is not None}


def test_every_unit_is_read() -> None:
    """Requests and tokens of both directions, with the time until each is full."""
    headers = (
        DATE
        | told("requests", "50", "49", "2015-10-21T07:28:01Z")
        | told("input-tokens", "50000", "48000", "2015-10-21T07:28:30Z")
        | told("output-tokens", "10000", "10000", "2015-10-21T07:28:00Z")
    )
    assert quotas(headers) == (
        Quota("requests", 50, 49, 1.0, 60),
        Quota("input_tokens", 50_000, 48_000, 30.0, 60),
        Quota("output_tokens", 10_000, 10_000, 0.0, 60),
    )


@pytest.mark.parametrize("part", ["input-tokens", "output-tokens"])
def test_tokens_of_a_direction_stand_for_all_tokens(part: str) -> None:
    """The same tokens are reported once."""
    [quota] = quotas(told("tokens", "60", "58") | told(part, "50", "48"))
    assert quota.unit == part.replace("-", "_")


def test_tokens_are_told_where_no_direction_is() -> None:
    """Without the parts, their sum or the most restrictive one is reported."""
    odd = told("input-tokens", "-1", "0") | told("output-tokens", "many", "5")
    assert quotas(told("tokens", "60", "58") | odd) == (Quota("tokens", 60, 58, None, 60),)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("2015-10-21T07:29:00Z", 60.0),
        ("2015-10-21T07:28:00.250Z", 0.25),
        ("2015-10-21T07:28:00.123456789Z", 0.123456),
        ("2015-10-21T09:28:02+02:00", 2.0),
        ("2015-10-21T07:28:03", 3.0),  # no zone: theirs is UTC
        ("2015-10-21T07:27:59Z", 0.0),
        ("0001-01-01T00:00:00+23:59", 0.0),
        ("9999-12-31T23:59:59-23:59", None),
        ("2015-10-21T07:28:99Z", None),
        ("2015-10-21T07:28:00+99:00", None),
        ("２０15-10-21T07:29:00Z", None),
        ("60", None),
        ("60s", None),
        ("inf", None),
        ("nan", None),
        ("1e999", None),
        ("", None),
        ("soon", None),
        ("2015-10-21T07:29:00Z\0", None),
        ("2015-10-21\udc8007:29:00Z", None),
        ("2" * 10_000, None),
        (None, None),
    ],
)
def test_a_reset_is_an_instant_or_unknown(reset: str | None, seconds: float | None) -> None:
    """A reset is relative to the answer's date; an invalid one leaves limit and remaining valid."""
    assert quotas(DATE | told("requests", "50", "49", reset)) == (
        Quota("requests", 50, 49, seconds, 60),
    )


@pytest.mark.parametrize(
    "date",
    [
        {},
        {"date": ""},
        {"date": "today"},
        {"date": "Wed, 99 Oct 2015 07:28:00 GMT"},
        {"date": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"},
        {"date": "\udc80\0" * 5_000},
    ],
)
def test_without_a_date_our_clock_counts(date: dict[str, str]) -> None:
    """Without a valid date, a reset is relative to our clock."""
    reset = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    [quota] = quotas(date | told("requests", "50", "49", reset))
    assert quota.reset_after_s is not None
    assert 20 < quota.reset_after_s <= 30


@pytest.mark.parametrize(
    ("limit", "remaining", "known"),
    [
        ("50", "0", (50, 0)),
        ("50", "1000", (50, 50)),  # rounded to the nearest thousand
        ("1000000000001", "1", None),
        ("-1", "-1", None),
        ("0", "0", None),
        ("50", "-1", None),
        ("50", "", None),
        ("50", "nan", None),
        ("inf", "49", None),
        ("1e999", "49", None),
        ("٥٠", "49", None),
        ("50\0", "49", None),
        ("50", "\udc80", None),
        ("5" * 10_000, "49", None),
    ],
)
def test_a_quota_is_two_figures_or_unknown(
    limit: str, remaining: str, known: tuple[int, int] | None
) -> None:
    """An invalid quota is left out, and the others stay."""
    headers = told("requests", limit, remaining) | told("tokens", "9", "8")
    expected = [Quota("requests", *known, None, 60)] if known else []
    assert quotas(headers) == (*expected, Quota("tokens", 9, 8, None, 60))
