"""The errors and limit headers of an endpoint that speaks a vendor's protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from flask import Blueprint, Response, json
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from chatapp.providers import ProviderError
from chatapp.services import current_services
from chatapp.web import provider_errors
from chatapp.web.error_report import ErrorReport
from chatapp.web.errors import report_of
from chatapp.web.formats.wire_format import WireFormat
from chatapp.web.limit_summary import limit_summaries
from chatapp.web.request_id import current_request_id
from ratelimit_ext import RateLimitExceeded, RequestTooLarge

# Errors that the client can correct: it gets the vendor's own text.
CLIENT_ERRORS: Final = frozenset({"bad_request", "unknown_model"})


class FormatErrors:
    """Answers the errors of a blueprint in the request's wire format, and adds its headers."""

    def __init__(self, current: Callable[[], WireFormat]) -> None:
        self._current = current

    def install(self, bp: Blueprint) -> None:
        """Answer for that blueprint. `unknown_address` answers a 404 or 405, which reaches none."""
        bp.after_request(self.add_limits)
        bp.after_request(self.add_request_id)
        bp.register_error_handler(HTTPException, self.http_error)
        bp.register_error_handler(RateLimitExceeded, self.denied)
        bp.register_error_handler(RequestTooLarge, self.too_large)
        bp.register_error_handler(ProviderError, self.provider_error)

    def add_limits(self, response: Response) -> Response:
        summaries = limit_summaries(current_services().limiter)
        response.headers.update(self._current().limit_headers(summaries))
        return response

    def add_request_id(self, response: Response) -> Response:
        """Add a request id: the provider's if there is one."""
        response.headers.setdefault(self._current().request_id_header, current_request_id())
        return response

    def http_error(self, error: HTTPException) -> HTTPException | WerkzeugResponse:
        if error.response is not None or error.code is None or error.code < 400:
            return error
        report = report_of(error)
        if report.status == 422:  # the vendors' 400 has our 422 in it
            report = replace(report, status=400)
        answered = self._answer(report)
        for name, value in error.get_headers():
            if name != "Content-Type":
                answered.headers[name] = value
        return answered

    def denied(self, error: RateLimitExceeded) -> HTTPException | Response:
        if error.response is not None:
            return error
        # With the headers: a request that is denied at its end is past `after_request` already.
        return self.add_limits(self._answer(_denial(error)))

    def too_large(self, error: RequestTooLarge) -> Response:
        return self._answer(ErrorReport(400, "request_too_large", error.description or ""))

    def provider_error(self, error: ProviderError) -> Response:
        answered = self._answer(provider_errors.report_for_sdk(error))
        if error.kind in CLIENT_ERRORS and _has_error(error.raw):
            answered.set_data(error.raw)
        return answered

    def _answer(self, report: ErrorReport) -> Response:
        wire_format, request_id = self._current(), report.request_id or current_request_id()
        return Response(
            json.dumps(wire_format.error_body(replace(report, request_id=request_id))),
            status=report.status,
            headers={**report.headers, wire_format.request_id_header: request_id},
            content_type="application/json",
        )


def _denial(error: RateLimitExceeded) -> ErrorReport:
    message = error.message
    if error.cause != "limit":
        code = "abnormal_usage" if error.cause == "abnormal-usage" else "blocked"
        return ErrorReport(429, code, message, unit="requests")
    units = {denial.charge.limit.unit for denial in error.denials}
    if "usd" in units:
        return ErrorReport(429, "insufficient_quota", message, unit="usd")
    unit = "requests" if not units or units & {"requests", "calls"} else "tokens"
    return ErrorReport(429, "rate_limit_exceeded", message, unit=unit)


def _has_error(raw: bytes) -> bool:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict)
