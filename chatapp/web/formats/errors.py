"""Errors and limit headers in a provider's wire format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Final

from flask import Blueprint, Response, json, request
from werkzeug.exceptions import HTTPException

from chatapp.calls.retry import REFUSED_FOR_LOAD
from chatapp.upstreams import UpstreamError
from chatapp.web.call_limits import scarcest_limits
from chatapp.web.current_request import current_request
from chatapp.web.errors import (
    ApiError,
    ErrorAnswer,
    ErrorReport,
    current_request_id,
    is_overload,
    report_of,
    sdk_report,
)
from chatapp.web.formats import ANTHROPIC, OPENAI, WireFormat, addresses, speaks_anthropic
from ratelimit_ext import RateLimitExceeded

# Errors that the client can correct: it gets the provider's own text.
CLIENT_ERRORS: Final = frozenset({"bad_request", "unknown_model"})
VERSION: Final = "v1"
# The first segments of OpenAI's paths after the base_url, which its user may have got wrong.
OPENAI_RESOURCES: Final = frozenset(
    {
        *("assistants", "audio", "batches", "completions", "containers", "conversations"),
        *("embeddings", "evals", "files", "fine_tuning", "images", "models", "moderations"),
        *("realtime", "responses", "threads", "uploads", "vector_stores", "videos"),
    }
)
# The first segments of what both providers have and this server has not.
UNSUPPORTED: Final = OPENAI_RESOURCES - {"embeddings", "models", "responses"} | {
    "complete",
    "messages",
    "skills",
}
SHOWN_CHARACTERS: Final = 100
DAY_US: Final = 86_400_000_000
_name_of: Final = itemgetter(0)


class FormatErrors:
    """Answers the errors of a blueprint in the request's wire format, and adds its headers.
    `of_errors` is the format of the errors, if it is another."""

    def __init__(
        self, current: Callable[[], WireFormat], of_errors: Callable[[], WireFormat] | None = None
    ) -> None:
        self._current = current
        self._of_errors = of_errors or current

    def install(self, bp: Blueprint) -> None:
        """Answer for that blueprint. `unknown_address` answers a 404 or 405, which reaches none."""
        bp.after_request(self.add_limits)
        bp.after_request(self.add_request_id)
        bp.register_error_handler(HTTPException, self.http_error)
        bp.register_error_handler(RateLimitExceeded, self.denied)
        bp.register_error_handler(UpstreamError, self.upstream_error)

    def add_limits(self, response: Response) -> Response:
        wire_format, limiter = self._current(), current_request().services.limiter
        headers: dict[str, str] = {}
        for verdict in scarcest_limits(limiter, wire_format.limit_units):
            headers |= wire_format.limit_headers(verdict)
        if headers.keys().isdisjoint(map(_name_of, response.headers)):
            # Without the checks of new headers, which take longer than all of this.
            response.headers._list += headers.items()  # noqa: SLF001
        else:  # a denial has them already
            response.headers.update(headers)
        return response

    def add_request_id(self, response: Response) -> Response:
        """Add a request id: the provider's if there is one."""
        header = self._current().request_id_header
        if header not in response.headers:
            response.headers[header] = current_request_id()
        return response

    def http_error(self, error: HTTPException) -> ErrorAnswer:
        if error.response is not None or error.code is None or error.code < 400:
            return error
        report = report_of(error)
        if report.status == 422:  # the providers have a 400 for it
            report = replace(report, status=400)
        answered = self._answer(report, of_provider=is_overload(error))
        for name, value in error.get_headers():
            if name != "Content-Type":
                answered.headers[name] = value
        return answered

    def denied(self, error: RateLimitExceeded) -> ErrorAnswer:
        if error.response is not None:
            return error
        # With the headers: a request that is denied at its end is past `after_request` already.
        return self.add_limits(self._answer(_denial(error)))

    def upstream_error(self, error: UpstreamError) -> Response:
        answered = self._answer(sdk_report(error), of_provider=error.kind in REFUSED_FOR_LOAD)
        if error.kind in CLIENT_ERRORS and _has_error(error.raw):
            answered.set_data(error.raw)
        return answered

    def _answer(self, report: ErrorReport, *, of_provider: bool = False) -> Response:
        wire_format, request_id = self._of_errors(), report.request_id or current_request_id()
        may_retry = of_provider and not report.retry_is_useless
        return Response(
            json.dumps(wire_format.error_body(replace(report, request_id=request_id))),
            status=wire_format.overload if may_retry else report.status,
            headers={
                **report.headers,
                **wire_format.spent_headers(report),
                wire_format.request_id_header: request_id,
            },
            content_type="application/json",
        )


def _denial(error: RateLimitExceeded) -> ErrorReport:
    code, unit = error.error_code, "requests"
    units = {denial.charge.limit.unit for denial in error.denials}
    if error.cause == "limit" and "usd" in units:
        unit = "usd"
    elif error.cause == "limit" and units and not units & {"requests", "calls"}:
        unit = "tokens"
    report = ErrorReport(
        429,
        "rate_limit_exceeded" if code == "rate_limited" else code,  # the providers' word
        error.message,
        retry_after_s=-(-error.wait_ms // 1000) if error.wait_ms else None,
        is_final=code == "insufficient_quota",
        unit=unit,
    )
    # A quota of a day, too, unless it has room again soon: others are a pace.
    of_days = any(denial.charge.limit.period_us >= DAY_US for denial in error.denials)
    is_quota = error.cause == "limit" and of_days and report.retry_is_useless
    return replace(report, is_spent=report.is_final or is_quota)


def _has_error(raw: bytes) -> bool:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict)


# -- unknown addresses -------------------------------------------------------------------------


def unknown_address(error: HTTPException) -> ErrorAnswer | None:
    """Return the answer to an SDK's request that reaches no endpoint, with the known addresses;
    None if it is in no provider's protocol: header and address show which one. The SDK's method
    has no endpoint here, or its base_url is wrong."""
    parts = request.path.strip("/").split("/")
    versions = next((n for n, part in enumerate(parts) if part != VERSION), len(parts))
    wire_format = _format_of(parts[versions:], versions=versions)
    if wire_format is None:
        return None
    if error.code == 404:
        requested = f"{request.method} {request.path[:SHOWN_CHARACTERS]}"
        available = ", ".join(addresses(f"{wire_format.protocol}_", "models_api."))
        if versions == 1 and UNSUPPORTED.issuperset(parts[1:2] or [""]):
            cause = f"{requested} is not supported here"
        else:
            cause = f"Unknown address {requested}{wire_format.hints[min(versions, 2)]}"
        error = ApiError(404, "not_found", f"{cause}. Available: {available}.")
    errors = FormatErrors(lambda: wire_format)
    return (
        errors.denied(error) if isinstance(error, RateLimitExceeded) else errors.http_error(error)
    )


def _format_of(rest: list[str], *, versions: int) -> WireFormat | None:
    if speaks_anthropic() or rest[:1] == ["messages"]:
        return ANTHROPIC
    if versions or rest[-2:] == ["chat", "completions"] or OPENAI_RESOURCES.issuperset(rest[:1]):
        return OPENAI
    return None
