"""Where a vendor's SDK finds nothing: told in its protocol's shape, with what there is instead.

That is a method of the SDK which this server does not have, or a base_url that is not quite right.
Such requests reach no blueprint: who speaks is told by the header and the address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flask import request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from chatapp.blueprints import models_api
from chatapp.blueprints.anthropic_shape import AnthropicShape
from chatapp.blueprints.endpoint_errors import EndpointErrors
from chatapp.blueprints.openai_shape import OpenAIShape
from chatapp.blueprints.refusal import Refusal
from chatapp.blueprints.shape import Shape
from ratelimit_ext import RateLimitExceeded

VERSION: Final = "v1"
MODELS: Final = "GET /v1/models and GET /v1/models/<name>"
# Where the path of an SDK of OpenAI's begins after its base_url, which is its user's to get right.
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
    """``has`` is what there is of its protocol; ``without_version`` and ``with_too_many`` are what
    is wrong where the path has no /v1, and more than one."""

    name: str
    shape: Shape
    has: str
    without_version: str
    with_too_many: str


OPENAI: Final = _Vendor(
    name="OpenAI",
    shape=OpenAIShape(),
    has=f"POST /v1/chat/completions, {MODELS}",
    without_version="the base_url of OpenAI's SDK must end in /v1",
    with_too_many="base_url must end in a single /v1",
)
ANTHROPIC: Final = _Vendor(
    name="Anthropic",
    shape=AnthropicShape(),
    has=f"POST /v1/messages, POST /v1/messages/count_tokens, {MODELS}",
    without_version="an address of Anthropic's begins with /v1, right after the server's name",
    with_too_many="base_url must not end in /v1, which Anthropic's SDK adds by itself",
)


def answer(error: HTTPException) -> HTTPException | WerkzeugResponse | None:
    """The answer to the present request, which is at no address of this server; None where nobody's
    protocol is spoken."""
    parts = request.path.strip("/").split("/")
    versions = next((n for n, part in enumerate(parts) if part != VERSION), len(parts))
    vendor = _spoken(parts[versions:], versions=versions)
    if vendor is None:
        return None
    if error.code == 404:
        error = Refusal(404, "not_found", _sentence(vendor, versions))
    errors = EndpointErrors(lambda: vendor.shape)
    return (
        errors.denied(error) if isinstance(error, RateLimitExceeded) else errors.http_error(error)
    )


def _spoken(rest: list[str], *, versions: int) -> _Vendor | None:
    if models_api.speaks_anthropic() or rest[:1] == ["messages"]:
        return ANTHROPIC
    if versions or rest[-2:] == ["chat", "completions"] or OPENAI_RESOURCES.issuperset(rest[:1]):
        return OPENAI
    return None


def _sentence(vendor: _Vendor, versions: int) -> str:
    asked = f"{request.method} {request.path[:SHOWN_CHARACTERS]}"
    hint = {0: f"; {vendor.without_version}", 1: ""}.get(versions, f"; {vendor.with_too_many}")
    return (
        f"There is nothing at {asked}{hint}. Of {vendor.name}'s protocol this server has "
        f"{vendor.has}; use one of these."
    )
