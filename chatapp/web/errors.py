"""Errors for clients: an ErrorReport first, then the body that the endpoint's clients read.

chatapp's own endpoints answer {"error": "<sentence>", "code": "<word>"}. Endpoints in a provider's
protocol answer in its wire format (formats/errors.py).
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from flask import Flask, Response, current_app, g, has_request_context, json, request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.wrappers import Response as WerkzeugResponse

from chatapp.services import EXTENSION_KEY, current_services
from chatapp.upstreams import ErrorKind, UpstreamError
from ratelimit_ext import (
    Blocked,
    LimitUnavailable,
    RequestTooLarge,
    TemporarilyUnavailable,
    wait_text,
)

#: OpenAI's header, used by default, and Anthropic's.
REQUEST_ID_HEADER: Final = "x-request-id"
ANTHROPIC_REQUEST_ID_HEADER: Final = "request-id"
# The SDKs obey a Retry-After up to here. Above it, some sleep for days and some retry at once, so
# they are asked not to retry.
LONGEST_OBEYED_WAIT_S: Final = 60
# The wait after an overload, if the provider names none or this server is overloaded, in seconds.
DEFAULT_UPSTREAM_WAIT_S: Final = 5
DEFAULT_WAIT_S: Final = 2

CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    500: "internal_error",
}
MESSAGES: Final = {
    404: "Unknown address. Use POST /chat, GET / for the chat page, or /v1 with a provider's SDK.",
    500: "Internal server error. Try again, or send the x-request-id to the operator.",
}
#: Status, code and cause by the kind of a provider's error, and what to do by the code. The
#: provider's own text is not shown.
UPSTREAM_ERRORS: Final[dict[ErrorKind, tuple[int, str, str]]] = {
    "rate_limited": (503, "server_is_overloaded", "is limiting this server's requests"),
    "overloaded": (503, "server_is_overloaded", "is overloaded"),
    "timeout": (504, "provider_timeout", "did not answer in time"),
    "auth": (502, "provider_refused", "rejected this server's API key"),
    "quota": (502, "provider_refused", "refuses this server's calls at the moment"),
    "unknown_model": (422, "unknown_model", "does not offer this model to this server"),
    "bad_request": (502, "provider_rejected", "rejected this request"),
    "too_large": (400, "request_too_large", "does not accept a request of this size"),
    "unavailable": (502, "provider_unavailable", "failed or could not be reached"),
    "overspent": (429, "insufficient_quota", "was stopped: its tools' results use up your budget"),
    "malformed": (502, "provider_unavailable", "sent an invalid answer, which it may bill"),
}
REMEDIES: Final = {
    "server_is_overloaded": "Try again in {wait}.",
    "provider_timeout": "Try again, with a shorter message if it was long.",
    "provider_refused": "Contact the operator; a retry will not help.",
    "unknown_model": "Choose another model.",
    "request_too_large": "Send a shorter one, or choose a model of another provider.",
    "provider_rejected": "Change the message or choose another model.",
    "insufficient_quota": "Have the tools return less, or wait for the next period.",
    "provider_unavailable": "Try again in a moment, or choose a model of another provider.",
}

ErrorAnswer = HTTPException | WerkzeugResponse


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """An error without a wire format.

    ``param`` is the field of the body, ``retry_after_s`` the wait before a retry, ``is_final``: no
    retry helps, ``unit`` is the unit of the limit that denied, ``request_id`` the provider's id of
    the request. ``is_spent``: what the caller may use in dollars or in a day is used up.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    is_final: bool = False
    unit: str | None = None
    request_id: str | None = None
    is_spent: bool = False
    made_at: float = field(default_factory=time.time, compare=False)

    @property
    def reset_at(self) -> int | None:
        """When to retry, in seconds since 1970, never too early; None if unknown."""
        wait_s = self.retry_after_s
        return None if wait_s is None else math.ceil(self.made_at + wait_s)

    @property
    def retry_is_useless(self) -> bool:
        """Whether a client should show the error instead of retrying."""
        return self.is_final or (self.retry_after_s or 0) > LONGEST_OBEYED_WAIT_S

    @property
    def headers(self) -> dict[str, str]:
        """The headers that control clients' retries."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.retry_is_useless:
            headers["x-should-retry"] = "false"
        return headers


class ApiError(HTTPException):
    """An error with a code of its own; ``param`` is the field of the body."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(description=message)
        self.code = status
        self.error_code = code
        self.param = param
        self._headers = headers

    def get_headers(self, *args: object) -> list[tuple[str, str]]:
        return [*super().get_headers(), *self._headers.items()]


def unavailable(code: str, cause: str) -> ApiError:
    """Return a 503 with a short Retry-After."""
    message = f"{cause} Try again in {wait_text(DEFAULT_WAIT_S * 1000)}."
    return ApiError(503, code, message, headers={"Retry-After": str(DEFAULT_WAIT_S)})


def overloaded(why: str = "The server has too many calls in flight.") -> ApiError:
    """Return the 503 of a server that has more to do than it has threads, memory or processors."""
    return unavailable("server_is_overloaded", why)


def current_query() -> MultiDict[str, str]:
    """Return the parameters of the current request; ApiError (400) if they are not UTF-8."""
    try:
        return request.args
    except UnicodeDecodeError as error:
        raise ApiError(
            400, "invalid_query", "The query string is not UTF-8. Percent-encode it."
        ) from error


