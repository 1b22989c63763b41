"""Errors of a provider within a stream that began successfully."""

import pytest

from chatapp.catalogue import Model
from chatapp.upstreams import ErrorKind, RawRequest, Turn, UpstreamError
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
@pytest.mark.parametrize(
    ("protocol", "error", "kind"),
    [
        *[("openai", *case) for case in OPENAI_ERRORS],
        *[("anthropic", *case) for case in ANTHROPIC_ERRORS],
    ],
)
def test_an_error_event_has_its_cause(
    provider: UpstreamServer, protocol: str, error: object, kind: ErrorKind, forwarded: bool
) -> None:
    """OpenAI's code decides, or else the type. An error in any form ends the answer as an error."""
    model, begun, last = {
        "openai": ("gpt-5.4-mini", openai_chunks()[:2], event({"error": error})),
        "anthropic": ("claude-haiku-4-5", anthropic_events()[:4], named("error", error=error)),
    }[protocol]
    provider.script(Stream([*begun, last]))
    asked = upstream(protocol)
    if forwarded:
        fields: dict[str, object] = {"model": model, "stream": True}
        stream = asked.forward_stream(RawRequest(raw=b"{}", fields=fields))
    else:
        stream = asked.stream(Turn("ping", Model(model, model, protocol)), 9)
    texts: list[str] = []
    with pytest.raises(UpstreamError) as failed:
        texts.extend(part.text for part in stream)
    assert ("".join(texts), failed.value.kind, failed.value.status) == ("po", kind, 200)
