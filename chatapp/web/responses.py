"""The response to a call: a body, or a stream that is written as the provider's parts arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

from flask import Response, jsonify
from werkzeug.datastructures import Headers

from chatapp.calls.upstream_call import UpstreamCall
from chatapp.catalogue.usage import Usage
from chatapp.estimates.estimate import UNKNOWN_HISTORY_TOKENS
from chatapp.estimates.tokens import input_tokens
from chatapp.ledger.stored_answers import StoredAnswers
from chatapp.services import Services
from chatapp.upstreams import AnswerStream, Part, RawAnswer, UpstreamError
from chatapp.upstreams.event_stream import MIMETYPE
from chatapp.upstreams.offline import Offline
from chatapp.web.current_call import CHEAPER_HEADER, begin_call
from chatapp.web.current_request import current_request
from chatapp.web.formats import AnswerFormat

# Nothing may buffer between this server and the client; nginx buffers unless it is asked not to.
HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

#: Writes the parts of a stream for a client.
Write = Callable[[Iterable[Part]], Iterator[bytes]]


def respond(format_of: Callable[[UpstreamCall], AnswerFormat]) -> Response:
    """Call the model of the current request, and write its answer in the format of the call; an
    answer in the protocol of the request is forwarded as it is."""
    current = current_request()
    wanted, router, call = current.wanted, current.services.router, begin_call(current)
    turn, answer_format = wanted.turn, format_of(call)
    raw = None if turn.model.protocol == Offline.name else wanted.raw_request
    if raw is not None:
        forward = router.forward_stream if wanted.stream else router.forward
        answer = call.run(lambda model, most: forward(model, raw, most))
        if isinstance(answer, RawAnswer):
            call.finish_answer(answer.usage, generated=answer.generated)
            _note(answer.ids, answer.usage, call, current.services.stored_answers)
            response = raw_response(answer)
        else:
            response = _stream_response(answer, _write_raw, answer_format, call)
    elif wanted.stream:
        stream = call.run(lambda model, most: router.stream(turn._replace(model=model), most))
        write = partial(answer_format.events, progress=stream.progress, fields=wanted.fields)
        response = _stream_response(stream, write, answer_format, call)
    else:
        reply = call.run(lambda model, most: router.answer(turn._replace(model=model), most))
        call.finish_answer(reply.usage, generated=reply.generated)
        response = jsonify(answer_format.answer_body(reply))
    if current.is_cheaper:
        response.headers[CHEAPER_HEADER] = turn.model.name
    return response


def respond_with_count(**beside: str) -> Response:
    """Return the input tokens of the current request: the provider's count, or else an estimate,
    with the fields ``beside`` it. It is no call: nothing is billed, charged or recorded."""
    current = current_request()
    wanted = current.wanted
    model, raw_request = wanted.turn.model, wanted.raw_request
    assert raw_request is not None
    counted = current.services.router.count(model, raw_request)
    if counted is not None:
        return raw_response(counted)
    history_tokens = wanted.history_tokens
    if history_tokens is None:
        history_tokens = UNKNOWN_HISTORY_TOKENS
    estimated = input_tokens(model, wanted.fields).expected + history_tokens
    return jsonify(**beside, input_tokens=estimated)


def raw_response(answer: RawAnswer) -> Response:
    return WholeResponse(answer.raw, headers=answer.headers, content_type=answer.content_type)


class WholeResponse(Response):
    """A body with its length. The server gets the headers without werkzeug's copy of them, which
    would only make a Location absolute and add the length."""

    def get_wsgi_headers(self, _: Any) -> Headers:
        return self.headers


def _write_raw(parts: Iterable[Part]) -> Iterator[bytes]:
    """Yield a provider's stream as it is, for a client that speaks its protocol."""
    for part in parts:
        if part.raw:
            yield part.raw


