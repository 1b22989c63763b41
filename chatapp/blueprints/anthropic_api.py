"""POST /v1/messages and its count_tokens, as Anthropic has them: `anthropic.Anthropic(base_url=…)`
works with this server unchanged."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, g, jsonify, request
from pydantic import ValidationError

from chatapp.blueprints import compatible_request, endpoint, model_choice
from chatapp.blueprints.anthropic_shape import AnthropicShape
from chatapp.blueprints.compatible_request import CompatibleRequest, TokenCount
from chatapp.blueprints.endpoint_errors import EndpointErrors
from chatapp.conversation import Turn
from chatapp.estimates.tokens import input_tokens
from chatapp.services import current_services

bp = Blueprint("anthropic_api", __name__, url_prefix="/v1")
shape = AnthropicShape()
EndpointErrors(lambda: shape).install(bp)

COUNT: Final = f"{bp.name}.count_tokens"
EXAMPLE: Final = (
    '{"model": "offline", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}'
)
# Which version of the protocol, and which of its trials: the caller's choice.
HEADERS: Final = ("anthropic-version", "anthropic-beta")


class _Fields(compatible_request.Fields):
    max_tokens: TokenCount


@bp.before_request
def read_request() -> None:
    """Check the body before the view, which is where limits are decided."""
    if request.method != "POST":
        return
    document = compatible_request.read_document(request, example=EXAMPLE)
    read = compatible_request.Fields if request.endpoint == COUNT else _Fields
    try:
        fields = read.model_validate(document.fields)
    except ValidationError as error:
        compatible_request.refuse(error)
    model = model_choice.served(fields.model, by=shape.provider)
    g.chat_request = CompatibleRequest(
        passage=compatible_request.passage(request, document, headers=HEADERS, query=("beta",)),
        turn=Turn(compatible_request.last_text(fields.messages), model),
        stream=fields.stream or False,
        extras=compatible_request.extras(model, document.fields),
        most_output_tokens=fields.max_tokens if isinstance(fields, _Fields) else None,
    )


@bp.post("/messages")
def messages() -> Response:
    """A message, whole or in events."""
    return endpoint.answer(g.chat_request, shape)


@bp.post("/messages/count_tokens")
def count_tokens() -> Response:
    """The input tokens of a message: the provider's count, else our estimate. It is not a call:
    nothing is billed, so nothing is held, charged or kept in the ledger."""
    asked: CompatibleRequest = g.chat_request
    model, passage = asked.turn.model, asked.passage
    counted = current_services().conversation.count(model, passage)
    if counted is None:
        return jsonify(input_tokens=input_tokens(model, passage.fields).expected)
    return Response(counted.raw, headers=counted.headers, content_type=counted.content_type)
