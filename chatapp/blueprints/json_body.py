"""A JSON object out of a request's body, stricter than Python's parser where parsers differ."""

from __future__ import annotations

import json
from typing import NamedTuple, NoReturn

from flask import Request

from chatapp.blueprints import request_body
from chatapp.blueprints.refusal import Refusal


class Document(NamedTuple):
    """A body: its bytes as they came, and the object in them."""

    raw: bytes
    fields: dict[str, object]


def read_object(request: Request, *, example: str) -> dict[str, object]:
    """The object in the body; Refusal (400, 413 or 422), which shows ``example``, otherwise."""
    return read_document(request, example=example).fields


def read_document(request: Request, *, example: str) -> Document:
    """The same, with the bytes that it was read from."""
    if not request.is_json:
        found = f'"{request.mimetype[:100]}"' if request.mimetype else "missing"
        raise Refusal(
            400,
            "invalid_json",
            f"The Content-Type is {found}; send application/json and a body like {example}.",
        )
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(
            400,
            "invalid_json",
            "The body has a Content-Encoding; send it uncompressed, and without that header.",
        )
    raw = request_body.read(request)
    try:
        body = json.loads(
            raw.decode("utf-8"), parse_constant=_no_such_number, object_pairs_hook=_unique_names
        )
    except (ValueError, RecursionError) as error:
        found = "nothing" if not raw else f"something that is not JSON ({_reason(error)})"
        raise Refusal(
            400, "invalid_json", f"The body is {found}; send a JSON object like {example}."
        ) from error
    if not isinstance(body, dict):
        raise Refusal(
            422,
            "invalid_body",
            f"The body is {type_name(body)}; send a JSON object like {example}.",
        )
    return Document(raw, body)


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a name that stands twice: parsers differ in which one counts, and so who pays."""
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


def type_name(value: object) -> str:
    """What a JSON value is, in words that finish a sentence: "a list"."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
