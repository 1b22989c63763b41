"""The id of a request, which every answer bears: a person can name it to an operator.

If the provider sent a request id, the answer has that one.
"""

from __future__ import annotations

import logging
import uuid
from typing import Final

from flask import Flask, Response, g

log = logging.getLogger(__name__)

#: OpenAI's name for it, and everyone's.
HEADER: Final = "x-request-id"
ANTHROPIC_HEADER: Final = "request-id"
INTERNAL_ERROR: Final = 500


def new_request_id() -> str:
    """An id as both vendors write it."""
    return f"req_{uuid.uuid4().hex}"


def current_request_id() -> str:
    """The id of the current request, made once."""
    known: str | None = g.get("request_id")
    if known is None:
        known = g.request_id = new_request_id()
    return known


def install(app: Flask) -> None:
    """Have every answer bear an id. Install it before the limiter: of hooks after a request the
    first registered runs last, and the limiter's may replace an answer by a refusal."""

    @app.after_request
    def identify(response: Response) -> Response:
        if HEADER not in response.headers and ANTHROPIC_HEADER not in response.headers:
            response.headers[HEADER] = current_request_id()
        if response.status_code == INTERNAL_ERROR:
            log.error("Request %s failed", current_request_id())
        return response
