"""POST /chat: a message to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flask import Blueprint, Response
from flask.globals import request_ctx

from chatapp.upstreams import FileKind
from chatapp.web import allowed_models
from chatapp.web.current_request import CurrentRequest, current_request
from chatapp.web.errors import ApiError
from chatapp.web.formats.chat import ChatFormat
from chatapp.web.requests import chat as chat_body
from chatapp.web.responses import respond
from ratelimit_ext import Limiter

bp = Blueprint("chat", __name__)

WORDS: Final[Mapping[FileKind, str]] = {"image": "images", "pdf": "PDF files"}
PROTOCOLS: Final = ("openai", "anthropic")
#: How many of the models that take the files are named.
SHOWN: Final = 3


@bp.before_request
def read_request() -> None:
    """Check the body before the view, which is charged only if it can be answered."""
    request = request_ctx.request  # not the proxy, which looks it up for each attribute
    if request.method == "POST":
        current = current_request()
        # It may contain files.
        request.max_content_length = current.services.settings.max_body_bytes
        current.model_request = chat_body.read(request, current.services.router)
        allowed_models.check(current)
        turn = current.model_request.turn
        if turn.files or turn.history:
            _check_files(current)


def _check_files(current: CurrentRequest) -> None:
    """ApiError (422) if the model is known not to take the files of the conversation."""
    turn, catalogue = current.wanted.turn, current.services.catalogue
    kinds = turn.file_kinds
    missing = kinds.difference(catalogue.entry(turn.model.slug).files)
    if not missing:
        return
    models = allowed_models.allowed(current, current.services.router.models_of(*PROTOCOLS))
    names = dict.fromkeys([*catalogue.defaults.values(), *models])  # the cheap ones first
    able = [n for n in names if n in models and kinds.issubset(catalogue.entry(n).files)]
    others = f"Choose one that does, as {', '.join(able[:SHOWN])}, or leave" if able else "Leave"
    kinds_text = " and ".join(WORDS[kind] for kind in sorted(missing))
    raise ApiError(
        422,
        "unsupported_files",
        f'The model "{turn.model.name}" takes no {kinds_text} here. {others} the files out.',
        param="files",
    )


@bp.post("/chat")
@Limiter.group("calls")
def chat() -> Response:
    """The model's reply to a message or a conversation, whole or streamed."""
    return respond(ChatFormat)
