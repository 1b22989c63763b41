"""Notices clients that leave while nothing is being sent to them.

A server that writes to a connection finds out that nobody reads; one that waits for its provider,
for a minute of thinking perhaps, does not, and the provider goes on generating for nobody.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

# The kernel tells of this one; elsewhere than on Linux, leaving is noticed at the next write.
AT_HAND: Final = hasattr(select, "epoll")


class ClientWatch:
    """One thread that waits for the connections of all streams of this process.

    A client that only closes its own direction (`nc -N`) counts as gone; no HTTP client does.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[socket.socket, Callable[[], None]]] = {}
        threading.Thread(target=self._run, name="client-watch", daemon=True).start()

    @contextmanager
    def watching(self, connection: socket.socket, gone: Callable[[], None]) -> Iterator[None]:
        """Call ``gone`` once, from another thread, if the client leaves within the block."""
        number = connection.fileno()
        with self._lock:
            self._watched[number] = (connection, gone)
            self._epoll.register(number, select.EPOLLRDHUP | select.EPOLLONESHOT)
        try:
            yield
        finally:
            with self._lock:
                del self._watched[number]
                self._epoll.unregister(number)

    def _run(self) -> None:
        while True:
            for number, _ in self._epoll.poll():
                with self._lock:
                    connection, gone = self._watched.get(number, (None, None))
                    # The number may be another connection's by now.
                    if connection is None or gone is None or not _has_left(connection):
                        continue
                    try:
                        gone()
                    except Exception:
                        log.exception("a client has left, and its call could not be ended")


def _has_left(connection: socket.socket) -> bool:
    """Whether its end has come. What it sent before, as a next request or the farewell of TLS, is
    left where it is, and says nothing."""
    now = select.poll()
    now.register(connection, select.POLLRDHUP)
    return bool(now.poll(0))


class Departure:
    """The leaving of one client, for which is watched until `close`.

    ``connection`` is the client's; None where nobody knows it, and then nobody leaves.
    """

    def __init__(self, connection: socket.socket | None) -> None:
        self._told = threading.Event()
        self._lock = threading.Lock()
        self._ends: Callable[[], None] | None = None
        self._watch = ExitStack()
        if connection is not None and AT_HAND:
            self._watch.enter_context(client_watch.get().watching(connection, self._left))

    @property
    def has_happened(self) -> bool:
        """Whether the client has left."""
        return self._told.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep for so long, or until the client has left; whether it has."""
        return self._told.wait(seconds)

    def ends(self, what: Callable[[], None]) -> None:
        """Call that when the client leaves, from another thread, or now where it has left."""
        with self._lock:
            self._ends = what
            has_left = self.has_happened
        if has_left:
            what()

    def close(self) -> None:
        """Watch no more: before the connection is closed, as its number will be another's."""
        self._watch.close()

    def _left(self) -> None:
        with self._lock:
            self._told.set()
            what = self._ends
        if what is not None:
            what()


client_watch: Final[PerProcess[ClientWatch]] = PerProcess(ClientWatch)
