"""The body of a streamed answer: what a provider sends, written on as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from flask import Response

from chatapp.blueprints.dispatch import Dispatch
from chatapp.conversation import failures_logged
from chatapp.providers import AnswerStream, Part, Progress, ProviderError
from chatapp.providers.event_stream import MIMETYPE

# No buffer between us and the client: nginx keeps what it is not told to send on.
HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Rendering(Protocol):
    """How a stream is written for its client."""

    def start(self) -> bytes:
        """What comes before the first part."""
        ...

    def part(self, part: Part) -> bytes:
        """One part."""
        ...

    def end(self, progress: Progress) -> bytes:
        """What comes after the last part of an answer that is whole."""
        ...

    def error(self, error: ProviderError) -> bytes:
        """What comes instead of the rest."""
        ...


class StreamAnswer:
    """Iterates over the bytes for the client. `close` ends the provider's call, wherever it is.

    An iterator of its own rather than a generator: a generator that was never begun, because the
    client left before the first byte, would not notice that it is closed.
    """

    def __init__(self, stream: AnswerStream, rendering: Rendering, dispatch: Dispatch) -> None:
        self._stream = stream
        self._rendering = rendering
        self._dispatch = dispatch
        self._client_left = False
        self._provider_is_done = False
        self._bytes = self._written()
        dispatch.departure.ends(self._leave)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._bytes)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """The client has everything, or has left. Called by the server, and harmless again."""
        self._dispatch.departure.close()
        self._stream.close()
        left = self._client_left or not self._is_decided
        self._dispatch.streamed(self._stream.progress, client_left=left)

    @property
    def _is_decided(self) -> bool:
        """Whether what becomes of the answer no longer depends on the client: it has ended, and at
        most its usage is still to come, or the provider has broken off."""
        return self._provider_is_done or self._stream.progress.finish_reason is not None

    def _leave(self) -> None:
        if not self._is_decided:
            self._client_left = True
            self._stream.abort()

    def _written(self) -> Iterator[bytes]:
        rendering = self._rendering
        try:
            if start := rendering.start():
                yield start
            with failures_logged(self._dispatch.model, unless=lambda: self._client_left):
                for part in self._stream:
                    self._dispatch.goes_on(self._stream.progress)
                    if written := rendering.part(part):
                        yield written
        except ProviderError as error:
            self._provider_is_done = True
            if not self._client_left:
                self._dispatch.broke_off(error)
            yield rendering.error(error)
        else:
            self._provider_is_done = True
            if end := rendering.end(self._stream.progress):
                yield end


def response(stream: AnswerStream, rendering: Rendering, dispatch: Dispatch) -> Response:
    """The response to the present request, whose body is this stream."""
    body = StreamAnswer(stream, rendering, dispatch)
    answer = Response(
        body,
        content_type=f"{MIMETYPE}; charset=utf-8",
        headers={**HEADERS, **stream.headers},
    )
    answer.call_on_close(body.close)
    return answer
