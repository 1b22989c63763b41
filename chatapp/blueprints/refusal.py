"""How chatapp says no: every error is JSON, {"error": "<one sentence>", "code": "<word>"}."""

from __future__ import annotations

import math
from typing import Final

from flask import Flask, Response, json
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from chatapp.providers import ErrorKind, ProviderError

# How long to wait for a provider that is overloaded and does not say for how long, in seconds.
DEFAULT_WAIT_S: Final = 5
# The SDKs of both providers obey a Retry-After up to here; beyond, some sleep for days and some
# hammer, so they are told not to retry at all.
LONGEST_OBEYED_WAIT_S: Final = 60

CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    500: "internal_error",
}
SENTENCES: Final = {
    404: "There is nothing at this address; POST /chat takes messages, GET / is a page for people.",
    413: "The body is larger than 1 MB (1048576 bytes); send a shorter message.",
    500: "The server failed on this request and logged why; try again, or tell its operator.",
}
PROVIDER_ANSWERS: Final[dict[ErrorKind, tuple[int, str, str]]] = {
    "rate_limited": (503, "server_is_overloaded", "has no room for more requests at the moment"),
    "overloaded": (503, "server_is_overloaded", "is overloaded at the moment"),
    "timeout": (504, "provider_timeout", "gave no answer in time"),
    "auth": (502, "provider_refused", "does not accept this server's key"),
    "quota": (502, "provider_refused", "refuses because this server's credit there is used up"),
    "unknown_model": (422, "unknown_model", "does not offer this model to this server"),
    "bad_request": (502, "provider_rejected", "did not take this request"),
    "unavailable": (502, "provider_unavailable", "could not be reached or failed"),
    "malformed": (502, "provider_unavailable", "sent an answer that cannot be read"),
}
REMEDIES: Final = {
    "server_is_overloaded": "try again in {wait} s",
    "provider_timeout": "try again, with a shorter message if it was long",
    "provider_refused": "tell the operator; trying again will not help",
    "unknown_model": "name another one",
    "provider_rejected": "change the message or name another model",
    "provider_unavailable": "try again in a moment, or name a model of another provider",
}


class Refusal(HTTPException):
    """An error with a code of its own; ``sentence`` says what was found and what to do."""

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(description=sentence)
        self.code = status
        self.word = code


def install(app: Flask) -> None:
    """Answer every error of this app in the one shape."""
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(ProviderError, _answer_provider_error)


def _answer_http_error(error: HTTPException) -> HTTPException | WerkzeugResponse:
    brings_its_own_answer = type(error).get_response is not HTTPException.get_response
    if brings_its_own_answer or error.response is not None or error.code is None:
        return error  # as the extension's 429 does, and a redirect
    if isinstance(error, Refusal):
        word, sentence = error.word, error.description
    else:
        word = CODES.get(error.code, "http_error")
        sentence = SENTENCES.get(error.code, error.description)
    response = error.get_response()  # with its headers, as Allow on a 405
    response.set_data(json.dumps({"error": sentence, "code": word}))
    response.content_type = "application/json"
    return response


def _answer_provider_error(error: ProviderError) -> Response:
    status, code, trouble = PROVIDER_ANSWERS[error.kind]
    wait_s = math.ceil(error.retry_after_s or DEFAULT_WAIT_S)
    remedy = REMEDIES[code].format(wait=wait_s)
    body: dict[str, object] = {
        "error": f"The provider {error.provider} {trouble}; {remedy}.",
        "code": code,
    }
    headers = {}
    if status == 503:
        body["retry_after"] = wait_s
        headers["Retry-After"] = str(wait_s)
        if wait_s > LONGEST_OBEYED_WAIT_S:
            headers["x-should-retry"] = "false"
    return Response(
        json.dumps(body), status=status, headers=headers, content_type="application/json"
    )
