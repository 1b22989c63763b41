"""Cancels a wait for an upstream from another thread, before the upstream has begun to answer.

After that, the response knows its connection. Before, only the HTTP library's connection pool does,
which does not expose it. So the pool's network backend is wrapped, and records which thread reads
from which connection.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx2

#: The end of a request's head.
HEAD_END: Final = b"\r\n\r\n"
#: A larger body is sent after its head instead of being copied.
JOINED_MAX_BYTES: Final = 64 * 1024
#: A read may take this much longer than it should: setting a timeout is a system call.
NEARLY: Final = 1.01
#: The way from a response's stream to the parser of its connection, which has what follows it.
LEFT_BY: Final = ("_httpcore_stream", "_stream", "_connection", "_h11_state")

_of_thread: Final[dict[int, Wait]] = {}
_deadline: Final = threading.local()


class Wait:
    """The reads of one thread from upstreams. Any other thread may end them, once and for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_ended = False
        self._read_from: Stream | None = None
        #: Whether an upstream was disconnected that had received the request.
        self.hung_up = False
        #: Whether an answer was waited for: the request has been sent and may be billed.
        self.was_asked = False

    def end(self) -> None:
        """Disconnect the upstream that is read from, now or next."""
        with self._lock:
            self._has_ended = True
            self._hang_up()

    def begin_read(self, stream: Stream) -> None:
        """Before the thread reads from this connection."""
        with self._lock:
            self.was_asked = True
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
def waiting(wait: Wait) -> Iterator[None]:
    """Within the block, this thread's reads from upstreams belong to ``wait``."""
    thread = threading.get_ident()
    _of_thread[thread] = wait
    try:
        yield
    finally:
        del _of_thread[thread]


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


def with_cancellable_reads(client: httpx2.Client) -> httpx2.Client:
    """Return the same client, with reads that a Wait can end.

    httpx2 has no public access to the network backend of its connections, which httpcore2 offers.
    If a later version keeps it elsewhere, waits end at their timeout.
    """
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001
        pool = getattr(transport, "_pool", None)
        backend = getattr(pool, "_network_backend", None)
        if pool is not None and backend is not None:
            pool._network_backend = Backend(backend)  # noqa: SLF001
    return client


def hang_up(stream: Any, how: int = socket.SHUT_RDWR) -> None:
    """Shut a network stream's connection down, also while another thread reads from it."""
    connection = stream.get_extra_info("socket")
    if connection is not None:
        # The plain socket's shutdown, also under TLS, whose own is not thread-safe. Closing the
        # socket would not wake a thread that reads from it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, how)


def close(response: httpx2.Response) -> None:
    """Close a response. If bytes came after its end, its connection ends, too: httpcore2 would keep
    it, and take them for the answer to the next request, which may be another caller's."""
    left: Any = response.stream
    for name in LEFT_BY:
        left = getattr(left, name, None)
    if left is not None and left.trailing_data[0]:
        response.extensions["network_stream"].close()
    response.close()


class Backend:
    """A network backend of httpcore2 around another. Its streams record who reads from them."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def connect_tcp(self, *args: Any, **kwargs: Any) -> Stream:
        return Stream(self._backend.connect_tcp(*args, **kwargs))


class Stream:
    """A network stream that reports each read to the reading thread's Wait.

    httpcore2 writes the head of a request and its body apart, as two packets. The head is kept for
    the next write, so that they are one: fewer system calls, here and at the receiver.

    For each request its pool asks of every idle connection whether its upstream has closed it, or
    has sent something. Here the one that is used is asked, before its first write: the pool takes
    another one then. Each system call lets other threads take the interpreter.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._head = b""
        #: Whether the next write begins another request.
        self._is_used = False
        #: The socket, if a read is nothing but its `recv`, and its timeout; 0 if unknown.
        is_plain = type(stream).__name__ == "SyncStream"
        self._socket = stream.get_extra_info("socket") if is_plain else None
        self._timeout_s = 0.0
        self.close = stream.close

    def get_extra_info(self, info: str) -> Any:
        return info != "is_readable" and self._stream.get_extra_info(info)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._is_used:
            self._is_used = False
            if self._stream.get_extra_info("is_readable"):
                import httpcore2  # noqa: PLC0415 - loaded with the SDKs, which take long

                raise httpcore2.ConnectionNotAvailable
        self._timeout_s = timeout or 0.0
        head, self._head = self._head, b""
        if not head and buffer.endswith(HEAD_END):
            self._head = buffer
        elif len(buffer) <= JOINED_MAX_BYTES:
            self._stream.write(head + buffer, timeout)
        else:
            self._stream.write(head, timeout)
            self._stream.write(buffer, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._head:  # nothing followed it
            self.write(b"", timeout)
        at_s = getattr(_deadline, "at_s", None)
        if at_s is not None:
            timeout = max(0.001, min(timeout or math.inf, at_s - time.monotonic()))
        self._is_used = True
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
        except OSError as error:
            import httpcore2  # noqa: PLC0415

            is_late = isinstance(error, TimeoutError)
            raise (httpcore2.ReadTimeout if is_late else httpcore2.ReadError)(error) from error
        finally:
            if wait is not None:
                wait.end_read()

    def start_tls(self, *args: Any, **kwargs: Any) -> Stream:
        return Stream(self._stream.start_tls(*args, **kwargs))
