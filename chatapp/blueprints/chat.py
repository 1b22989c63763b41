"""POST /chat: a message to a model. The limits by user and plan belong to this blueprint."""

from __future__ import annotations

from flask import Blueprint, Response
from flask.globals import request_ctx

from chatapp.web import allowed_models
from chatapp.web.current_request import current_request
from chatapp.web.formats.chat import ChatFormat
from chatapp.web.requests import chat as chat_body
from chatapp.web.responses import respond

bp = Blueprint("chat", __name__)


@bp.before_request
def read_request() -> None:
    """Check the body before the view, in which limits are decided: a request is charged only if it
    can be answered."""
    request = request_ctx.request  # not the proxy, which looks it up for each attribute
    if request.method == "POST":
        current = current_request()
        current.model_request = chat_body.read(request, current.services.router)
        allowed_models.check(current)


@bp.post("/chat")
def chat() -> Response:
    """The model's reply to a message or a conversation, whole or streamed."""
    return respond(ChatFormat)
