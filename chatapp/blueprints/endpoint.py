"""An endpoint in a vendor's protocol: its requests are handed on, and the answers back."""

from __future__ import annotations

from flask import Response, jsonify

from chatapp.blueprints import dispatch, stream_answer
from chatapp.blueprints.compatible_request import CompatibleRequest
from chatapp.blueprints.dispatch import Dispatch
from chatapp.blueprints.passed_on import PassedOn
from chatapp.blueprints.shape import Shape
from chatapp.services import current_services


def answer(asked: CompatibleRequest, shape: Shape) -> Response:
    """Hand the request on and its answer back; the offline model's is made here."""
    call = dispatch.begin(current_services().conversation, asked.turn.model)
    if asked.turn.model.provider == shape.provider:
        return _handed_on(asked, shape, call)
    return _made_here(asked, shape, call)


def _handed_on(asked: CompatibleRequest, shape: Shape, call: Dispatch) -> Response:
    conversation, passage = current_services().conversation, asked.passage
    if asked.stream:
        stream = call.ask(lambda model, most: conversation.forward_stream(model, passage, most))
        return stream_answer.response(stream, PassedOn(shape), call)
    passed = call.ask(lambda model, most: conversation.forward(model, passage, most))
    call.answered(passed.usage, output_bytes=passed.output_bytes)
    return Response(passed.raw, headers=passed.headers, content_type=passed.content_type)


def _made_here(asked: CompatibleRequest, shape: Shape, call: Dispatch) -> Response:
    conversation, turn = current_services().conversation, asked.turn
    if asked.stream:
        rendering = shape.rendering(turn.model.name, asked.passage.fields)
        stream = call.ask(lambda _, most: conversation.stream(turn, most))
        return stream_answer.response(stream, rendering, call)
    reply = call.ask(lambda _, most: conversation.answer(turn, most))
    call.answered(reply.usage, output_bytes=len(reply.text.encode("utf-8", "surrogatepass")))
    return jsonify(shape.answer(reply))
