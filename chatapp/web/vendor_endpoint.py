"""An endpoint in a vendor's protocol: it forwards requests, and returns the answers."""

from __future__ import annotations

from flask import Response, jsonify

from chatapp.calls.provider_call import ProviderCall
from chatapp.providers import Part, Progress, ProviderError
from chatapp.services import current_services
from chatapp.web import provider_errors
from chatapp.web.current_call import begin_call
from chatapp.web.formats.wire_format import WireFormat
from chatapp.web.requests.vendor import VendorRequest
from chatapp.web.streaming import stream_response


class PassThroughWriter:
    """A provider's stream, byte by byte, for a client that speaks its protocol."""

    def __init__(self, wire_format: WireFormat) -> None:
        self._format = wire_format

    def start(self) -> bytes:
        return b""

    def part(self, part: Part) -> bytes:
        return part.raw

    def end(self, progress: Progress) -> bytes:
        return b""

    def error(self, error: ProviderError) -> bytes:
        return self._format.error_event(provider_errors.report_for_sdk(error))


def answer(vendor_request: VendorRequest, wire_format: WireFormat) -> Response:
    """The provider's answer to a request; the offline model's answer is made here."""
    call = begin_call()
    if vendor_request.turn.model.provider == wire_format.provider:
        return _forward(vendor_request, wire_format, call)
    return _answer_offline(vendor_request, wire_format, call)


def _forward(
    vendor_request: VendorRequest, wire_format: WireFormat, call: ProviderCall
) -> Response:
    conversation, raw_request = current_services().conversation, vendor_request.raw_request
    if vendor_request.stream:
        stream = call.run(lambda model, most: conversation.forward_stream(model, raw_request, most))
        return stream_response(stream, PassThroughWriter(wire_format), call)
    raw_answer = call.run(lambda model, most: conversation.forward(model, raw_request, most))
    call.finish_answer(raw_answer.usage, output_bytes=raw_answer.output_bytes)
    return Response(
        raw_answer.raw, headers=raw_answer.headers, content_type=raw_answer.content_type
    )


def _answer_offline(
    vendor_request: VendorRequest, wire_format: WireFormat, call: ProviderCall
) -> Response:
    conversation, turn = current_services().conversation, vendor_request.turn
    if vendor_request.stream:
        writer = wire_format.stream_writer(turn.model.name, vendor_request.raw_request.fields)
        stream = call.run(lambda _, most: conversation.stream(turn, most))
        return stream_response(stream, writer, call)
    reply = call.run(lambda _, most: conversation.answer(turn, most))
    call.finish_answer(reply.usage, output_bytes=len(reply.text.encode("utf-8", "surrogatepass")))
    return jsonify(wire_format.answer_body(reply))
