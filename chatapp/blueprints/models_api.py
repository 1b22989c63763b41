"""GET /v1/models, an address that both vendors have, in the format of the client's vendor."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, jsonify

from chatapp.services import current_services
from chatapp.web.formats import current_format, speaks_anthropic
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests.vendor import OFFLINE, served_model

bp = Blueprint("models_api", __name__, url_prefix="/v1")
# Anthropic's value for an unknown date.
UNKNOWN_DATE: Final = "1970-01-01T00:00:00Z"

FormatErrors(current_format).install(bp)


@bp.get("/models")
def models() -> Response:
    """The models that can be called in the caller's protocol."""
    names = current_services().conversation.models_of(current_format().provider, OFFLINE)
    listed = [_entry(*each) for each in names.items()]
    if not speaks_anthropic():
        return jsonify(object="list", data=listed)
    ids = list(names)  # all on one page; there is always the offline model
    return jsonify(data=listed, has_more=False, first_id=ids[0], last_id=ids[-1])


@bp.get("/models/<path:name>")
def model(name: str) -> Response:
    """One model, by any of its names."""
    found = served_model(name, provider=current_format().provider)
    return jsonify(_entry(found.name, found.provider))


def _entry(name: str, provider: str) -> dict[str, object]:
    if speaks_anthropic():
        return {"type": "model", "id": name, "display_name": name, "created_at": UNKNOWN_DATE}
    return {"id": name, "object": "model", "created": 0, "owned_by": provider}
