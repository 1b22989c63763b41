"""Quotas from the providers' headers, over their real SDKs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from chatapp.providers import Message, Prompt, ProviderError, Quota, RawRequest, Timeouts
from chatapp.providers.anthropic import Anthropic
from chatapp.providers.offline import Offline
from chatapp.providers.openai import OpenAI
from tests.chatapp.provider_server import (
    ANTHROPIC_PATH,
    OPENAI_PATH,
    Answer,
    ProviderServer,
    Stream,
    anthropic_error,
    openai_error,
    success,
)


@dataclass(frozen=True)
class Case:
    """A provider, its headers, and the quotas in them."""

    make: type[OpenAI | Anthropic]
    path: str
    model: str
    headers: Mapping[str, str]
    told: tuple[Quota, ...]
    refusal: Answer
    query: Mapping[str, str]

    def passage(self, *, stream: bool) -> RawRequest:
        fields = {
            "model": self.model,
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "ping"}],
            "stream": stream,
        }
        return RawRequest(raw=json.dumps(fields).encode(), fields=fields, query=self.query)

    def prompt(self) -> Prompt:
        return Prompt(model=self.model, messages=(Message("user", "ping"),), max_tokens=9)

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
    # Long past, by whatever clock.
    "anthropic-ratelimit-requests-reset": "2015-10-21T07:28:00Z",
    "Anthropic-RateLimit-Input-Tokens-Limit": "50000",
    "Anthropic-RateLimit-Input-Tokens-Remaining": "48000",
    "Anthropic-RateLimit-Input-Tokens-Reset": "soon",
}
CASES = {
    "openai": Case(
        make=OpenAI,
        path=OPENAI_PATH,
        model="gpt-5.4-mini",
        headers=OPENAI_HEADERS,
        told=(Quota("requests", 60, 0, 1.0), Quota("tokens", 150_000, 149_984, 360.0)),
        refusal=openai_error(429, code="rate_limit_exceeded", headers=OPENAI_HEADERS),
        query={},
    ),
    "anthropic": Case(
        make=Anthropic,
        path=ANTHROPIC_PATH,
        model="claude-haiku-4-5",
        headers=ANTHROPIC_HEADERS,
        told=(Quota("requests", 50, 0, 0.0, 60), Quota("input_tokens", 50_000, 48_000, None, 60)),
        refusal=anthropic_error(429, kind="rate_limit_error", headers=ANTHROPIC_HEADERS),
        query={"beta": "true"},
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_whole_answers_bring_quotas(provider: ProviderServer, case: Case) -> None:
    """A prompt and a forwarded request both return the quotas."""
    provider.script(case.answer(stream=False), case.answer(stream=False))
    asked = case.make(Timeouts())
    completion = asked.complete(case.prompt())
    assert (completion.text, completion.quotas) == ("pong", case.told)
    assert asked.forward(case.passage(stream=False)).quotas == case.told


def test_streams_bring_quotas_with_their_beginning(provider: ProviderServer, case: Case) -> None:
    """A stream has them before its first part, and they do not change."""
    provider.script(case.answer(stream=True), case.answer(stream=True))
    asked = case.make(Timeouts())
    for stream in (asked.stream(case.prompt()), asked.forward_stream(case.passage(stream=True))):
        assert stream.quotas == case.told
        assert "".join(part.text for part in stream) == "pong"
        assert stream.quotas == case.told


def test_refusals_bring_quotas(provider: ProviderServer, case: Case) -> None:
    """The quotas of a 429 are on the error, for prompts and forwarded requests."""
    asked = case.make(Timeouts())
    for ask in (
        lambda: asked.complete(case.prompt()),
        lambda: asked.forward(case.passage(stream=False)),
        lambda: asked.stream(case.prompt()),
        lambda: asked.forward_stream(case.passage(stream=True)),
    ):
        provider.script(case.refusal)
        with pytest.raises(ProviderError) as refused:
            ask()
        assert (refused.value.kind, refused.value.quotas) == ("rate_limited", case.told)


def test_who_tells_nothing_has_no_quotas(provider: ProviderServer, case: Case) -> None:
    """An answer without such headers has no quotas."""
    asked = case.make(Timeouts())
    assert asked.complete(case.prompt()).quotas == ()
    assert asked.forward(case.passage(stream=False)).quotas == ()
    stream = asked.stream(case.prompt())
    assert stream.quotas == ()
    assert "".join(part.text for part in stream) == "pong"
    provider.script(Answer(500, b""))
    with pytest.raises(ProviderError) as failed:
        asked.complete(case.prompt())
    assert failed.value.quotas == ()


@pytest.mark.parametrize("odd", ["", "-1", "9" * 10_000, "inf", "nan", "1e999", "\xb2\xff", "\t"])
def test_odd_headers_cost_no_answer(provider: ProviderServer, case: Case, odd: str) -> None:
    """Invalid headers do not affect the answer."""
    headers = dict.fromkeys(case.headers, odd)
    provider.script(Answer(200, _body(case), headers), Answer(429, b"{}", headers))
    asked = case.make(Timeouts())
    completion = asked.complete(case.prompt())
    assert (completion.text, completion.quotas) == ("pong", ())
    with pytest.raises(ProviderError) as refused:
        asked.complete(case.prompt())
    assert (refused.value.kind, refused.value.quotas) == ("rate_limited", ())


def test_offline_there_are_no_quotas() -> None:
    """The offline provider has no quotas."""
    prompt = Prompt(model="offline", messages=(Message("user", "ping"),), max_tokens=9)
    assert Offline().complete(prompt).quotas == ()
    assert Offline().stream(prompt).quotas == ()


def _body(case: Case) -> Mapping[str, object] | bytes:
    plain = case.answer(stream=False)
    assert isinstance(plain, Answer)
    return plain.body
