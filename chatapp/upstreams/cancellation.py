"""Cancels a wait for an upstream from another thread, before the upstream has begun to answer.

After that, the answer knows its connection. Before, only the thread that waits does. So the network
backend of httpcore2 is wrapped, and records which thread reads from which connection.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from chatapp.upstreams import UpstreamError

#: A read may take this much longer than it should: setting a timeout is a system call.
NEARLY: Final = 1.01

_of_thread: Final[dict[int, Wait]] = {}
_deadline: Final = threading.local()


class Wait:
    """The reads of one thread from upstreams, within a ``with`` block. Any other thread may end
    them, once and for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_ended = False
        self._read_from: Stream | None = None
        #: Whether an upstream, or a proxy before it, was disconnected.
        self.hung_up = False
        #: Whether an answer was waited for: the request has been sent and may be billed.
        self.was_asked = False

    def __enter__(self) -> None:
        _of_thread[threading.get_ident()] = self

    def __exit__(self, *_: object) -> None:
        del _of_thread[threading.get_ident()]

    def end(self) -> None:
        """Disconnect the upstream that is read from, now or next."""
        with self._lock:
            self._has_ended = True
            self._hang_up()

    def begin_read(self, stream: Stream) -> None:
        """Before the thread reads from this connection."""
        with self._lock:
            self.was_asked = stream.has_request
            self._read_from = stream
            if self._has_ended:  # while the request was sent, when no read could be ended
                self._hang_up()

    def end_read(self) -> None:
        """After that. The connection may serve another request from now on."""
        with self._lock:
            self._read_from = None

    def _hang_up(self) -> None:
        if self._read_from is not None:
            self.hung_up = True
            hang_up(self._read_from)


@contextmanager
def reads_within(seconds: float) -> Iterator[None]:
    """Within the block, all reads of this thread from upstreams together end by then: a timeout is
    that of a single read, and an answer could arrive byte by byte."""
    _deadline.at_s = time.monotonic() + seconds
    try:
        yield
    finally:
        del _deadline.at_s


def was_hung_up() -> bool:
    """Return whether this thread's call has disconnected its upstream."""
    wait = _of_thread.get(threading.get_ident())
    return wait is not None and wait.hung_up


def hang_up(stream: Any, how: int = socket.SHUT_RDWR) -> None:
    """Shut a network stream's connection down, also while another thread reads from it."""
    connection = stream.get_extra_info("socket")
    if connection is not None:
        # The plain socket's shutdown, also under TLS, whose own is not thread-safe. Closing the
        # socket would not wake a thread that reads from it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, how)


def written(connection: socket.socket, data: bytes) -> int:
    """Return how many bytes the socket has taken at once. Its own methods would first set a timeout
    and wait until it takes some: two more system calls. They raise what is wrong."""
    try:
        return 0 if connection.gettimeout() is None else os.write(connection.fileno(), data)
    except OSError:
        return 0


class ConnectionFailed(UpstreamError):
    """There was no connection, or it ended before the answer did."""


class Stream:
    """A network stream of httpcore2 that reports each read to the reading thread's Wait."""

    #: What a proxy needs in each request: an origin before its path, and lines of headers.
    proxied = "", ""
    #: Whether what is read answers a request, and not the connection to a proxy.
    has_request = True

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        #: The socket, if a read is nothing but its `recv`, and its timeout; 0 if unknown.
        is_plain = type(stream).__name__ == "SyncStream"
        self._socket = stream.get_extra_info("socket") if is_plain else None
        self._timeout_s = 0.0
        self.close = stream.close
        self.get_extra_info = stream.get_extra_info

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if type(self._socket) is socket.socket and (sent := written(self._socket, buffer)):
            buffer = buffer[sent:]
        if buffer:
            self._timeout_s = timeout or 0.0
            self._stream.write(buffer, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        at_s = getattr(_deadline, "at_s", None)
        if at_s is not None:
            timeout = max(0.001, min(timeout or math.inf, at_s - time.monotonic()))
        wait = _of_thread.get(threading.get_ident())
        if wait is not None:
            wait.begin_read(self)
        try:
            if self._socket is None:
                return self._stream.read(max_bytes, timeout)  # type: ignore[no-any-return]
            # As the stream does, but a timeout that is hardly another one is left.
            if not timeout or not timeout <= self._timeout_s <= timeout * NEARLY:
                self._socket.settimeout(timeout)
                self._timeout_s = timeout or 0.0
            return self._socket.recv(max_bytes)  # type: ignore[no-any-return]
        finally:
            if wait is not None:
                wait.end_read()