def new_request_id() -> str:
    """Return a new id in the form that both providers use."""
    return f"req_{uuid.uuid4().hex}"


def current_request_id() -> str:
    """Return the id of the current request, made once."""
    request_id: str | None = g.get("request_id")
    if request_id is None:
        request_id = g.request_id = new_request_id()
    return request_id


def add_request_id(record: logging.LogRecord) -> bool:
    """A filter that adds the id of the current request of this application to what is logged."""
    if has_request_context() and EXTENSION_KEY in current_app.extensions:
        traces = current_services().traces
        trace = f", trace {traces.trace_id()}" if traces else ""
        record.msg = f"{record.msg} (request {current_request_id()}{trace})"
    return True


def is_overload(refusal: HTTPException) -> bool:
    """Return whether a guard refuses the call because what it guards is overloaded: a provider, or
    the whole application. This is not the overload of this server, which has `overloaded`."""
    return isinstance(refusal, TemporarilyUnavailable) and refusal.cause == "overloaded"


# -- reports -----------------------------------------------------------------------------------


def report_of(error: HTTPException) -> ErrorReport:
    status = error.code or 500
    if isinstance(error, ApiError):
        return ErrorReport(status, error.error_code, error.description or "", error.param)
    if isinstance(error, Blocked | LimitUnavailable | RequestTooLarge | TemporarilyUnavailable):
        message = error.message if isinstance(error, TemporarilyUnavailable) else error.description
        wait_s = None if error.wait_ms is None else _whole_seconds(error.wait_ms / 1000)
        is_final = wait_s is None and status != 400
        return ErrorReport(status, error.error_code, message or "", None, wait_s, is_final)
    message = MESSAGES.get(status, error.description or "")
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        # Every address allows HEAD and OPTIONS.
        methods = " or ".join(sorted({*error.valid_methods} - {"HEAD", "OPTIONS"}))
        message = f"{request.method} is not allowed at this address. Use {methods}."
    if status == 413 and (most := request.max_content_length):
        megabytes = most // (1024 * 1024)
        message = f"The body is larger than {megabytes} MB ({most} bytes). Send a shorter message."
    return ErrorReport(status, CODES.get(status, "http_error"), message)


def upstream_report(error: UpstreamError) -> ErrorReport:
    """Return a provider's error for a client of POST /chat."""
    return _upstream_report(error, *UPSTREAM_ERRORS[error.kind])


def sdk_report(error: UpstreamError) -> ErrorReport:
    """Return a provider's error for a client of its SDK, with the statuses that the SDK knows.

    An internal failure of the provider is worth a retry like an overload. A rejected key is this
    server's: no 401 for the client, and no retry helps.
    """
    status, code, cause = UPSTREAM_ERRORS[error.kind]
    if error.kind == "unavailable" and (error.status or 0) >= 500:
        status, code = 503, "server_is_overloaded"
    elif error.kind == "bad_request":
        status = error.status or 400
    elif error.kind == "unknown_model":
        status = 404
    return _upstream_report(error, status, code, cause)


def _upstream_report(error: UpstreamError, status: int, code: str, cause: str) -> ErrorReport:
    wait_s = _whole_seconds(error.retry_after_s or DEFAULT_UPSTREAM_WAIT_S)
    remedy = REMEDIES[code].format(wait=wait_text(wait_s * 1000))
    return ErrorReport(
        status=status,
        code=code,
        message=f"The model's provider {cause}. {remedy}",
        retry_after_s=wait_s if status == 503 else None,
        # An account's key is set aside for longer than clients wait; others may bill each attempt.
        is_final=error.is_accounts or error.kind in {"malformed", "overspent"},
        request_id=error.request_id,
    )


def _whole_seconds(wait_s: float) -> int:
    return max(1, math.ceil(wait_s))


# -- chatapp's own endpoints -------------------------------------------------------------------


def install(
    app: Flask, *, unrouted: Callable[[HTTPException], ErrorAnswer | None] = lambda _: None
) -> None:
    """Answer every error of this application as JSON, but those of requests that reach no view for
    which ``unrouted`` returns an answer."""

    def answer(error: HTTPException) -> ErrorAnswer:
        if request.endpoint is None and (answered := unrouted(error)) is not None:
            return answered
        return error if has_response(error) else json_answer(error)

    app.register_error_handler(HTTPException, answer)
    app.register_error_handler(UpstreamError, _answer_upstream_error)


def error_body(report: ErrorReport) -> dict[str, object]:
    return {"error": report.message, "code": report.code}


def has_response(error: HTTPException) -> bool:
    """Return whether the error has a response of its own: the extension's 429, a redirect."""
    overridden = type(error).get_response is not HTTPException.get_response
    return overridden or error.response is not None or error.code is None


def json_answer(error: HTTPException) -> WerkzeugResponse:
    report = report_of(error)
    response = error.get_response()  # with its headers, as Allow on a 405
    response.set_data(json.dumps(error_body(report)))
    response.content_type = "application/json"
    return response


def _answer_upstream_error(error: UpstreamError) -> Response:
    report = upstream_report(error)
    body = error_body(report)
    if report.retry_after_s is not None:
        body["retry_after"] = report.retry_after_s
    headers = report.headers
    if report.request_id is not None:
        headers[REQUEST_ID_HEADER] = report.request_id
    return Response(
        json.dumps(body), status=report.status, headers=headers, content_type="application/json"
    )
