"""Quotas in the providers' headers: valid and invalid ones, and over the real SDKs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from chatapp.catalogue import Model
from chatapp.upstreams import Quota, RawRequest, Turn, UpstreamError, anthropic, openai
from chatapp.upstreams.offline import Offline
from tests.chatapp.conftest import upstream
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    OPENAI_PATH,
    Answer,
    Stream,
    UpstreamServer,
    anthropic_error,
    openai_error,
    success,
)

# A clock of the provider that differs from the local one.
DATE = {"date": "Wed, 21 Oct 2015 07:28:00 GMT"}


def gpt(unit: str, limit: str, remaining: str, reset: str | None = None) -> dict[str, str]:
    figures = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{k}-{unit}": v for k, v in figures.items() if v is not None}


def claude(unit: str, limit: str, remaining: str, reset: str | None = None) -> dict[str, str]:
    figures = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-{unit}-{k}": v for k, v in figures.items() if v is not None}


def unreadable(*texts: str | None) -> list[tuple[str | None, None]]:
    """Rows of a table: texts from which nothing is read."""
    return [(text, None) for text in texts]


# -- figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "remaining", "known"),
    [
        ("60", "60", (60, 60)),
        ("60", "0", (60, 0)),
        ("60", "61", (60, 60)),
        ("50", "1000", (50, 50)),  # rounded to the nearest thousand
        (" 60 ", "059", (60, 59)),
        ("1000000000000", "1", (10**12, 1)),
        ("1000000000001", "1", None),
        *[("60", wrong, None) for wrong in ("1" * 10_000, "-1", "", "nan", "5²", "\udc80")],
        *[(wrong, "59", None) for wrong in ("6e1", "60.0", "6_0", "0x60", "inf", "1e999", "٦٠")],
        *[(wrong, "59", None) for wrong in ("６０", "60\0", "{}")],
        *[(both, both, None) for both in ("-1", "0")],
        *[("1" * 10_000, "1", None), ("", "60", None), ("60, 60", "59, 59", None)],
        ("60", "59\udc80", None),
    ],
)
@pytest.mark.parametrize(
    ("quotas", "headers", "period_s"),
    [(openai.quotas, gpt, None), (anthropic.quotas, claude, 60)],
    ids=["openai", "anthropic"],
)
def test_a_quota_has_two_valid_figures(
    quotas: Callable[[Mapping[str, str]], tuple[Quota, ...]],
    headers: Callable[..., dict[str, str]],
    period_s: int | None,
    limit: str,
    remaining: str,
    known: tuple[int, int] | None,
) -> None:
    """An invalid quota is left out, and the others stay."""
    found = quotas(headers("requests", limit, remaining) | headers("tokens", "9", "8"))
    expected = [Quota("requests", *known, None, period_s)] if known else []
    assert found == (*expected, Quota("tokens", 9, 8, None, period_s))


# -- OpenAI ------------------------------------------------------------------------------------


def test_openais_requests_and_tokens_are_read() -> None:
    """The examples of OpenAI's documentation are parsed into units and seconds."""
    headers = gpt("requests", "60", "59", "1s") | gpt("tokens", "150000", "149984", "6m0s")
    assert openai.quotas(headers) == (
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
    headers = gpt("tokens", *organisation) | gpt("project-tokens", *project)
    assert openai.quotas(headers) == (both,)


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
        *unreadable("999999999h", "-1s", "1e3s", "1e999", "inf", "nan", "s", "", "soon", "1s\0"),
        *unreadable("١s", "\udc80", "1s" * 5_000, "1" * 10_000, "2026-10-21T07:28:00Z", None),
    ],
)
def test_openais_reset_is_a_duration(reset: str | None, seconds: float | None) -> None:
    """An invalid reset leaves limit and remaining valid."""
    [quota] = openai.quotas(gpt("requests", "60", "59", reset))
    assert quota == Quota("requests", 60, 59, quota.reset_after_s)
    assert quota.reset_after_s == (None if seconds is None else pytest.approx(seconds))


def test_no_headers_are_no_quotas() -> None:
    """Absent or incomplete headers are no quota."""
    assert openai.quotas({}) == ()
    incomplete = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-tokens": "5"}
    assert openai.quotas(incomplete) == ()


# -- Anthropic ---------------------------------------------------------------------------------


