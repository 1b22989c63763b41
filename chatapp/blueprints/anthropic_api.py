"""POST /v1/messages and count_tokens in Anthropic's protocol: `anthropic.Anthropic(base_url=…)`
works with this server unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flask import Blueprint, Response
from flask.globals import request_ctx

from chatapp.web import allowed_models
from chatapp.web.current_request import current_request
from chatapp.web.formats import ANTHROPIC
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests import forwarded
from chatapp.web.requests.forwarded import TokenCount
from chatapp.web.responses import respond_in_protocol, respond_with_count

bp = Blueprint("anthropic_api", __name__, url_prefix="/v1")
FormatErrors(lambda: ANTHROPIC).install(bp)

EXAMPLE: Final = (
    '{"model": "offline", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}'
)
# The version of the protocol and its betas: the caller's choice.
HEADERS: Final = ("anthropic-version", "anthropic-beta")


class _Fields(forwarded.MessageFields):
    max_tokens: TokenCount

    @property
    def most_output_tokens(self) -> int:
        return self.max_tokens


#: The bodies by the names of the views.
BODIES: Final[Mapping[str, type[forwarded.Fields]]] = {
    "messages": _Fields,
    "count_tokens": forwarded.MessageFields,
}
QUERY: Final = ("beta",)


@bp.before_request
def read_request() -> None:
    """Check the body before the view, in which limits are decided."""
    request = request_ctx.request  # not the proxy, which looks it up for each attribute
    if request.method == "POST":
        current = current_request()
        current.model_request = forwarded.read(
            request,
            BODIES[(request.endpoint or "").removeprefix(f"{bp.name}.")],
            protocol=ANTHROPIC.protocol,
            example=EXAMPLE,
            headers=HEADERS,
            query=QUERY,
        )
        allowed_models.check(current)


@bp.post("/messages")
def messages() -> Response:
    """A message, whole or in events."""
    return respond_in_protocol(ANTHROPIC)


@bp.post("/messages/count_tokens")
def count_tokens() -> Response:
    """The input tokens of a message."""
    return respond_with_count()
