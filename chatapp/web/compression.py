"""Compression of the chat page and of both pages' files, which are the same for everyone.

Not for a stream, which a compressor holds back, nor for /admin: a page with secrets beside what a
link can choose gives the secrets away by its compressed size (BREACH).
"""

from __future__ import annotations

import gzip
from functools import lru_cache

from flask import Response, request


def compressed(response: Response) -> Response:
    """Compress the answer to a GET if the client takes that. Vary tells caches of both forms."""
    response.vary.add("Accept-Encoding")
    if response.status_code == 200 and request.accept_encodings["gzip"]:
        response.direct_passthrough = False
        response.set_data(_gzip(response.get_data()))
        response.content_encoding = "gzip"
    if etag := response.get_etag()[0]:  # of more than one sequence of bytes
        response.set_etag(etag, weak=True)
    return response


@lru_cache(maxsize=64)
def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)