def test_anthropics_units_are_read() -> None:
    """Requests and tokens of both directions, with the time until each is full."""
    headers = (
        DATE
        | claude("requests", "50", "49", "2015-10-21T07:28:01Z")
        | claude("input-tokens", "50000", "48000", "2015-10-21T07:28:30Z")
        | claude("output-tokens", "10000", "10000", "2015-10-21T07:28:00Z")
    )
    assert anthropic.quotas(headers) == (
        Quota("requests", 50, 49, 1.0, 60),
        Quota("input_tokens", 50_000, 48_000, 30.0, 60),
        Quota("output_tokens", 10_000, 10_000, 0.0, 60),
    )


@pytest.mark.parametrize("part", ["input-tokens", "output-tokens"])
def test_tokens_of_a_direction_replace_all_tokens(part: str) -> None:
    """The same tokens are reported once."""
    [quota] = anthropic.quotas(claude("tokens", "60", "58") | claude(part, "50", "48"))
    assert quota.unit == part.replace("-", "_")


def test_all_tokens_are_used_without_a_valid_direction() -> None:
    """Without the parts, their sum or the most restrictive one is reported."""
    odd = claude("input-tokens", "-1", "0") | claude("output-tokens", "many", "5")
    assert anthropic.quotas(claude("tokens", "60", "58") | odd) == (
        Quota("tokens", 60, 58, None, 60),
    )


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("2015-10-21T07:29:00Z", 60.0),
        ("2015-10-21T07:28:00.250Z", 0.25),
        ("2015-10-21T07:28:00.123456789Z", 0.123456),
        ("2015-10-21T09:28:02+02:00", 2.0),
        ("2015-10-21T07:28:03", 3.0),  # UTC without a zone
        ("2015-10-21T07:27:59Z", 0.0),
        ("0001-01-01T00:00:00+23:59", 0.0),
        *unreadable("9999-12-31T23:59:59-23:59", "2015-10-21T07:28:99Z"),
        *unreadable("2015-10-21T07:28:00+99:00", "２０15-10-21T07:29:00Z", "60", "60s", "inf"),
        *unreadable("nan", "1e999", "", "soon", "2015-10-21T07:29:00Z\0"),
        *unreadable("2015-10-21\udc8007:29:00Z", "2" * 10_000, None),
    ],
)
def test_anthropics_reset_is_an_instant(reset: str | None, seconds: float | None) -> None:
    """A reset is relative to the answer's date; an invalid one leaves limit and remaining valid."""
    assert anthropic.quotas(DATE | claude("requests", "50", "49", reset)) == (
        Quota("requests", 50, 49, seconds, 60),
    )


@pytest.mark.parametrize(
    "date",
    [
        *(None, "", "today", "Wed, 99 Oct 2015 07:28:00 GMT", "\udc80\0" * 5_000),
        "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
    ],
)
def test_without_a_date_the_local_clock_counts(date: str | None) -> None:
    """Also if the date cannot be read."""
    sent = {} if date is None else {"date": date}
    reset = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    [quota] = anthropic.quotas(sent | claude("requests", "50", "49", reset))
    assert quota.reset_after_s is not None
    assert 20 < quota.reset_after_s <= 30


# -- over the SDKs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An upstream, its headers, and the quotas in them."""

    upstream: str
    path: str
    model: str
    headers: Mapping[str, str]
    quotas: tuple[Quota, ...]
    refusal: Answer
    query: Mapping[str, str]

    def raw_request(self, *, stream: bool) -> RawRequest:
        fields = {
            "model": self.model,
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "ping"}],
            "stream": stream,
        }
        return RawRequest(raw=json.dumps(fields).encode(), fields=fields, query=self.query)

    def turn(self) -> tuple[Turn, int]:
        return Turn("ping", Model(self.model, self.model, self.upstream)), 9

    def answer(self, *, stream: bool) -> Answer | Stream:
        """A plain success with the headers."""
        plain = success(self.path, {"model": self.model, "stream": stream})
        if isinstance(plain, Stream):
            return Stream(plain.pieces, self.headers)
        return Answer(plain.status, plain.body, self.headers)


