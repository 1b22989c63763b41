"""The JSON object in a request's body, parsed more strictly than Python does.

A small body has arrived before a thread gets the request (chatapp/server/gunicorn_worker.py). A
larger one is read here and costs memory: only after the caller's edge limits admit it, and only
while the large bodies of this process, each held to the end of its request, are below
LARGE_BODIES_BYTES.
"""

from __future__ import annotations

import io
import json
import re
import threading
import zlib
from collections.abc import Iterator
from typing import Final, NoReturn

from flask import Request, Response, after_this_request
from werkzeug.exceptions import RequestEntityTooLarge

from chatapp import validation
from chatapp.services import current_services
from chatapp.web.errors import ApiError, overloaded

SMALL_BYTES: Final = 64 * 1024
#: All large bodies of a process together: two of the largest that providers accept.
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
        """Take that many bytes as soon as they are free; ApiError (503) after WAIT_S."""
        with self._changes:
            if not self._changes.wait_for(lambda: self._left >= size, WAIT_S):
                raise overloaded()
            self._left -= size

    def give_back(self, size: int) -> None:
        with self._changes:
            self._left += size
            self._changes.notify_all()


large_bodies: Final = LargeBodies(LARGE_BODIES_BYTES)


class _Share:
    """The share of one request, until its response is closed."""

    def __init__(self) -> None:
        self._size = 0

    def grow(self, size: int) -> None:
        if size <= max(self._size, SMALL_BYTES):
            return
        large_bodies.take(size - self._size)
        if not self._size:
            after_this_request(self._free_at_the_end)
        self._size = size

    def _free_at_the_end(self, response: Response) -> Response:
        response.call_on_close(lambda: large_bodies.give_back(self._size))
        return response


def _read(request: Request) -> bytes:
    """Return the whole body, decoded.

    Raises ApiError: 400 if it is incomplete or its encoding is invalid, 408 if it arrives too
    slowly, 413 if it is larger than MAX_CONTENT_LENGTH, 415 for an encoding other than gzip, 503 if
    there are too many large bodies; for a large body also the errors of the caller's edge limits.
    """
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise ApiError(
            415,
            "unsupported_encoding",
            f'The Content-Encoding is "{encoding[:40]}". Use gzip, or send the body uncompressed.',
            headers={"Accept-Encoding": "gzip"},  # RFC 9110
        )
    if encoding == "gzip" or _announces_large(request):
        # Decided here, and not with the other limits before the view: the body already costs. A
        # few compressed bytes may decode to a large one.
        current_services().limiter.current.admit_edge()
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


def _announces_large(request: Request) -> bool:
    size = request.content_length
    return "Transfer-Encoding" in request.headers if size is None else size > SMALL_BYTES


def _received(request: Request, most: int) -> Iterator[bytes]:
    """Yield the body as it comes, at most a byte more than ``most``."""
    announced, stream = request.content_length, request.environ["wsgi.input"]
    left = most + 1 if announced is None else announced
    try:
        while left and (piece := stream.read(min(left, STEP_BYTES))):
            left -= len(piece)
            yield piece
    except TimeoutError as error:
        raise ApiError(
            408, "body_too_slow", "The body arrives too slowly. Try again on a faster connection."
        ) from error
    except Exception as error:  # each server has another error for a broken connection
        raise _broken() from error
    if announced is not None and left:
        raise _broken()  # a part of the body may be valid JSON, too


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
        "The body ends before its Content-Length, or its encoding is invalid. Send it again.",
    )


# -- JSON --------------------------------------------------------------------------------------

# The schema of a tool, or the result of one, nests some ten levels.
DEPTH_MOST: Final = 100
# Strings, brackets and commas; the longest conversations have some ten thousand.
TOKENS_MOST: Final = 100_000
# A string is taken whole, without backtracking, also where it does not end.
TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)
OPENING: Final = frozenset(b"[{")
CLOSING: Final = frozenset(b"]}")


def read_object(request: Request, *, example: str) -> dict[str, object]:
    """Return the object in the body; an ApiError (400, 413, 422) shows ``example``."""
    return read_document(request, example=example)[1]


def read_document(
    request: Request, *, example: str, most_tokens: int = TOKENS_MOST
) -> tuple[bytes, dict[str, object]]:
    """Return the same behind its bytes; ``most_tokens`` of strings, brackets and commas."""
    if not request.is_json:
        problem = f'"{request.mimetype[:100]}"' if request.mimetype else "missing"
        raise ApiError(
            400,
            "invalid_json",
            f"The Content-Type is {problem}. Send application/json and a body like {example}.",
        )
    raw = _read(request)
    try:
        _check_size(raw, most_tokens)
        document = json.loads(
            raw.decode("utf-8"),
            parse_constant=_no_such_number,
            object_pairs_hook=validation.unique_names,
        )
    except (ValueError, RecursionError) as error:
        problem = "empty" if not raw else f"not JSON ({_reason(error)})"
        raise ApiError(
            400, "invalid_json", f"The body is {problem}. Send a JSON object like {example}."
        ) from error
    if not isinstance(document, dict):
        raise ApiError(
            422,
            "invalid_body",
            f"The body is {validation.type_name(document)}. Send a JSON object like {example}.",
        )
    return raw, document


def _check_size(raw: bytes, most_tokens: int) -> None:
    """ValueError for too many values or too deep nesting: a parser needs up to 20 bytes of memory
    for each byte of such a body, and recurses.

    This counts brackets and commas outside of strings, which is faster than parsing. Most bodies
    are too short for either.
    """
    if len(raw) <= most_tokens and raw.count(b"[") + raw.count(b"{") <= DEPTH_MOST:
        return
    depth = 0
    for count, token in enumerate(TOKEN.finditer(raw)):
        sign = raw[token.start()]
        if sign in OPENING:
            depth += 1
            if depth > DEPTH_MOST:
                raise ValueError(f"nested too deeply: more than {DEPTH_MOST} levels")
        elif sign in CLOSING:
            depth -= 1
        if count >= most_tokens:
            raise ValueError(f"too many values: more than about {most_tokens // 2:,}")


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)
