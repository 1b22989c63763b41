"""Ends another thread's wait for a provider that has not begun to answer.

Once a provider has begun, its response knows the connection. Until then only the client's library
does, and it tells nobody, so its network backend is asked to: which thread reads from what.
"""

from __future__ import annotations

import contextlib
import socket
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx2

_read_by: Final[dict[int, Stream]] = {}


def can_be_ended(client: httpx2.Client) -> httpx2.Client:
    """The same client, whose waits `end_wait` can end from now on.

    httpx2 has no public way to its connections' backend, which httpcore2 offers. Should it not be
    found where it is today, waits end by themselves, at their timeout.
    """
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        backend = getattr(pool, "_network_backend", None)
        if pool is not None and backend is not None:
            pool._network_backend = Backend(backend)
    return client


def end_wait(thread: int) -> None:
    """Hang up on the provider that this thread reads from now; nothing where it reads from none."""
    stream = _read_by.get(thread)
    if stream is not None:
        hang_up(stream)


def hang_up(stream: Any) -> None:
    """End a network stream's connection, also under somebody who waits for it."""
    connection = stream.get_extra_info("socket")
    if connection is not None:
        # The plain socket's, also under TLS: that of TLS is not for a second thread. To close it
        # would wake nobody who waits for it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Backend:
    """A network backend of httpcore2 over another, all of whose streams are noted."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def connect_tcp(self, *args: Any, **kwargs: Any) -> Stream:
        return Stream(self._backend.connect_tcp(*args, **kwargs))

    def connect_unix_socket(self, *args: Any, **kwargs: Any) -> Stream:
        return Stream(self._backend.connect_unix_socket(*args, **kwargs))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class Stream:
    """A network stream that is known while somebody reads from it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.write = stream.write
        self.close = stream.close
        self.get_extra_info = stream.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        reader = get_ident()
        _read_by[reader] = self
        try:
            return self._stream.read(max_bytes, timeout)  # type: ignore[no-any-return]
        finally:
            del _read_by[reader]

    def start_tls(self, *args: Any, **kwargs: Any) -> Stream:
        return Stream(self._stream.start_tls(*args, **kwargs))
