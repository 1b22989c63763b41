"""GET /v1/models, an address that both providers have, in the format of the client's provider."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, jsonify, request

from chatapp.web import allowed_models
from chatapp.web.current_request import current_request
from chatapp.web.errors import ApiError
from chatapp.web.formats import current_format, speaks_anthropic
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests.forwarded import OFFLINE, parameters, served_model

bp = Blueprint("models_api", __name__, url_prefix="/v1")
# Anthropic's value for an unknown date.
UNKNOWN_DATE: Final = "1970-01-01T00:00:00Z"
# Anthropic's; without a limit all models are on one page, for clients that read only the first.
LIMIT_MOST: Final = 1000

FormatErrors(current_format).install(bp)


@bp.get("/models")
def models() -> Response:
    """The models that the caller may use in their protocol."""
    current = current_request()
    models = current.services.router.models_of(current_format().protocol, OFFLINE)
    names = allowed_models.allowed(current, models)
    if not speaks_anthropic():
        return jsonify(object="list", data=[_entry(*model) for model in names.items()])
    ids, has_more = _page(list(names))
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    listed = [_entry(name, names[name]) for name in ids]
    return jsonify(data=listed, has_more=has_more, first_id=first, last_id=last)


@bp.get("/models/<path:name>")
def model(name: str) -> Response:
    """One model, by any of its names."""
    served = served_model(name, protocol=current_format().protocol)
    allowed_models.require(current_request(), served)
    return jsonify(_entry(served.name, served.upstream))


def _page(ids: list[str]) -> tuple[list[str], bool]:
    """Return the ids on the requested page, and whether there are more in its direction; ApiError
    (400) if the parameters are invalid."""
    names = ("limit", "after_id", "before_id")
    chosen = {name: values[0] for name, values in parameters(request, names).items()}
    limit = chosen.pop("limit", str(LIMIT_MOST))
    if not (limit.isdecimal() and 1 <= int(limit) <= LIMIT_MOST):
        raise _invalid("limit", f"is {limit[:20]!r}; send a number from 1 to {LIMIT_MOST}")
    if len(chosen) > 1:
        raise _invalid("after_id", 'is set beside "before_id"; send one of them')
    for name, cursor in chosen.items():
        if cursor not in ids:
            raise _invalid(
                name, "is not the id of a listed model; send the first or last id of a page"
            )
        before, after = ids[: ids.index(cursor)], ids[ids.index(cursor) + 1 :]
        ids = after if name == "after_id" else before
    page = ids[-int(limit) :] if "before_id" in chosen else ids[: int(limit)]
    return page, len(page) < len(ids)


def _invalid(name: str, problem: str) -> ApiError:
    return ApiError(400, "invalid_query", f'"{name}" {problem}.', param=name)


def _entry(name: str, upstream: str) -> dict[str, object]:
    """Return a model, with its sizes by Anthropic's names and those of OpenAI-compatible services;
    null if unknown."""
    catalogue = current_request().services.catalogue
    slug = catalogue.model(name, upstream).slug
    entry, is_listed = catalogue.entry(slug), slug in catalogue.entries
    can = {"image_input": "image" in entry.files, "pdf_input": "pdf" in entry.files}
    can |= {"thinking": entry.reasoning != "never", "batch": False}
    sizes: dict[str, object] = {
        "max_input_tokens": entry.context,
        "max_tokens": entry.max_output,
        "context_window": entry.context,
        "max_completion_tokens": entry.max_output,
        "capabilities": {n: {"supported": is_so} for n, is_so in can.items()}
        if is_listed
        else None,
    }
    if speaks_anthropic():
        named = {"type": "model", "id": name, "display_name": name, "created_at": UNKNOWN_DATE}
        return {**named, **sizes}
    return {"id": name, "object": "model", "created": 0, "owned_by": upstream, **sizes}
