"""POST /chat: a message to a model. The limits by user and plan belong to this blueprint."""

from __future__ import annotations

from dataclasses import replace

from flask import Blueprint, Response, g, jsonify, request

from chatapp.services import current_services
from chatapp.web.current_call import begin_call
from chatapp.web.formats.chat import ChatStreamWriter, usage_fields
from chatapp.web.requests import chat as chat_body
from chatapp.web.streaming import stream_response

bp = Blueprint("chat", __name__)


@bp.before_request
def read_request() -> None:
    """Check the body before the view, in which limits are decided.

    So a request is charged only if it can be answered: the user and the model are known.
    """
    if request.method == "POST":
        g.chat_request = chat_body.read(request, current_services().conversation)


@bp.post("/chat")
def chat() -> Response:
    """The model's reply to one message, whole or streamed."""
    chat_request: chat_body.ChatRequest = g.chat_request
    turn, conversation = chat_request.turn, current_services().conversation
    call = begin_call()
    if chat_request.stream:
        stream = call.run(lambda model, most: conversation.stream(replace(turn, model=model), most))
        return stream_response(stream, ChatStreamWriter(), call)
    reply = call.run(lambda model, most: conversation.answer(replace(turn, model=model), most))
    call.finish_answer(reply.usage, output_bytes=len(reply.text.encode("utf-8", "surrogatepass")))
    return jsonify(reply=reply.text, model=reply.model, usage=usage_fields(reply.usage))
