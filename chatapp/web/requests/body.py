"""Reads and decodes a request's body.

A small body has arrived before a thread gets the request (see chatapp/gunicorn_worker.py). A larger
one is read here and costs memory: only after the caller's edge limits admit it, and only while the
large bodies of this process, each held to the end of its request, are below LARGE_BODIES_BYTES.
"""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Iterator
from typing import Final

from flask import Request, Response, after_this_request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatapp.services import current_services
from chatapp.web.errors import ApiError
from chatapp.web.overload import OverloadedError

SMALL_BYTES: Final = 64 * 1024
#: What the large bodies of a process may have together: two of the largest that providers take.
LARGE_BODIES_BYTES: Final = 64 * 1024 * 1024
WAIT_S: Final = 2.0
STEP_BYTES: Final = 256 * 1024
GZIP: Final = 16 + zlib.MAX_WBITS


class LargeBodies:
    """The memory budget for large bodies in a process."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._changes = threading.Condition()

    def take(self, size: int) -> None:
        """Take so many bytes as soon as they are free; OverloadedError after WAIT_S."""
        with self._changes:
            if not self._changes.wait_for(lambda: self._left >= size, WAIT_S):
                raise OverloadedError
            self._left -= size

    def give_back(self, size: int) -> None:
        """Free so many bytes."""
        with self._changes:
            self._left += size
            self._changes.notify_all()


large_bodies: Final = LargeBodies(LARGE_BODIES_BYTES)


class _Share:
    """The share of one request, until its response is closed."""

    def __init__(self) -> None:
        self._size = 0

    def grow(self, size: int) -> None:
        """Take more, up to so many bytes."""
        if size <= max(self._size, SMALL_BYTES):
            return
        large_bodies.take(size - self._size)
        if not self._size:
            after_this_request(self._free_at_the_end)
        self._size = size

    def _free_at_the_end(self, response: Response) -> Response:
        response.call_on_close(lambda: large_bodies.give_back(self._size))
        return response


def read(request: Request) -> bytes:
    """The whole body, decoded.

    Raises ApiError: 400 if it does not arrive as announced, 408 if it arrives too slowly, 413 if it
    is larger than MAX_CONTENT_LENGTH, 415 for an encoding other than gzip; OverloadedError if there
    are too many large bodies; for a large body also the errors of the caller's edge limits.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise UnsupportedEncodingError(encoding)
    if _announces_large(request):
        # Decided now, and not with the others before the view: the body is what costs.
        current_services().limiter.admit_edge()
    announced, most = request.content_length or 0, request.max_content_length or 0
    if announced > most:
        raise RequestEntityTooLarge
    share = _Share()
    share.grow(announced)
    received = _received(request, most)
    body = io.BytesIO()
    for piece in _gunzipped(received) if encoding == "gzip" else received:
        body.write(piece)
        if body.tell() > most:
            raise RequestEntityTooLarge
        share.grow(body.tell())
    return body.getvalue()


class UnsupportedEncodingError(ApiError):
    """415, with what is supported."""

    def __init__(self, found: str) -> None:
        super().__init__(
            415,
            "unsupported_encoding",
            f'The Content-Encoding is "{found[:40]}"; send the body with gzip or uncompressed.',
        )

    def get_headers(self, *args: object) -> list[tuple[str, str]]:
        """With Accept-Encoding (RFC 9110)."""
        return [*super().get_headers(), ("Accept-Encoding", "gzip")]


def _announces_large(request: Request) -> bool:
    size = request.content_length
    return "Transfer-Encoding" in request.headers if size is None else size > SMALL_BYTES


def _received(request: Request, most: int) -> Iterator[bytes]:
    """The body as it comes, at most one piece more than ``most``."""
    count, announced = 0, request.content_length
    try:
        stream = request.environ["wsgi.input"] if announced is None else request.stream
        while count <= most and (piece := stream.read(STEP_BYTES)):
            count += len(piece)
            yield piece
    except HTTPException:
        raise
    except TimeoutError as error:
        raise ApiError(
            408, "body_too_slow", "The body arrives too slowly; try again on a better connection."
        ) from error
    except Exception as error:  # each server has its own for a broken connection
        raise _broken() from error
    if announced is not None and count < announced:
        raise _broken()  # what arrived may well be JSON, and is not what was sent


def _gunzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decoded in bounded pieces: a few bytes may decode to gigabytes."""
    decoder = zlib.decompressobj(GZIP)
    try:
        for piece in pieces:
            left = piece
            while left and not decoder.eof:
                yield decoder.decompress(left, STEP_BYTES)
                left = decoder.unconsumed_tail
            if decoder.unused_data or (decoder.eof and left):
                raise _broken()
    except zlib.error as error:
        raise _broken() from error
    if not decoder.eof:
        raise _broken()


def _broken() -> ApiError:
    return ApiError(
        400,
        "invalid_body",
        "The body ends before its Content-Length, or its encoding is broken; send it anew.",
    )
