"""The JSON object in a request's body, parsed more strictly than Python does."""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple, NoReturn

from flask import Request

from chatapp import validation
from chatapp.web.errors import ApiError
from chatapp.web.requests import body

# The schema of a tool, or the result of one, nests some ten levels.
DEPTH_MOST: Final = 100
# Strings, brackets and commas; the longest conversations have some ten thousand.
TOKENS_MOST: Final = 100_000
# A string is taken whole, without backtracking, also where it does not end.
TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)
OPENING: Final = frozenset(b"[{")
CLOSING: Final = frozenset(b"]}")


class Document(NamedTuple):
    """A body: its bytes, and the object in them."""

    raw: bytes
    fields: dict[str, object]


def read_object(request: Request, *, example: str) -> dict[str, object]:
    """The object in the body; ApiError (400, 413 or 422), which shows ``example``, if invalid."""
    return read_document(request, example=example).fields


def read_document(request: Request, *, example: str) -> Document:
    """The same, with the bytes that it was read from."""
    if not request.is_json:
        found = f'"{request.mimetype[:100]}"' if request.mimetype else "missing"
        raise ApiError(
            400,
            "invalid_json",
            f"The Content-Type is {found}; send application/json and a body like {example}.",
        )
    raw = body.read(request)
    try:
        _check_size(raw)
        document = json.loads(
            raw.decode("utf-8"), parse_constant=_no_such_number, object_pairs_hook=_unique_names
        )
    except (ValueError, RecursionError) as error:
        found = "nothing" if not raw else f"something that is not JSON ({_reason(error)})"
        raise ApiError(
            400, "invalid_json", f"The body is {found}; send a JSON object like {example}."
        ) from error
    if not isinstance(document, dict):
        raise ApiError(
            422,
            "invalid_body",
            f"The body is {validation.type_name(document)}; send a JSON object like {example}.",
        )
    return Document(raw, document)


def _check_size(raw: bytes) -> None:
    """ValueError for more values than a request has, or deeper ones: a parser makes up to 20 bytes
    of each byte of such a body, and recurses.

    This counts brackets and commas outside of strings, which takes less than parsing.
    """
    depth = 0
    for count, token in enumerate(TOKEN.finditer(raw)):
        sign = raw[token.start()]
        if sign in OPENING:
            depth += 1
            if depth > DEPTH_MOST:
                raise ValueError(f"it is nested too deeply: allowed are {DEPTH_MOST} levels")
        elif sign in CLOSING:
            depth -= 1
        if count >= TOKENS_MOST:
            raise ValueError(f"it has too many values: allowed are about {TOKENS_MOST // 2:,}")


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a duplicate name: parsers differ in which one counts, and so in who pays."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return names


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)
