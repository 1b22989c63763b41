"""The request id of every response, for reports to an operator: the provider's if it sent one."""

from __future__ import annotations

import logging
import uuid
from typing import Final

from flask import Flask, Response, g

log = logging.getLogger(__name__)

#: OpenAI's header, used by default.
HEADER: Final = "x-request-id"
ANTHROPIC_HEADER: Final = "request-id"
INTERNAL_ERROR: Final = 500


def new_request_id() -> str:
    """A new id in the form that both vendors use."""
    return f"req_{uuid.uuid4().hex}"


def current_request_id() -> str:
    """The id of the current request, made once."""
    known: str | None = g.get("request_id")
    if known is None:
        known = g.request_id = new_request_id()
    return known


def install(app: Flask) -> None:
    """Add a request id to every response. Install it before the limiter: hooks after a request run
    in reverse order, and the limiter's may replace the response."""

    @app.after_request
    def identify(response: Response) -> Response:
        if HEADER not in response.headers and ANTHROPIC_HEADER not in response.headers:
            response.headers[HEADER] = current_request_id()
        if response.status_code == INTERNAL_ERROR:
            log.error("Request %s failed", current_request_id())
        return response
