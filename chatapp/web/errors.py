"""The errors of chatapp's own endpoints: JSON, {"error": "<one sentence>", "code": "<word>"}.

Endpoints in a vendor's protocol use its wire format (formats/errors.py), and so does
`unknown_address` for a vendor's client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from flask import Flask, Response, json, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.wrappers import Response as WerkzeugResponse

from chatapp.providers import ProviderError
from chatapp.web import provider_errors, request_id
from chatapp.web.error_report import ErrorReport, whole_seconds
from ratelimit_ext import Blocked, TemporarilyUnavailable

CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    500: "internal_error",
}
UNAVAILABLE_CODES: Final = {"closed": "switched_off", "storage-full": "storage_unavailable"}
MESSAGES: Final = {
    404: (
        "There is nothing at this address; POST /chat takes messages, GET / is a page for people, "
        "and /v1 is for the vendors' SDKs."
    ),
    500: "The server failed on this request and logged why; try again, or tell its operator.",
}

ErrorAnswer = HTTPException | WerkzeugResponse


class ApiError(HTTPException):
    """An error with a code of its own. ``message`` says what was found and what to do, ``param`` is
    the field of the body."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(description=message)
        self.code = status
        self.error_code = code
        self.param = param


def install(
    app: Flask, *, unrouted: Callable[[HTTPException], ErrorAnswer | None] = lambda _: None
) -> None:
    """Answer every error of this application as JSON.

    ``unrouted`` answers a request that reaches no view; if it returns None, the error is answered
    here.
    """

    def answer(error: HTTPException) -> ErrorAnswer:
        if request.endpoint is None and (answered := unrouted(error)) is not None:
            return answered
        return error if has_response(error) else _json_answer(error)

    app.register_error_handler(HTTPException, answer)
    app.register_error_handler(ProviderError, _answer_provider_error)


def has_response(error: HTTPException) -> bool:
    """Whether the error has a response of its own: the extension's 429, a redirect."""
    overridden = type(error).get_response is not HTTPException.get_response
    return overridden or error.response is not None or error.code is None


def report_of(error: HTTPException) -> ErrorReport:
    """The report of an error with a status."""
    status = error.code or 500
    if isinstance(error, ApiError):
        return ErrorReport(status, error.error_code, error.description or "", error.param)
    if isinstance(error, Blocked):
        return ErrorReport(status, "blocked", error.description or "", is_final=True)
    if isinstance(error, TemporarilyUnavailable):
        code = UNAVAILABLE_CODES.get(error.cause, "server_is_overloaded")
        wait_s = None if error.wait_ms is None else whole_seconds(error.wait_ms / 1000)
        return ErrorReport(
            status,
            code,
            error.description or "",
            retry_after_s=wait_s,
            is_final=wait_s is None,
        )
    message = MESSAGES.get(status, error.description or "")
    if isinstance(error, MethodNotAllowed) and (methods := _allowed_methods(error)):
        message = f"{request.method} is not for this address; send {methods}."
    if status == 413 and (most := request.max_content_length):
        megabytes = most // (1024 * 1024)
        message = f"The body is larger than {megabytes} MB ({most} bytes); send a shorter message."
    return ErrorReport(status, CODES.get(status, "http_error"), message)


def _allowed_methods(error: MethodNotAllowed) -> str:
    """The allowed methods without HEAD and OPTIONS, which every address allows."""
    return " or ".join(sorted({*(error.valid_methods or ())} - {"HEAD", "OPTIONS"}))


def _json_answer(error: HTTPException) -> WerkzeugResponse:
    report = report_of(error)
    response = error.get_response()  # with its headers, as Allow on a 405
    response.set_data(json.dumps({"error": report.message, "code": report.code}))
    response.content_type = "application/json"
    return response


def _answer_provider_error(error: ProviderError) -> Response:
    report = provider_errors.report(error)
    body: dict[str, object] = {"error": report.message, "code": report.code}
    if report.retry_after_s is not None:
        body["retry_after"] = report.retry_after_s
    response = Response(
        json.dumps(body),
        status=report.status,
        headers=report.headers,
        content_type="application/json",
    )
    if report.request_id is not None:
        response.headers[request_id.HEADER] = report.request_id
    return response
