"""A vendor's SDK calls an unknown address: an error in its wire format that names the known ones.

The SDK's method has no endpoint here, or its base_url is wrong. Such a request reaches no
blueprint; header and address show which vendor's SDK it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flask import request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from chatapp.web.errors import ApiError
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.formats.selection import ANTHROPIC as ANTHROPIC_FORMAT
from chatapp.web.formats.selection import OPENAI as OPENAI_FORMAT
from chatapp.web.formats.selection import speaks_anthropic
from chatapp.web.formats.wire_format import WireFormat
from ratelimit_ext import RateLimitExceeded

VERSION: Final = "v1"
MODELS: Final = "GET /v1/models and GET /v1/models/<name>"
# The first segments of OpenAI's paths after the base_url, which its user may have got wrong.
OPENAI_RESOURCES: Final = frozenset(
    {
        *("assistants", "audio", "batches", "completions", "conversations", "embeddings", "files"),
        *("fine_tuning", "images", "models", "moderations", "realtime", "responses", "threads"),
        *("uploads", "vector_stores", "videos"),
    }
)
SHOWN_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class _Vendor:
    """``has`` are the known addresses; ``without_version`` and ``with_too_many`` are the hints
    for a path without /v1, and with more than one."""

    name: str
    wire_format: WireFormat
    has: str
    without_version: str
    with_too_many: str


OPENAI: Final = _Vendor(
    name="OpenAI",
    wire_format=OPENAI_FORMAT,
    has=f"POST /v1/chat/completions, {MODELS}",
    without_version="the base_url of OpenAI's SDK must end in /v1",
    with_too_many="base_url must end in a single /v1",
)
ANTHROPIC: Final = _Vendor(
    name="Anthropic",
    wire_format=ANTHROPIC_FORMAT,
    has=f"POST /v1/messages, POST /v1/messages/count_tokens, {MODELS}",
    without_version="an address of Anthropic's begins with /v1, right after the server's name",
    with_too_many="base_url must not end in /v1, which Anthropic's SDK adds by itself",
)


def answer(error: HTTPException) -> HTTPException | WerkzeugResponse | None:
    """The answer to the current request, whose address is unknown; None if it is in no vendor's
    protocol."""
    parts = request.path.strip("/").split("/")
    versions = next((n for n, part in enumerate(parts) if part != VERSION), len(parts))
    vendor = _vendor(parts[versions:], versions=versions)
    if vendor is None:
        return None
    if error.code == 404:
        error = ApiError(404, "not_found", _message(vendor, versions))
    errors = FormatErrors(lambda: vendor.wire_format)
    return (
        errors.denied(error) if isinstance(error, RateLimitExceeded) else errors.http_error(error)
    )


def _vendor(rest: list[str], *, versions: int) -> _Vendor | None:
    if speaks_anthropic() or rest[:1] == ["messages"]:
        return ANTHROPIC
    if versions or rest[-2:] == ["chat", "completions"] or OPENAI_RESOURCES.issuperset(rest[:1]):
        return OPENAI
    return None


def _message(vendor: _Vendor, versions: int) -> str:
    requested = f"{request.method} {request.path[:SHOWN_CHARACTERS]}"
    hint = {0: f"; {vendor.without_version}", 1: ""}.get(versions, f"; {vendor.with_too_many}")
    return (
        f"There is nothing at {requested}{hint}. Of {vendor.name}'s protocol this server has "
        f"{vendor.has}; use one of these."
    )
