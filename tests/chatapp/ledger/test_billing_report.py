"""How the reports of providers are read: pages, keys, projects, and what goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from chatapp.catalogue.usage import Usage
from chatapp.ledger import billing_report
from chatapp.ledger.billing_report import ADDRESSES, NO_MODEL, REPORTS, ReportError, read, variable
from tests.chatapp.ledger.biller import SECRET, Biller, reporting

START = datetime(2026, 11, 1, tzinfo=UTC)
END = datetime(2026, 11, 30, tzinfo=UTC)
SLUGS = {"openai": "gpt-5.4-mini", "anthropic": "claude-haiku-4-5"}
USAGE = Usage(1000, 200, 600, 100)


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> Biller:
    """With pages of two days."""
    return Biller(request.param, page_days=2)


@pytest.fixture
def source(provider: Biller, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The provider's name, with another address and a key."""
    monkeypatch.setenv(variable(provider.name), SECRET)
    with reporting(provider) as address:
        monkeypatch.setitem(ADDRESSES, provider.name, f"{address}/v1/organization")
        yield provider.name


class Line(NamedTuple):
    day: str
    key: str | None
    model: str
    usage: Usage
    micro_usd: int


def lines(source: str, **of: Any) -> list[Line]:
    return [Line(*line) for line in read(source, START, END, **of)]


def test_all_pages_are_read(provider: Biller, source: str) -> None:
    """Each day is asked for once, by model and key, with the provider's own names and units."""
    usd = Decimal()
    for day in (0, 1, 5, 28):
        at = START + timedelta(days=day)
        usd += provider.bill(SLUGS[provider.name], USAGE, at, searches=2)
    provider.bill(SLUGS[provider.name], USAGE, END)  # no day of these
    found = lines(source)
    assert {line.day for line in found} == {"2026-11-01", "2026-11-02", "2026-11-06", "2026-11-29"}
    assert sum(line.micro_usd for line in found) == pytest.approx(usd * 1_000_000)
    used = [line for line in found if line.usage.input_tokens]
    assert [line.usage for line in used] == [USAGE] * 4
    assert {line.key for line in used} == {"key_ours"}
    dated = {line.model for line in found} - {NO_MODEL}
    assert len(dated) == 1
    assert next(iter(dated)).startswith(SLUGS[provider.name])
    assert sum(line.micro_usd for line in found if line.model == NO_MODEL) == 4 * 20_000
    paths = list(dict.fromkeys(path for path, _, _ in provider.requests))
    assert paths == [f"/v1/organization/{path}" for path in REPORTS[source]]
    assert len(provider.requests) == 15 * len(paths)
    for path, query, headers in provider.requests:
        groups, _ = REPORTS[source][path.removeprefix("/v1/organization/")]
        assert query["group_by[]"] == list(groups)
        assert query["bucket_width"] == ["1d"]
        sent = {name.lower(): value for name, value in headers.items()}
        if provider.name == "openai":
            assert sent["authorization"] == f"Bearer {SECRET}"
            assert query["start_time"] == ["1793491200"]
        else:
            assert (sent["x-api-key"], sent["anthropic-version"]) == (SECRET, "2023-06-01")
            assert query["ending_at"] == ["2026-11-30T00:00:00Z"]


def test_an_end_in_the_future_is_now(provider: Biller, source: str) -> None:
    """A provider might refuse it."""
    began = datetime.now(UTC).replace(microsecond=0)
    list(read(source, began, began + timedelta(days=1)))
    for _, query, _ in provider.requests:
        if provider.name == "openai":
            at = datetime.fromtimestamp(int(query["end_time"][0]), UTC)
        else:
            at = datetime.fromisoformat(query["ending_at"][0])
        assert began <= at <= datetime.now(UTC)


def test_one_project(provider: Biller, source: str) -> None:
    """Of each report; what has no project is the default one's."""
    provider.projects = {"key_a": "proj_1", "key_b": "proj_2"}
    slug = SLUGS[provider.name]
    costs = {key: provider.bill(slug, USAGE, START, key=key) for key in ("key_a", "key_b", "key_c")}
    for key, project in (("key_b", "proj_2"), ("key_c", "default")):
        found = lines(source, project=project)
        assert {line.key for line in found if line.usage.output_tokens} == {key}
        assert sum(line.micro_usd for line in found) == pytest.approx(costs[key] * 1_000_000)


@pytest.mark.parametrize(
    ("item", "model"),
    [
        ("gpt-5.4-mini-2026-03-17, input", "gpt-5.4-mini-2026-03-17"),
        ("priority | gpt-6.2-sol, output, long context", "gpt-6.2-sol"),
        ("gpt-audio-mini-2025-12-15 audio, input", "gpt-audio-mini-2025-12-15"),
        ("gpt-4o", "gpt-4o"),
        ("web search tool calls", NO_MODEL),
        ("", NO_MODEL),
        (None, NO_MODEL),
    ],
)
def test_items_of_openai(item: str | None, model: str) -> None:
    """Their models."""
    _, amounts = REPORTS["openai"]["costs"]
    row = {"line_item": item, "amount": {"value": Decimal("0.1308"), "currency": "usd"}}
    assert amounts(row) == (model, Usage(0, 0), 130_800)


@pytest.mark.parametrize(
    ("status", "garbage", "sentence"),
    [
        (401, b"", "cannot be read with {variable}: Client error '401"),
        (403, b"", "cannot be read with {variable}: Client error '403"),
        (429, b"", "Client error '429"),
        (503, b"", "Server error '503"),
        (302, b"", "'302"),
        (200, b"<html>", "cannot be read"),
        (200, b"[]", "cannot be read"),
        (200, b'{"data": [{"results": [{}]}], "has_more": false}', "cannot be read"),
        (200, b'{"data": [{"start_time": 1%030d, "results": [{}]}]}' % 0, "cannot be read"),
        (200, b'{"data": [], "has_more": true, "next_page": "x"}', "too many pages"),
    ],
)
def test_a_report_that_cannot_be_read(
    provider: Biller,
    source: str,
    status: int,
    garbage: bytes,
    sentence: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error says why. Neither it, nor a log, nor a representation has the key."""
    provider.status, provider.garbage = status, garbage
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ReportError) as failed:
        lines(source)
    assert sentence.format(variable=variable(source)) in str(failed.value)
    assert SECRET not in f"{failed.value!r} {failed.value.__cause__!r} {caplog.text}"
    assert len(provider.requests) <= billing_report.MOST_PAGES


def test_an_address_that_does_not_answer(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has it."""
    monkeypatch.setitem(ADDRESSES, source, "http://127.0.0.1:1")
    with pytest.raises(ReportError, match=r"cannot be read with .* refused"):
        lines(source)


def test_without_a_key(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which one to set, or either if neither is."""
    monkeypatch.delenv(variable(source))
    either = " or ".join(map(variable, ADDRESSES))
    with pytest.raises(ReportError, match=f"^Set {either} to an admin key"):
        lines(source)
    [other] = ADDRESSES.keys() - {source}
    monkeypatch.setenv(variable(other), SECRET)
    with pytest.raises(ReportError, match=f"^Set {variable(source)} to an admin key"):
        lines(source)
