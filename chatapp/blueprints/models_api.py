"""GET /v1/models, an address that both vendors have, in the format of the client's vendor."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, jsonify

from chatapp.web import allowed_models
from chatapp.web.current_request import current_request
from chatapp.web.formats import current_format, speaks_anthropic
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests.vendor import OFFLINE, served_model

bp = Blueprint("models_api", __name__, url_prefix="/v1")
# Anthropic's value for an unknown date.
UNKNOWN_DATE: Final = "1970-01-01T00:00:00Z"

FormatErrors(current_format).install(bp)


@bp.get("/models")
def models() -> Response:
    """The models that the caller may use in their protocol."""
    current = current_request()
    models = current.services.conversation.models_of(current_format().protocol, OFFLINE)
    names = allowed_models.allowed(current, models)
    listed = [_entry(*each) for each in names.items()]
    if not speaks_anthropic():
        return jsonify(object="list", data=listed)
    ids = list(names)  # all on one page
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return jsonify(data=listed, has_more=False, first_id=first, last_id=last)


@bp.get("/models/<path:name>")
def model(name: str) -> Response:
    """One model, by any of its names."""
    found = served_model(name, protocol=current_format().protocol)
    allowed_models.require(current_request(), found)
    return jsonify(_entry(found.name, found.provider))


def _entry(name: str, provider: str) -> dict[str, object]:
    if speaks_anthropic():
        return {"type": "model", "id": name, "display_name": name, "created_at": UNKNOWN_DATE}
    return {"id": name, "object": "model", "created": 0, "owned_by": provider}
