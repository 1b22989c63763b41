"""GET /v1/models, the one address that both vendors have: answered to each in his own way.

Anthropic's clients are known by the header that their protocol asks for; all others are OpenAI's.
"""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, jsonify, request

from chatapp.blueprints import model_choice
from chatapp.blueprints.anthropic_shape import AnthropicShape
from chatapp.blueprints.endpoint_errors import EndpointErrors
from chatapp.blueprints.openai_shape import OpenAIShape
from chatapp.blueprints.shape import Shape
from chatapp.services import current_services

bp = Blueprint("models_api", __name__, url_prefix="/v1")
OPENAI: Final = OpenAIShape()
ANTHROPIC: Final = AnthropicShape()
# What Anthropic writes of a model whose day nobody knows.
NO_DAY: Final = "1970-01-01T00:00:00Z"


def speaks_anthropic() -> bool:
    """Whether the present request is in Anthropic's protocol, by what it says itself."""
    return "anthropic-version" in request.headers


def present_shape() -> Shape:
    """The shape of whoever asks."""
    return ANTHROPIC if speaks_anthropic() else OPENAI


EndpointErrors(present_shape).install(bp)


@bp.get("/models")
def models() -> Response:
    """The models that can be asked in the asker's protocol."""
    names = current_services().conversation.models_of(
        present_shape().provider, model_choice.OFFLINE
    )
    listed = [_told(*each) for each in names.items()]
    if not speaks_anthropic():
        return jsonify(object="list", data=listed)
    ids = list(names)  # one page has them all; the offline model is always there
    return jsonify(data=listed, has_more=False, first_id=ids[0], last_id=ids[-1])


@bp.get("/models/<path:name>")
def model(name: str) -> Response:
    """One of them, by any of its names."""
    found = model_choice.served(name, by=present_shape().provider)
    return jsonify(_told(found.name, found.provider))


def _told(name: str, provider: str) -> dict[str, object]:
    if speaks_anthropic():
        return {"type": "model", "id": name, "display_name": name, "created_at": NO_DAY}
    return {"id": name, "object": "model", "created": 0, "owned_by": provider}