OPENAI_HEADERS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "1s",
    "X-RateLimit-Limit-Tokens": "150000",
    "X-RateLimit-Remaining-Tokens": "149984",
    "X-RateLimit-Reset-Tokens": "6m0s",
}
ANTHROPIC_HEADERS = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "0",
    # In the past by any clock.
    "anthropic-ratelimit-requests-reset": "2015-10-21T07:28:00Z",
    "Anthropic-RateLimit-Input-Tokens-Limit": "50000",
    "Anthropic-RateLimit-Input-Tokens-Remaining": "48000",
    "Anthropic-RateLimit-Input-Tokens-Reset": "soon",
}
CASES = {
    "openai": Case(
        upstream="openai",
        path=OPENAI_PATH,
        model="gpt-5.4-mini",
        headers=OPENAI_HEADERS,
        quotas=(Quota("requests", 60, 0, 1.0), Quota("tokens", 150_000, 149_984, 360.0)),
        refusal=openai_error(429, code="rate_limit_exceeded", headers=OPENAI_HEADERS),
        query={},
    ),
    "anthropic": Case(
        upstream="anthropic",
        path=ANTHROPIC_PATH,
        model="claude-haiku-4-5",
        headers=ANTHROPIC_HEADERS,
        quotas=(Quota("requests", 50, 0, 0.0, 60), Quota("input_tokens", 50_000, 48_000, None, 60)),
        refusal=anthropic_error(429, kind="rate_limit_error", headers=ANTHROPIC_HEADERS),
        query={"beta": "true"},
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_whole_answers_have_quotas(provider: UpstreamServer, case: Case) -> None:
    """A turn and a forwarded request both return the quotas."""
    provider.script(case.answer(stream=False), case.answer(stream=False))
    asked = upstream(case.upstream)
    completion = asked.complete(*case.turn())
    assert (completion.text, completion.quotas) == ("pong", case.quotas)
    assert asked.forward(case.raw_request(stream=False)).quotas == case.quotas


def test_streams_have_quotas_from_their_beginning(provider: UpstreamServer, case: Case) -> None:
    """A stream has them before its first part, and they do not change."""
    provider.script(case.answer(stream=True), case.answer(stream=True))
    asked = upstream(case.upstream)
    for stream in (asked.stream(*case.turn()), asked.forward_stream(case.raw_request(stream=True))):
        assert stream.quotas == case.quotas
        assert "".join(part.text for part in stream) == "pong"
        assert stream.quotas == case.quotas


def test_refusals_have_quotas(provider: UpstreamServer, case: Case) -> None:
    """The quotas of a 429 are on the error, for turns and forwarded requests."""
    asked = upstream(case.upstream)
    for ask in (
        lambda: asked.complete(*case.turn()),
        lambda: asked.forward(case.raw_request(stream=False)),
        lambda: asked.stream(*case.turn()),
        lambda: asked.forward_stream(case.raw_request(stream=True)),
    ):
        provider.script(case.refusal)
        with pytest.raises(UpstreamError) as refused:
            ask()
        assert (refused.value.kind, refused.value.quotas) == ("rate_limited", case.quotas)


def test_answers_without_headers_have_no_quotas(provider: UpstreamServer, case: Case) -> None:
    """Neither turns and forwarded requests, nor streams and failures."""
    asked = upstream(case.upstream)
    assert asked.complete(*case.turn()).quotas == ()
    assert asked.forward(case.raw_request(stream=False)).quotas == ()
    stream = asked.stream(*case.turn())
    assert stream.quotas == ()
    assert "".join(part.text for part in stream) == "pong"
    provider.script(Answer(500, b""))
    with pytest.raises(UpstreamError) as failed:
        asked.complete(*case.turn())
    assert failed.value.quotas == ()


@pytest.mark.parametrize("odd", ["", "-1", "9" * 10_000, "inf", "nan", "1e999", "\xb2\xff", "\t"])
def test_invalid_headers_fail_no_answer(provider: UpstreamServer, case: Case, odd: str) -> None:
    """They give no quotas, and a refusal keeps its kind."""
    headers = dict.fromkeys(case.headers, odd)
    provider.script(Answer(200, _body(case), headers), Answer(429, b"{}", headers))
    asked = upstream(case.upstream)
    completion = asked.complete(*case.turn())
    assert (completion.text, completion.quotas) == ("pong", ())
    with pytest.raises(UpstreamError) as refused:
        asked.complete(*case.turn())
    assert (refused.value.kind, refused.value.quotas) == ("rate_limited", ())


def test_offline_there_are_no_quotas() -> None:
    """Of a plain answer or a stream."""
    turn = Turn("ping", Model("offline", "offline", "offline"))
    assert Offline().complete(turn, 9).quotas == ()
    assert Offline().stream(turn, 9).quotas == ()


def _body(case: Case) -> Mapping[str, object] | bytes:
    plain = case.answer(stream=False)
    assert isinstance(plain, Answer)
    return plain.body
