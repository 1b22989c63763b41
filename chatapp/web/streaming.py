"""The body of a streamed answer: the provider's parts, written as they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from flask import Response

from chatapp.calls.provider_call import ProviderCall
from chatapp.conversation import failures_logged
from chatapp.providers import AnswerStream, Part, Progress, ProviderError
from chatapp.providers.event_stream import MIMETYPE

# Nothing may buffer between this server and the client; nginx buffers unless it is asked not to.
HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class StreamWriter(Protocol):
    """Writes a stream in a client's wire format."""

    def start(self) -> bytes:
        """The bytes before the first part."""
        ...

    def part(self, part: Part) -> bytes: ...

    def end(self, progress: Progress) -> bytes:
        """The bytes after the last part of a whole answer."""
        ...

    def error(self, error: ProviderError) -> bytes:
        """The bytes that end a stream that broke off."""
        ...


class StreamBody:
    """Iterates over the bytes for the client. `close` ends the provider's call at any point.

    An iterator of its own rather than a generator: a generator that was never started, because the
    client disconnected before the first byte, does not notice that it is closed.
    """

    def __init__(self, stream: AnswerStream, writer: StreamWriter, call: ProviderCall) -> None:
        self._stream = stream
        self._writer = writer
        self._call = call
        self._client_left = False
        self._provider_is_done = False
        self._bytes = self._written()
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
        """The client has received everything, or has disconnected. May be called again."""
        self._call.disconnect.close()
        self._stream.close()
        left = self._client_left or not self._is_decided
        self._call.finish_stream(self._stream.progress, client_left=left)

    @property
    def _is_decided(self) -> bool:
        """Whether the client can no longer change the outcome: the answer has ended, and at most
        its usage is still to come, or the provider has broken off."""
        return self._provider_is_done or self._stream.progress.finish_reason is not None

    def _abort(self) -> None:
        if not self._is_decided:
            self._client_left = True
            self._stream.abort()

    def _written(self) -> Iterator[bytes]:
        writer = self._writer
        try:
            if start := writer.start():
                yield start
            with failures_logged(self._call.model, unless=lambda: self._client_left):
                for part in self._stream:
                    self._call.note_progress(self._stream.progress)
                    if written := writer.part(part):
                        yield written
        except ProviderError as error:
            self._provider_is_done = True
            if not self._client_left:
                self._call.note_error(error)
            yield writer.error(error)
        else:
            self._provider_is_done = True
            if end := writer.end(self._stream.progress):
                yield end


def stream_response(stream: AnswerStream, writer: StreamWriter, call: ProviderCall) -> Response:
    """The response to the current request with this stream as its body."""
    body = StreamBody(stream, writer, call)
    response = Response(
        body,
        content_type=f"{MIMETYPE}; charset=utf-8",
        headers={**HEADERS, **stream.headers},
    )
    response.call_on_close(body.close)
    return response
