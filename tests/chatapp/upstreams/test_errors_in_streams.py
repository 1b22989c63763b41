"""Errors of a provider within a stream that began successfully."""

from __future__ import annotations

import pytest

from chatapp.catalogue import Model
from chatapp.upstreams import ErrorKind, RawRequest, Turn, UpstreamError
from chatapp.upstreams.sdk import SDKUpstream
from tests.chatapp.conftest import upstream
from tests.chatapp.upstream_server import (
    Stream,
    UpstreamServer,
    anthropic_events,
    event,
    named,
    openai_chunks,
)

OPENAI_ERRORS: list[tuple[object, ErrorKind]] = [
    ({"message": "no", "type": "tokens", "code": "rate_limit_exceeded"}, "rate_limited"),
    ({"message": "no", "type": "requests", "code": None}, "rate_limited"),
    ({"message": "no", "type": "rate_limit_error", "code": "slow_down"}, "rate_limited"),
    ({"message": "no", "code": 429}, "rate_limited"),
    ({"message": {"en": "no"}, "code": "429"}, "rate_limited"),
    ({"type": "service_unavailable_error", "code": "server_is_overloaded"}, "overloaded"),
    ({"type": "service_unavailable_error"}, "overloaded"),
    ({"type": "tokens", "code": "insufficient_quota"}, "quota"),
    ({"message": "no", "type": "server_error", "code": None}, "unavailable"),
    ({"code": ["rate_limit_exceeded"], "type": {}}, "unavailable"),
    ("no", "unavailable"),
    (["no"], "unavailable"),
]
ANTHROPIC_ERRORS: list[tuple[object, ErrorKind]] = [
    ({"type": "overloaded_error", "message": "no"}, "overloaded"),
    ({"type": "overloaded_error", "message": None}, "overloaded"),
    ({"type": "rate_limit_error"}, "rate_limited"),
    (
        {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}},
        "quota",
    ),
    ({"type": "billing_error", "message": "no"}, "quota"),
    ({"type": "timeout_error", "message": "no"}, "timeout"),
    ({"type": "authentication_error", "message": "bad key sk-ant-test"}, "auth"),
    ({"type": "api_error", "message": "no"}, "unavailable"),
    ({"type": 7}, "unavailable"),
    ("no", "unavailable"),
    (None, "unavailable"),
]


@pytest.mark.parametrize("forwarded", [False, True], ids=["ours", "forwarded"])
@pytest.mark.parametrize(("error", "kind"), OPENAI_ERRORS)
def test_openais_error_chunk_has_its_cause(
    provider: UpstreamServer, error: object, kind: ErrorKind, forwarded: bool
) -> None:
    """The code decides, or else the type. An error in any form ends the answer as an error."""
    provider.script(Stream([*openai_chunks()[:2], event({"error": error})]))
    assert failure(upstream("openai"), "gpt-5.4-mini", forwarded=forwarded) == ("po", kind, 200)


@pytest.mark.parametrize("forwarded", [False, True], ids=["ours", "forwarded"])
@pytest.mark.parametrize(("error", "kind"), ANTHROPIC_ERRORS)
def test_anthropics_error_event_has_its_cause(
    provider: UpstreamServer, error: object, kind: ErrorKind, forwarded: bool
) -> None:
    """The type decides. An error in any form ends the answer as an error."""
    provider.script(Stream([*anthropic_events()[:4], named("error", error=error)]))
    found = failure(upstream("anthropic"), "claude-haiku-4-5", forwarded=forwarded)
    assert found == ("po", kind, 200)


def failure(
    asked: SDKUpstream, model: str, *, forwarded: bool
) -> tuple[str, ErrorKind, int | None]:
    """The text before the error, its kind, and its status."""
    if forwarded:
        fields: dict[str, object] = {"model": model, "stream": True}
        stream = asked.forward_stream(RawRequest(raw=b"{}", fields=fields))
    else:
        stream = asked.stream(Turn("ping", Model(model, model, asked.name)), 9)
    texts: list[str] = []
    with pytest.raises(UpstreamError) as failed:
        texts.extend(part.text for part in stream)
    return "".join(texts), failed.value.kind, failed.value.status
