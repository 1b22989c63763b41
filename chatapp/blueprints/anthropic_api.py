"""POST /v1/messages and count_tokens in Anthropic's protocol: `anthropic.Anthropic(base_url=…)`
works with this server unchanged."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, g, jsonify, request
from pydantic import ValidationError

from chatapp.conversation import Turn
from chatapp.estimates.tokens import input_tokens
from chatapp.services import current_services
from chatapp.web import vendor_endpoint
from chatapp.web.formats.anthropic import AnthropicFormat
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests import vendor
from chatapp.web.requests.model import served_model
from chatapp.web.requests.vendor import TokenCount, VendorRequest

bp = Blueprint("anthropic_api", __name__, url_prefix="/v1")
wire_format = AnthropicFormat()
FormatErrors(lambda: wire_format).install(bp)

COUNT: Final = f"{bp.name}.count_tokens"
EXAMPLE: Final = (
    '{"model": "offline", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}'
)
# The version of the protocol and its betas: the caller's choice.
HEADERS: Final = ("anthropic-version", "anthropic-beta")


class _Fields(vendor.Fields):
    max_tokens: TokenCount


@bp.before_request
def read_request() -> None:
    """Check the body before the view, in which limits are decided."""
    if request.method != "POST":
        return
    document = vendor.read_document(request, example=EXAMPLE)
    read = vendor.Fields if request.endpoint == COUNT else _Fields
    try:
        fields = read.model_validate(document.fields)
    except ValidationError as error:
        vendor.refuse(error)
    model = served_model(fields.model, provider=wire_format.provider)
    g.chat_request = VendorRequest(
        raw_request=vendor.raw_request(request, document, headers=HEADERS, query=("beta",)),
        turn=Turn(vendor.last_text(fields.messages), model),
        stream=fields.stream or False,
        extras=vendor.extras(model, document.fields),
        most_output_tokens=fields.max_tokens if isinstance(fields, _Fields) else None,
    )


@bp.post("/messages")
def messages() -> Response:
    """A message, whole or in events."""
    return vendor_endpoint.answer(g.chat_request, wire_format)


@bp.post("/messages/count_tokens")
def count_tokens() -> Response:
    """The input tokens of a message: the provider's count, or else an estimate. It is not a call:
    nothing is billed, so nothing is held, charged or recorded in the ledger."""
    vendor_request: VendorRequest = g.chat_request
    model, raw_request = vendor_request.turn.model, vendor_request.raw_request
    counted = current_services().conversation.count(model, raw_request)
    if counted is None:
        return jsonify(input_tokens=input_tokens(model, raw_request.fields).expected)
    return Response(counted.raw, headers=counted.headers, content_type=counted.content_type)
