"""Server-sent events, read off the wire and written to it.

https://html.spec.whatwg.org/multipage/server-sent-events.html, as far as providers use it: an
event is what stands before an empty line, with `event:` and `data:` fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

MIMETYPE: Final = "text/event-stream"
# No provider sends events that are larger; what never ends must not fill the memory.
EVENT_MAX_BYTES: Final = 8 * 1024 * 1024
END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
LINE_END: Final = re.compile(r"\r\n|\n|\r")


class Event(NamedTuple):
    """One event: its name ("" where it has none), its data, and its bytes on the wire."""

    name: str
    data: str
    raw: bytes


def read(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events in these bytes, each as soon as it is whole.

    Comments and other blocks without data come as events without data, so that nothing that was
    sent is lost. What is cut off in its middle is dropped. ValueError where an event is no UTF-8
    or grows beyond EVENT_MAX_BYTES.
    """
    pending = bytearray()
    for chunk in chunks:
        searched = max(0, len(pending) - 3)
        pending += chunk
        while end := END.search(pending, searched):
            yield _event(bytes(pending[: end.end()]))
            del pending[: end.end()]
            searched = 0
        if len(pending) > EVENT_MAX_BYTES:
            raise ValueError(f"an event is larger than {EVENT_MAX_BYTES} bytes")
    if pending.endswith((b"\n", b"\r")):  # whole lines, and only the empty one is missing
        yield _event(bytes(pending) + b"\n")


def write(data: Mapping[str, object] | str, *, name: str | None = None) -> bytes:
    """One event with this data, as JSON where it is a mapping."""
    # As ASCII, because a line separator within the data must not end its line.
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def _event(raw: bytes) -> Event:
    name, data = "", []
    for line in LINE_END.split(raw.decode("utf-8")):
        field, _, value = line.partition(":")
        if field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))
    return Event(name, "\n".join(data), raw)
