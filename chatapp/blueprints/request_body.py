"""Reading a request's body off the wire, whatever the client does with it meanwhile."""

from __future__ import annotations

from typing import Final

from flask import Request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatapp.blueprints.refusal import Refusal

# How much of a body that is too large is read all the same: most clients write to the end before
# they read, and one that finds the connection closed reports that and not our 413.
DRAINED_BYTES: Final = 16 * 1024 * 1024
STEP_BYTES: Final = 64 * 1024


def read(request: Request) -> bytes:
    """The whole body. Refusal (400) where it does not arrive as announced, 413 where it is larger
    than MAX_CONTENT_LENGTH."""
    try:
        raw = request.get_data(cache=False)
    except RequestEntityTooLarge:
        _drain(request)
        raise
    except HTTPException:
        raise
    except Exception as error:  # each server has its own for a broken connection
        raise _broken() from error
    most = request.max_content_length
    if request.content_length is None:
        # A chunked body that is too large ends at the limit, without an error of werkzeug's.
        if most is not None and len(raw) >= most:
            _drain(request)
            raise RequestEntityTooLarge
    elif len(raw) < request.content_length:
        raise _broken()  # what arrived may well be JSON, and is not what was sent
    return raw


def _broken() -> Refusal:
    return Refusal(
        400,
        "invalid_body",
        "The body ends before its Content-Length, or its chunks are not HTTP; send it anew.",
    )


def _drain(request: Request) -> None:
    stream = request.environ["wsgi.input"]
    left = min(request.content_length or DRAINED_BYTES, DRAINED_BYTES)
    try:
        while left > 0 and (read_bytes := len(stream.read(min(left, STEP_BYTES)))):
            left -= read_bytes
    except Exception:  # noqa: BLE001 - the client has gone, or never spoke HTTP: nothing to tell it
        return
