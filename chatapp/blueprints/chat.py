"""POST /chat: say something to a model. The blueprint that the limits by user and plan stand on."""

from __future__ import annotations

from dataclasses import asdict
from typing import cast

from flask import Blueprint, Response, current_app, g, jsonify, request

from chatapp.blueprints import chat_request
from chatapp.conversation import Conversation

bp = Blueprint("chat", __name__)

EXTENSION_KEY = "chatapp.conversation"


@bp.before_request
def read_request() -> None:
    """Check the body before the view, which is where limits are decided.

    So what is charged is always a request that can be answered, by a user and for a model that
    are known; a bad body costs nobody's plan anything.
    """
    if request.method == "POST":
        g.chat_request = chat_request.read(request, _conversation())


@bp.post("/chat")
def chat() -> Response:
    """The model's reply to one message."""
    asked: chat_request.ChatRequest = g.chat_request
    reply = _conversation().answer(asked.turn)
    return jsonify(reply=reply.text, model=reply.model, usage=asdict(reply.usage))


def _conversation() -> Conversation:
    return cast(Conversation, current_app.extensions[EXTENSION_KEY])
