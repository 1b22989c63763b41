"""How chatapp says no: every error is JSON, {"error": "<one sentence>", "code": "<word>"}.

The endpoints that speak a vendor's protocol say the same in that vendor's shape
(endpoint_errors.py), and so does `not_here` where a vendor's client finds none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from flask import Flask, Response, json, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.wrappers import Response as WerkzeugResponse

from chatapp.blueprints import provider_trouble, request_id
from chatapp.blueprints.trouble import Trouble, whole_seconds
from chatapp.providers import ProviderError
from ratelimit_ext import Blocked, TemporarilyUnavailable

CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    500: "internal_error",
}
UNAVAILABLE_CODES: Final = {"closed": "switched_off", "storage-full": "storage_unavailable"}
SENTENCES: Final = {
    404: (
        "There is nothing at this address; POST /chat takes messages, GET / is a page for people, "
        "and /v1 is for the vendors' SDKs."
    ),
    500: "The server failed on this request and logged why; try again, or tell its operator.",
}

Answer = HTTPException | WerkzeugResponse


class Refusal(HTTPException):
    """An error with a code of its own; ``sentence`` says what was found and what to do, ``param``
    names the field of the body that it is about."""

    def __init__(self, status: int, code: str, sentence: str, *, param: str | None = None) -> None:
        super().__init__(description=sentence)
        self.code = status
        self.word = code
        self.param = param


def install(
    app: Flask, *, unrouted: Callable[[HTTPException], Answer | None] = lambda _: None
) -> None:
    """Answer every error of this app in the one shape.

    ``unrouted`` is asked first about a request that reaches no view; None: it is none of its own.
    """

    def answer(error: HTTPException) -> Answer:
        if request.endpoint is None and (answered := unrouted(error)) is not None:
            return answered
        return error if brings_its_own_answer(error) else _in_the_one_shape(error)

    app.register_error_handler(HTTPException, answer)
    app.register_error_handler(ProviderError, _answer_provider_error)


def brings_its_own_answer(error: HTTPException) -> bool:
    """Whether it is none of ours to word: the extension's 429, a redirect."""
    overridden = type(error).get_response is not HTTPException.get_response
    return overridden or error.response is not None or error.code is None


def trouble_of(error: HTTPException) -> Trouble:
    """What an error with a status tells."""
    status = error.code or 500
    if isinstance(error, Refusal):
        return Trouble(status, error.word, error.description or "", error.param)
    if isinstance(error, Blocked):
        return Trouble(status, "blocked", error.description or "", hopeless=True)
    if isinstance(error, TemporarilyUnavailable):
        code = UNAVAILABLE_CODES.get(error.cause, "server_is_overloaded")
        wait_s = None if error.wait_ms is None else whole_seconds(error.wait_ms / 1000)
        return Trouble(
            status,
            code,
            error.description or "",
            retry_after_s=wait_s,
            hopeless=wait_s is None,
        )
    sentence = SENTENCES.get(status, error.description or "")
    if isinstance(error, MethodNotAllowed) and (taken := _taken(error)):
        sentence = f"{request.method} is not for this address; send {taken}."
    if status == 413 and (most := request.max_content_length):
        megabytes = most // (1024 * 1024)
        sentence = f"The body is larger than {megabytes} MB ({most} bytes); send a shorter message."
    return Trouble(status, CODES.get(status, "http_error"), sentence)


def _taken(error: MethodNotAllowed) -> str:
    """The methods that are taken, but those that every address takes."""
    return " or ".join(sorted({*(error.valid_methods or ())} - {"HEAD", "OPTIONS"}))


def _in_the_one_shape(error: HTTPException) -> WerkzeugResponse:
    trouble = trouble_of(error)
    response = error.get_response()  # with its headers, as Allow on a 405
    response.set_data(json.dumps({"error": trouble.sentence, "code": trouble.code}))
    response.content_type = "application/json"
    return response


def _answer_provider_error(error: ProviderError) -> Response:
    trouble = provider_trouble.told(error)
    body: dict[str, object] = {"error": trouble.sentence, "code": trouble.code}
    if trouble.retry_after_s is not None:
        body["retry_after"] = trouble.retry_after_s
    answered = Response(
        json.dumps(body),
        status=trouble.status,
        headers=trouble.headers,
        content_type="application/json",
    )
    if trouble.request_id is not None:
        answered.headers[request_id.HEADER] = trouble.request_id
    return answered
