"""Spans for OpenTelemetry, if CHATAPP_TRACES is set: of each request, and of each attempt at an
upstream, with the attributes of the GenAI semantic conventions (as of OpenTelemetry 1.44).

They go to the process's tracer provider. A request continues the trace of its ``traceparent``, and
an attempt sends its own to the upstream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from werkzeug.wsgi import ClosingIterator

from chatapp.catalogue import Model
from chatapp.ledger.call import Call

if TYPE_CHECKING:
    from opentelemetry.trace import Span

#: What a call does that is not traced.
UNTRACED: Final[AbstractContextManager[Any]] = nullcontext()
#: A status from here on is the server's fault, and an error of the span.
SERVER_ERROR: Final = 500


class Traces:
    """Makes spans. ImportError without the package ``opentelemetry-api``."""

    def __init__(self) -> None:
        from opentelemetry import context, propagate, trace  # noqa: PLC0415 - an extra

        self._trace, self._context, self._propagate = trace, context, propagate
        self._tracer = trace.get_tracer("chatapp")

    def wrap(self, wsgi_app: Any) -> Any:
        """Return the application with a span of each request, which ends with the response."""
        trace, context = self._trace, self._context

        def traced(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            method, fields = environ["REQUEST_METHOD"], self._propagate.get_global_textmap().fields
            sent = {name: environ.get(f"HTTP_{name.upper()}", "") for name in fields}
            span = self._tracer.start_span(
                method,
                context=self._propagate.extract(sent),
                kind=trace.SpanKind.SERVER,
                attributes={"http.request.method": method, "url.path": environ["PATH_INFO"]},
            )

            def start(status: str, headers: Any, *error: Any) -> Any:
                code = int(status[:3])
                span.set_attribute("http.response.status_code", code)
                if code >= SERVER_ERROR:
                    span.set_status(trace.StatusCode.ERROR)
                return start_response(status, headers, *error)

            token = context.attach(trace.set_span_in_context(span))
            try:
                return ClosingIterator(wsgi_app(environ, start), span.end)
            except BaseException:
                span.end()
                raise
            finally:
                context.detach(token)

        return traced

    def name_request(self, route: str) -> None:
        """Name the current request's span by its route, when it is known."""
        span = self._trace.get_current_span()
        span.set_attribute("http.route", route)
        span.update_name(f"{getattr(span, 'name', '')} {route}")

    def note_decision(self, *, admitted: bool, denied_by: Sequence[str], again: bool) -> None:
        self._trace.get_current_span().add_event(
            "ratelimit.decision", {"admitted": admitted, "denied_by": denied_by, "again": again}
        )

    def headers(self) -> Mapping[str, str]:
        """Return what tells an upstream of the current span."""
        written: dict[str, str] = {}
        self._propagate.inject(written)
        return written

    def trace_id(self) -> str:
        """Return the id of the current trace; empty outside of one."""
        context = self._trace.get_current_span().get_span_context()
        return self._trace.format_trace_id(context.trace_id) if context.is_valid else ""

    def attempt(self, model: Model, number: int) -> Attempt:
        span = self._tracer.start_span(
            f"chat {model.name}",
            kind=self._trace.SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": model.upstream,
                "gen_ai.request.model": model.name,
                "http.request.resend_count": number,
            },
        )
        return Attempt(self, span)


class Attempt:
    """One attempt at an upstream, whose span ends when its bill is known."""

    def __init__(self, traces: Traces, span: Span) -> None:
        self._trace = traces._trace  # noqa: SLF001 - of one piece
        self._span = span

    def active(self) -> AbstractContextManager[Any]:
        """Make it the current span, for the request that is sent."""
        span: AbstractContextManager[Any] = self._trace.use_span(
            self._span, record_exception=False, set_status_on_exception=False
        )
        return span

    def fail(self, kind: str) -> None:
        """Note why there is no answer."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(self._trace.StatusCode.ERROR)

    def end(self, call: Call | None = None) -> None:
        """End it, with the usage that is billed; without a call, another attempt follows."""
        if call is not None and (usage := call.usage) is not None:
            self._span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": usage.input_tokens,
                    "gen_ai.usage.output_tokens": usage.output_tokens,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
                    "chatapp.call.id": call.id,
                    "chatapp.call.status": call.status,
                    "chatapp.usage.cost_usd": call.cost_micro_usd / 1_000_000,
                    "chatapp.usage.estimated": call.estimated,
                }
            )
        self._span.end()
