"""OpenAI's quotas in valid and invalid headers."""

from __future__ import annotations

import pytest

from chatapp.providers import Quota
from chatapp.providers.openai import quotas


def told(what: str, limit: str, remaining: str, reset: str | None = None) -> dict[str, str]:
    """The headers of one quota."""
    figures = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{k}-{what}": v for k, v in figures.items() if v is not None}


def test_requests_and_tokens_are_read() -> None:
    """The examples of OpenAI's documentation are parsed into units and seconds."""
    headers = told("requests", "60", "59", "1s") | told("tokens", "150000", "149984", "6m0s")
    assert quotas(headers) == (
        Quota("requests", 60, 59, 1.0),
        Quota("tokens", 150_000, 149_984, 360.0),
    )


@pytest.mark.parametrize(
    ("organisation", "project", "both"),
    [
        (("900", "800", "1s"), ("100", "90", "2s"), Quota("tokens", 100, 90, 2.0)),
        (("100", "9", "1s"), ("50", "40", "2s"), Quota("tokens", 50, 9, 2.0)),
        (("900", "40", "1s"), ("50", "45", "2s"), Quota("tokens", 50, 40, 2.0)),
        (("-1", "-1"), ("50", "40", "2s"), Quota("tokens", 50, 40, 2.0)),
        (("100", "9", "1s"), ("50", "many", "2s"), Quota("tokens", 100, 9, 1.0)),
    ],
)
def test_two_quotas_of_tokens_are_one(
    organisation: tuple[str, ...], project: tuple[str, ...], both: Quota
) -> None:
    """The organisation's and the project's: the smaller amount, whichever has less left; or the one
    that can be read."""
    headers = told("tokens", *organisation) | told("project-tokens", *project)
    assert quotas(headers) == (both,)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1.0),
        ("0s", 0.0),
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("7.66s", 7.66),
        ("1m33.792s", 93.792),
        ("2m", 120.0),
        (" 20 ", 20.0),
        ("0.5", 0.5),
        ("24h0m0s", 86_400.0),
        ("1790000000", None),  # a Unix time
        ("999999999h", None),
        ("-1s", None),
        ("1e3s", None),
        ("1e999", None),
        ("inf", None),
        ("nan", None),
        ("s", None),
        ("", None),
        ("soon", None),
        ("1s\0", None),
        ("١s", None),
        ("\udc80", None),
        ("1s" * 5_000, None),
        ("1" * 10_000, None),
        ("2026-10-21T07:28:00Z", None),
        (None, None),
    ],
)
def test_a_reset_is_a_duration_or_unknown(reset: str | None, seconds: float | None) -> None:
    """An invalid reset leaves limit and remaining valid."""
    [quota] = quotas(told("requests", "60", "59", reset))
    assert quota == Quota("requests", 60, 59, quota.reset_after_s)
    assert quota.reset_after_s == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("limit", "remaining", "known"),
    [
        ("60", "60", (60, 60)),
        ("60", "0", (60, 0)),
        ("60", "61", (60, 60)),
        (" 60 ", "059", (60, 59)),
        ("1000000000000", "1", (10**12, 1)),
        ("1000000000001", "1", None),
        ("60", "1" * 10_000, None),
        ("1" * 10_000, "1", None),
        ("-1", "-1", None),
        ("0", "0", None),
        ("60", "-1", None),
        ("60", "", None),
        ("", "60", None),
        ("60, 60", "59, 59", None),
        ("6e1", "59", None),
        ("60.0", "59", None),
        ("6_0", "59", None),
        ("0x60", "59", None),
        ("inf", "59", None),
        ("60", "nan", None),
        ("1e999", "59", None),
        ("٦٠", "59", None),
        ("６０", "59", None),
        ("60", "5²", None),
        ("60\0", "59", None),
        ("60", "59\udc80", None),
        ("{}", "59", None),
    ],
)
def test_a_quota_is_two_figures_or_unknown(
    limit: str, remaining: str, known: tuple[int, int] | None
) -> None:
    """An invalid quota is left out, and the others stay."""
    headers = told("requests", limit, remaining) | told("tokens", "9", "8")
    expected = [Quota("requests", *known, None)] if known else []
    assert quotas(headers) == (*expected, Quota("tokens", 9, 8, None))


def test_no_headers_are_no_quotas() -> None:
    """Absent or incomplete headers are no quota."""
    assert quotas({}) == ()
    assert quotas({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-tokens": "5"}) == ()
