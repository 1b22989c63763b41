"""POST /chat: say something to a model. The blueprint that the limits by user and plan stand on."""

from __future__ import annotations

from dataclasses import replace

from flask import Blueprint, Response, g, jsonify, request

from chatapp.blueprints import chat_request, dispatch, stream_answer
from chatapp.blueprints.chat_stream import ChatRendering, usage_fields
from chatapp.services import current_services

bp = Blueprint("chat", __name__)


@bp.before_request
def read_request() -> None:
    """Check the body before the view, which is where limits are decided.

    So what is charged is always a request that can be answered, by a user and for a model that
    are known; a bad body costs nobody's plan anything.
    """
    if request.method == "POST":
        g.chat_request = chat_request.read(request, current_services().conversation)


@bp.post("/chat")
def chat() -> Response:
    """The model's reply to one message, whole or as it is made."""
    asked: chat_request.ChatRequest = g.chat_request
    turn, conversation = asked.turn, current_services().conversation
    call = dispatch.begin(conversation, turn.model)
    if asked.stream:
        stream = call.ask(lambda model, most: conversation.stream(replace(turn, model=model), most))
        return stream_answer.response(stream, ChatRendering(), call)
    reply = call.ask(lambda model, most: conversation.answer(replace(turn, model=model), most))
    call.answered(reply.usage, output_bytes=len(reply.text.encode("utf-8", "surrogatepass")))
    return jsonify(reply=reply.text, model=reply.model, usage=usage_fields(reply.usage))
