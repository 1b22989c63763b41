"""Ends another thread's wait for a provider that has not begun to answer.

Once a provider has begun, its response knows the connection. Until then only the client's library
does, and it tells nobody, so its network backend is asked to: which thread reads from what.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from chatapp.providers import Timeouts

if TYPE_CHECKING:
    import httpx2

_of_thread: Final[dict[int, Wait]] = {}


class Wait:
    """What one thread waits for from providers, which any other may end, once and for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_ended = False
        self._read_from: Stream | None = None
        #: Whether a provider that had been asked was hung up on.
        self.hung_up = False
        #: Whether an answer was waited for: the request has been sent, and may be billed.
        self.was_asked = False

    def end(self) -> None:
        """Hang up on the provider that is read from, now or next."""
        with self._lock:
            self._has_ended = True
            self._hang_up()

    def begins(self, stream: Stream) -> None:
        """The thread reads from this one now."""
        with self._lock:
            self.was_asked = True
            self._read_from = stream
            if self._has_ended:  # since the prompt's last byte, say, with nobody to hang up on
                self._hang_up()

    def is_over(self) -> None:
        """The thread has read: what the connection is used for from now on, nobody ends."""
        with self._lock:
            self._read_from = None

    def _hang_up(self) -> None:
        if self._read_from is not None:
            self.hung_up = True
            hang_up(self._read_from)


@contextmanager
def waiting(wait: Wait) -> Iterator[None]:
    """Within the block, what this thread reads from providers is part of that wait."""
    thread = threading.get_ident()
    _of_thread[thread] = wait
    try:
        yield
    finally:
        del _of_thread[thread]


def can_be_ended(client: httpx2.Client) -> httpx2.Client:
    """The same client, whose waits can be ended from now on.

    httpx2 has no public way to its connections' backend, which httpcore2 offers. Should it not be
    found where it is today, waits end by themselves, at their timeout.
    """
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001
        pool = getattr(transport, "_pool", None)
        backend = getattr(pool, "_network_backend", None)
        if pool is not None and backend is not None:
            pool._network_backend = Backend(backend)  # noqa: SLF001
    return client


def timeout(timeouts: Timeouts, *, stream: bool) -> httpx2.Timeout:
    """How long a call waits for its provider: a stream, at first, for its first byte."""
    import httpx2  # noqa: PLC0415 - with the SDKs, which import it: only where there is a key

    read_s = timeouts.first_byte_s if stream else timeouts.read_s
    return httpx2.Timeout(read_s, connect=timeouts.connect_s)


def wait_longer(response: httpx2.Response, timeouts: Timeouts) -> None:
    """A stream has begun: from now on each of its reads may take as long as any."""
    with contextlib.suppress(RuntimeError, KeyError):  # no request, or none of the library's
        response.request.extensions["timeout"]["read"] = timeouts.read_s


def hang_up(stream: Any) -> None:
    """End a network stream's connection, also under somebody who waits for it."""
    connection = stream.get_extra_info("socket")
    if connection is not None:
        # The plain socket's, also under TLS: that of TLS is not for a second thread. To close it
        # would wake nobody who waits for it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Backend:
    """A network backend of httpcore2 over another, whose streams tell their readers' waits."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def connect_tcp(self, *args: Any, **kwargs: Any) -> Stream:
        return Stream(self._backend.connect_tcp(*args, **kwargs))

    def connect_unix_socket(self, *args: Any, **kwargs: Any) -> Stream:
        return Stream(self._backend.connect_unix_socket(*args, **kwargs))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class Stream:
    """A network stream that tells its reader's wait, while it is read from."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.write = stream.write
        self.close = stream.close
        self.get_extra_info = stream.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        wait = _of_thread.get(threading.get_ident())
        if wait is None:
            return self._stream.read(max_bytes, timeout)  # type: ignore[no-any-return]
        wait.begins(self)
        try:
            return self._stream.read(max_bytes, timeout)  # type: ignore[no-any-return]
        finally:
            wait.is_over()

    def start_tls(self, *args: Any, **kwargs: Any) -> Stream:
        return Stream(self._stream.start_tls(*args, **kwargs))