class StreamBody:
    """Iterates over the bytes for the client. `close` ends the provider's call at any point.

    Not a generator: closing a generator that was never started, because the client disconnected
    before the first byte, has no effect.
    """

    def __init__(
        self,
        stream: AnswerStream,
        write: Write,
        answer_format: AnswerFormat,
        call: UpstreamCall,
        services: Services,
    ) -> None:
        self._stream = stream
        self._format = answer_format
        self._call = call
        self._services = services
        self._ids: tuple[str, ...] = ()
        self._client_left = False
        self._upstream_is_done = False
        self._count = 0
        self._bytes = self._written(write)
        call.disconnect.on_disconnect(self._abort)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._bytes)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """The client has received everything, or has disconnected: then the answer may have to be
        read on for its bill. May be called again."""
        if not self._is_decided:
            self._client_left = True
            if self._call.reads_on(self._stream.progress):
                self._call.end_later(self._stream.abort)
                for _ in self._bytes:
                    pass
        self._call.disconnect.close()
        self._stream.close()
        self._finish()

    def _finish(self) -> None:
        left = self._client_left or not self._is_decided
        self._call.finish_stream(self._stream.progress, client_left=left)

    @property
    def _is_decided(self) -> bool:
        """Whether the client can no longer change the outcome: the answer has ended, and at most
        its usage is still to come, or the provider has broken off."""
        return self._upstream_is_done or self._stream.progress.finish_reason is not None

    def _abort(self) -> None:
        """The client has disconnected: end the provider's call, unless its bill is waited for."""
        is_decided, progress = self._is_decided, self._stream.progress
        self._client_left = self._client_left or not is_decided
        if not is_decided and self._call.reads_on(progress):
            self._call.end_later(self._stream.abort)
        elif not is_decided or progress.usage_is_final:
            self._stream.abort()

    def _written(self, write: Write) -> Iterator[bytes]:
        try:
            yield from write(self._parts())
        except UpstreamError as error:
            self._stream.close()
            # A stream that was disconnected for its costs ends with an error of its own.
            seen = UpstreamError("overspent", status=200) if self._call.is_overspent else error
            self._end(None if self._client_left else seen)
            yield self._format.error_event(seen, number=self._count)

    def _end(self, error: UpstreamError | None) -> None:
        """The answer has ended; so does the call, before its client may ask what it cost."""
        self._upstream_is_done = True
        if error is not None:
            self._call.note_error(error)
        self._finish()

    def _parts(self) -> Iterator[Part]:
        """Yield the parts for the client, and none once it has left; they end early if the rest is
        not worth its price."""
        noted, call, progress = None, self._call, self._stream.progress
        with self._services.router.call(call.model, unless=lambda: self._client_left):
            for part in self._stream:
                call.note_progress(progress)
                if progress.ids is not self._ids:
                    # Before the client gets the event with them.
                    self._ids = progress.ids
                    _note(self._ids, progress.usage, call, self._services.stored_answers)
                if call.is_overspent:
                    # What has been sent by now is billed, and counted.
                    self._stream.abort(reads_on=True)
                    call.end_later(self._stream.abort)
                elif not self._client_left:
                    self._count += 1
                    yield part
                elif progress.usage is not noted:
                    noted = progress.usage
                    if not (self._is_decided or call.reads_on(progress)):
                        return
        if call.is_overspent:
            raise UpstreamError("overspent", status=200)
        if self._is_decided or not self._client_left:
            self._end(progress.error)


def _note(
    ids: tuple[str, ...], usage: Usage | None, call: UpstreamCall, answers: StoredAnswers
) -> None:
    """Remember whose answer that is, if the provider keeps it."""
    if ids:
        tokens = None if usage is None else usage.input_tokens + usage.output_tokens
        user, model = call.record.user, call.model
        answers.note(ids, user=user, provider=model.upstream, key=model.key, tokens=tokens)


def _stream_response(
    stream: AnswerStream, write: Write, answer_format: AnswerFormat, call: UpstreamCall
) -> Response:
    body = StreamBody(stream, write, answer_format, call, current_request().services)
    response = Response(
        body, content_type=f"{MIMETYPE}; charset=utf-8", headers={**HEADERS, **stream.headers}
    )
    response.call_on_close(body.close)
    return response
