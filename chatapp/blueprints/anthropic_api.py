"""POST /v1/messages and count_tokens in Anthropic's protocol: `anthropic.Anthropic(base_url=…)`
works with this server unchanged."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response

from chatapp.web.formats import ANTHROPIC
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests import forwarded
from chatapp.web.requests.forwarded import Address, TokenCount
from chatapp.web.responses import respond, respond_with_count
from ratelimit_ext import Limiter

bp = Blueprint("anthropic_api", __name__, url_prefix="/v1")
FormatErrors(lambda: ANTHROPIC).install(bp)

EXAMPLE: Final = (
    '{"model": "offline", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}'
)
# The version of the protocol and its betas: the caller's choice.
HEADERS: Final = ("anthropic-version", "anthropic-beta")
QUERY: Final = ("beta",)


class _Fields(forwarded.MessageFields):
    max_tokens: TokenCount

    @property
    def most_output_tokens(self) -> int:
        return self.max_tokens


ADDRESSES: Final = {
    "messages": Address(_Fields, EXAMPLE),
    "count_tokens": Address(forwarded.MessageFields, EXAMPLE),
}
forwarded.install(bp, ANTHROPIC.protocol, ADDRESSES, headers=HEADERS, query=QUERY)


@bp.post("/messages")
@Limiter.group("calls")
def messages() -> Response:
    return respond(lambda _: ANTHROPIC)


@bp.post("/messages/count_tokens")
@Limiter.group("counts")
def count_tokens() -> Response:
    return respond_with_count()
