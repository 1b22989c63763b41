"""OpenAI's addresses that generate nothing: stored responses, and counting tokens.

A stored response is only its user's: for all others it is a 404, as if it did not exist.
"""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, request

from chatapp.services import current_services
from chatapp.upstreams import RawRequest
from chatapp.web.errors import ApiError
from chatapp.web.formats import OPENAI
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests import forwarded
from chatapp.web.requests.forwarded import Address, InputFields
from chatapp.web.responses import raw_response, respond_with_count
from ratelimit_ext import Limiter

bp = Blueprint("openai_stored", __name__, url_prefix="/v1/responses")
Limiter.group("counts")(bp)
FormatErrors(lambda: OPENAI).install(bp)

PATH: Final = "/responses"
EXAMPLE: Final = '{"model": "offline", "input": "hello"}'
#: The parameters of these addresses that are forwarded.
QUERY: Final = ("include", "include[]", "after", "before", "limit", "order")
STREAM: Final = "stream"


forwarded.install(bp, OPENAI.protocol, {"count": Address(InputFields, EXAMPLE, PATH)})


@bp.post("/input_tokens")
def count() -> Response:
    return respond_with_count(object="response.input_tokens")


@bp.get("/<id_>")
@bp.delete("/<id_>")
def response(id_: str) -> Response:
    return _forward(id_, id_)


@bp.post("/<id_>/cancel")
def cancel(id_: str) -> Response:
    """Cancel a response in the background. This server starts none, so the provider refuses."""
    return _forward(id_, f"{id_}/cancel")


@bp.get("/<id_>/input_items")
def input_items(id_: str) -> Response:
    return _forward(id_, f"{id_}/input_items")


def _forward(id_: str, object_path: str) -> Response:
    """The provider's answer to the current request, if the caller made the response."""
    query = forwarded.parameters(request, (*QUERY, STREAM))
    if query.pop(STREAM, ["false"]) != ["false"]:
        message = "A stored response cannot be streamed. Leave stream out to get it whole."
        raise ApiError(400, "unsupported_stream", message, param=STREAM)
    answer = forwarded.own_answers([id_]).get(id_)
    if answer is None:
        message = f"Response with id {id_[: forwarded.SHOWN_CHARACTERS]!r} not found."
        raise ApiError(404, "response_not_found", message, param="response_id")
    method = "GET" if request.method == "HEAD" else request.method
    sent = RawRequest(
        b"", {}, query=query, path=PATH, object_path=object_path, method=method, key=answer.key
    )
    return raw_response(current_services().router.fetch(answer.provider, sent))
