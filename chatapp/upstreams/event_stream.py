"""Server-sent events: parsed from an upstream, written to a client, and streams of answers in them.

https://html.spec.whatwg.org/multipage/server-sent-events.html, as far as providers use it: an
event ends with an empty line and has `event:` and `data:` fields.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from chatapp.upstreams import Completion, Part, Progress, Quota, UpstreamError
from chatapp.upstreams.cancellation import ConnectionFailed

if TYPE_CHECKING:
    from chatapp.upstreams.transport import Answer

MIMETYPE: Final = "text/event-stream"
#: Larger than any provider's event. An endless event must not fill the memory.
EVENT_MAX_BYTES: Final = 8 * 1024 * 1024
END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
LINE_END: Final = re.compile(r"\r\n|\n|\r")


#: Makes a named tuple of its items, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__


class Event(NamedTuple):
    """One event: its name ("" without one), its data, and its bytes on the wire."""

    name: str
    data: str
    raw: bytes


def read(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Yield the events in these bytes, each as soon as it is complete.

    Comments and other blocks without data are events with empty data, so that every byte can be
    passed on. An incomplete last event is dropped. ValueError if an event is not UTF-8 or is larger
    than EVENT_MAX_BYTES.
    """
    pending = bytearray()
    for chunk in chunks:
        if (
            not pending
            and chunk.startswith(b"data: ")
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n")
            and b"\r" not in chunk
        ):
            # One whole event of one line, as most chunks of OpenAI are.
            yield _new(Event, ("", chunk[6:-2].decode("utf-8"), chunk))
            continue
        if not pending and (end := END.search(chunk)) and end.end() == len(chunk):
            yield _event(chunk)  # one whole event, as most chunks are
            continue
        searched = max(0, len(pending) - 3)
        pending += chunk
        while end := END.search(pending, searched):
            yield _event(bytes(pending[: end.end()]))
            del pending[: end.end()]
            searched = 0
        if len(pending) > EVENT_MAX_BYTES:
            raise ValueError(f"an event is larger than {EVENT_MAX_BYTES} bytes")
    if pending.endswith((b"\n", b"\r")):  # complete lines: only the empty one is missing
        yield _event(bytes(pending) + b"\n")


def write(data: Mapping[str, object] | str, *, name: str | None = None) -> bytes:
    """One event with this data; a mapping is written as JSON."""
    # As ASCII, because a line separator within the data must not end its line.
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def _event(raw: bytes) -> Event:
    name, data, text = "", [], raw.decode("utf-8")
    for line in LINE_END.split(text) if "\r" in text else text.split("\n"):
        field, _, value = line.partition(":")
        if field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))
    return Event(name, "\n".join(data), raw)


class EventReader(Protocol):
    """A protocol's meaning of events. ``over`` is set by the last event that matters."""

    progress: Progress
    over: bool

    def read(self, event: Event) -> Part:
        """Return what the event adds. ValueError if unreadable, UpstreamError if it is an error."""


class EventStream:
    """An AnswerStream over ``answer``, whose body has not been read. ``lenient`` passes events on
    that ``reader`` cannot parse, for clients that may; otherwise they are errors."""

    def __init__(
        self,
        answer: Answer,
        reader: EventReader,
        *,
        headers: Mapping[str, str],
        quotas: tuple[Quota, ...],
        lenient: bool,
    ) -> None:
        self._answer = answer
        self._reader = reader
        self._lenient = lenient
        self.headers = headers
        self.quotas = quotas
        self.progress = reader.progress

    def __iter__(self) -> Iterator[Part]:
        try:
            for event in read(self._answer.decoded()):
                try:
                    part = self._reader.read(event)
                except (ValueError, RecursionError):
                    if not self._lenient:
                        raise
                    part = Part("", event.raw)  # the client may understand it
                if part[0] or part[1]:
                    yield part
        except ConnectionFailed:
            if not self._reader.over:
                raise
        except (ValueError, RecursionError) as error:
            raise UpstreamError("malformed", message=str(error)) from error
        finally:
            self.close()
        if self.progress.finish_reason is None and not self.progress.failed:
            raise UpstreamError("unavailable", message="the stream ended too early")

    def close(self) -> None:
        self._answer.close()

    def abort(self, *, reads_on: bool = False) -> None:
        self._answer.abort(socket.SHUT_WR if reads_on else socket.SHUT_RDWR)


class WholeStream:
    """An AnswerStream of a whole answer, word by word, without a delay."""

    headers: Final[Mapping[str, str]] = {}

    def __init__(self, completion: Completion) -> None:
        self._completion = completion
        self.quotas = completion.quotas
        self.progress = Progress(model=completion.model)

    def __iter__(self) -> Iterator[Part]:
        for text in re.split("(?= )", self._completion.text):
            self.progress.generated.append(text)
            yield Part(text, b"")
        self.progress.usage = self._completion.usage
        self.progress.usage_is_final = self._completion.usage is not None
        self.progress.finish_reason = self._completion.finish_reason

    def close(self) -> None:
        pass

    def abort(self, *, reads_on: bool = False) -> None:
        pass
