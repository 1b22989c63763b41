"""Notices that a client disconnects while nothing is being sent to it.

A server notices a disconnect when it writes. While it waits for the provider it writes nothing, and
the provider would go on generating for a client that is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

#: Only Linux reports a disconnect at once; elsewhere it is noticed at the next write.
IS_SUPPORTED: Final = hasattr(select, "epoll")
#: A call is watched after at most this time. Most calls are over by then, and a thread that wakes
#: for each of them takes the interpreter from all others.
YOUNG_S: Final = 0.25


class DisconnectWatch:
    """One thread that watches the connections of all calls of this process.

    A client that only closes its own direction counts as disconnected; no HTTP client does that.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._alarm, select.EPOLLIN)
        self._lock = threading.Lock()
        self._young: dict[int, tuple[socket.socket, Callable[[], None]]] = {}
        self._watched: dict[int, tuple[socket.socket, Callable[[], None]]] = {}
        #: Whether the thread sleeps until a call wakes it, and whether one has begun since then.
        self._is_asleep, self._has_begun = True, False
        threading.Thread(target=self._run, name="client-watch", daemon=True).start()

    @contextmanager
    def watching(self, connection: socket.socket, gone: Callable[[], None]) -> Iterator[None]:
        """Call ``gone`` once, from another thread, if the client disconnects within the block."""
        number = connection.fileno()
        with self._lock:
            self._young[number] = (connection, gone)
            self._has_begun = True
            if self._is_asleep:
                self._is_asleep = False
                os.eventfd_write(self._alarm, 1)
        try:
            yield
        finally:
            with self._lock:
                is_young = self._young.pop(number, None) is not None
                if not is_young and self._watched.pop(number, None) is not None:
                    self._epoll.unregister(number)

    def _run(self) -> None:
        pause_s: float | None = None
        while True:
            events = self._epoll.poll(pause_s)
            for number, _ in events:
                if number == self._alarm:
                    os.eventfd_read(self._alarm)
                    continue
                with self._lock:
                    connection, gone = self._watched.get(number, (None, None))
                    try:
                        # The number may belong to another connection now.
                        if connection is not None and gone and _is_disconnected(connection):
                            gone()
                    except Exception:
                        log.exception("A client disconnected, and its call could not be ended")
            # The first call after a pause wakes this thread, and may be over soon.
            is_alarm = [number for number, _ in events] == [self._alarm]
            pause_s = YOUNG_S if is_alarm else self._watch_others()

    def _watch_others(self) -> float | None:
        """Watch the calls that are not over yet. Returns when to look for others; None: when one
        begins, because there was none since the last time."""
        with self._lock:
            for number, watched in self._young.items():
                with contextlib.suppress(OSError):  # another thread has closed it
                    self._epoll.register(number, select.EPOLLRDHUP | select.EPOLLONESHOT)
                    self._watched[number] = watched
            self._young.clear()
            has_begun, self._has_begun = self._has_begun, False
            self._is_asleep = not has_begun
        return YOUNG_S if has_begun else None


def _is_disconnected(connection: socket.socket) -> bool:
    """Return whether the client has closed the connection. Data that it sent before, such as
    another request or the end of TLS, is not read and does not count."""
    now = select.poll()
    now.register(connection, select.POLLRDHUP)
    return bool(now.poll(0))


class Disconnect:
    """The disconnect of one client, which is watched for until `close`.

    ``connection`` is the client's; if it is None, no disconnect is noticed.
    """

    def __init__(self, connection: socket.socket | None) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callback: Callable[[], None] | None = None
        self._watch = ExitStack()
        self._connection = connection if IS_SUPPORTED else None
        if self._connection is not None:
            self._watch.enter_context(disconnect_watch.get().watching(self._connection, self._note))

    @property
    def has_happened(self) -> bool:
        """Whether the client has disconnected. Looks at the connection: the watching thread may not
        have run since, after a pause of the whole process."""
        connection = self._connection
        return self._event.is_set() or (connection is not None and _is_disconnected(connection))

    def wait(self, seconds: float) -> bool:
        """Sleep for that time or until the client disconnects; True if it has."""
        return self._event.wait(seconds)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call this from another thread when the client disconnects, or now if it has."""
        with self._lock:
            self._callback = callback
            is_known = self._event.is_set()
        if is_known:
            callback()

    def close(self) -> None:
        """Stop watching. Needed before the connection is closed: its number is then reused."""
        self._connection = None
        self._watch.close()
        self._callback = None  # it refers to the call, which refers to this

    def _note(self) -> None:
        with self._lock:
            self._event.set()
            callback = self._callback
        if callback is not None:
            callback()


disconnect_watch: Final[PerProcess[DisconnectWatch]] = PerProcess(DisconnectWatch)
