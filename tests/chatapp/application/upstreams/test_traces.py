"""CHATAPP_TRACES: what an exporter of OpenTelemetry gets of a request and its calls."""

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import Answer, UpstreamServer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@cache
def exporter() -> InMemorySpanExporter:
    """That of the process, whose tracer provider can be set once."""
    found, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    trace.set_tracer_provider(provider)
    return found


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    yield exporter()
    exporter().clear()


def chat(app: Any, **body: Any) -> int:
    """The status of an answer that was read to its end."""
    sent = {"message": "Hello", "model": "gpt-5-mini", **body}
    with app.test_client().post("/chat", json=sent, headers=PARENT) as answer:
        assert answer.data
        return int(answer.status_code)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_and_its_call_are_spans_of_the_clients_trace(
    make_app: AppMaker, provider: UpstreamServer, spans: InMemorySpanExporter, *, stream: bool
) -> None:
    """The call is a child of the request, has what is billed, plain and streamed, and tells the
    provider of itself."""
    assert chat(make_app(CHATAPP_TRACES=True), stream=stream) == 200
    call, request = spans.get_finished_spans()
    assert (request.name, call.name) == ("POST /chat", "chat gpt-5-mini")
    assert {f"{each.context.trace_id:032x}" for each in (call, request)} == {TRACE}
    assert call.parent is not None
    assert call.parent.span_id == request.context.span_id
    assert provider.calls[0].headers["traceparent"] == f"00-{TRACE}-{call.context.span_id:016x}-01"
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "url.path": "/chat",
        "http.route": "/chat",
        "http.response.status_code": 200,
    }
    billed = dict(call.attributes or {})
    assert billed.pop("chatapp.call.id")
    assert 0 < billed.pop("chatapp.usage.cost_usd") < 1
    assert billed.pop("gen_ai.usage.input_tokens") > 0
    assert billed.pop("gen_ai.usage.output_tokens") > 0
    assert billed.pop("gen_ai.usage.cache_read.input_tokens") == 8
    assert billed == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "http.request.resend_count": 0,
        "chatapp.call.status": "answered",
        "chatapp.usage.estimated": False,
    }


def test_each_attempt_is_a_span(
    make_app: AppMaker, provider: UpstreamServer, spans: InMemorySpanExporter
) -> None:
    """A provider fails once: the first attempt is an error, the second has the bill."""
    provider.script(Answer(500, b""))
    assert chat(make_app(CHATAPP_TRACES=True)) == 200
    first, second, _ = spans.get_finished_spans()
    assert (first.attributes or {})["error.type"] == "unavailable"
    assert first.status.status_code is trace.StatusCode.ERROR
    assert "gen_ai.usage.input_tokens" not in (first.attributes or {})
    assert (second.attributes or {})["chatapp.call.status"] == "answered"
    assert (second.attributes or {})["http.request.resend_count"] == 1
    sent = [call.headers["traceparent"].split("-")[2] for call in provider.calls]
    assert sent == [f"{each.context.span_id:016x}" for each in (first, second)]


def test_a_decision_is_an_event_with_the_limits_that_denied(
    make_app: AppMaker, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of a refusal names the trace. A failure of the server is an error of the span."""
    app = make_app(CHATAPP_TRACES=True)
    app.add_url_rule("/broken", "broken", lambda: 1 / 0)
    with caplog.at_level(logging.INFO, "flask-limiter"):
        while chat(app, model=None) != 429:
            pass
    assert f", trace {TRACE})" in caplog.text
    with app.test_client().get("/broken") as answer:
        assert answer.status_code == 500
    *_, refused, broken = spans.get_finished_spans()
    event = refused.events[-1]
    assert event.name == "ratelimit.decision"
    assert dict(event.attributes or {}) == {
        "admitted": False,
        "denied_by": ("user",),
        "again": False,
    }
    assert refused.status.is_unset
    assert broken.status.status_code is trace.StatusCode.ERROR


def test_without_the_setting_nothing_is_sent(
    make_app: AppMaker, provider: UpstreamServer, spans: InMemorySpanExporter
) -> None:
    """No span, and no header for the provider."""
    assert chat(make_app()) == 200
    assert spans.get_finished_spans() == ()
    assert "traceparent" not in provider.calls[0].headers
