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
from collections.abc import Callable
from typing import Final, TypeAlias

from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

#: Only Linux reports a disconnect at once; elsewhere it is noticed at the next write.
IS_SUPPORTED: Final = hasattr(select, "epoll")
DISCONNECTS: Final = select.EPOLLRDHUP | select.EPOLLONESHOT if IS_SUPPORTED else 0
#: A call is watched after at most this time. Most calls are over by then, and a thread that wakes
#: for each of them takes the interpreter from all others.
YOUNG_S: Final = 0.25
#: The connection of a call, and what to call if its client disconnects.
Watched: TypeAlias = tuple[socket.socket, Callable[[], object]]


class DisconnectWatch:
    """One thread that watches the connections of all calls of this process.

    A client that only closes its own direction counts as disconnected; no HTTP client does that.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._alarm, select.EPOLLIN)
        self._lock = threading.Lock()
        self._young: dict[int, Watched] = {}
        self._watched: dict[int, Watched] = {}
        #: Whether the thread sleeps until a call wakes it, and whether one has begun since then.
        self._is_asleep, self._has_begun = True, False
        threading.Thread(target=self._run, name="client-watch", daemon=True).start()

    def begin(self, connection: socket.socket, gone: Callable[[], object]) -> int:
        """Call ``gone`` once, from another thread, if the client disconnects before `end`. Returns
        the connection's number, for `end`."""
        number = connection.fileno()
        with self._lock:
            self._young[number] = (connection, gone)
            self._has_begun = True
            wakes, self._is_asleep = self._is_asleep, False
        if wakes:
            os.eventfd_write(self._alarm, 1)
        return number

    def end(self, number: int) -> None:
        """Stop watching. Needed before the connection is closed: its number is then reused."""
        with self._lock:
            if self._young.pop(number, None) is None:
                self._watched.pop(number, None)

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
            young, self._young = self._young, {}
            self._watched |= young
            has_begun, self._has_begun = self._has_begun, False
            self._is_asleep = not has_begun
        # Not with the lock: all calls would wait for it at each of these system calls. What a call
        # has left registered when it ended, the next one on its connection uses again.
        for number in young:
            with contextlib.suppress(OSError):  # another thread has closed it
                try:
                    self._epoll.modify(number, DISCONNECTS)
                except FileNotFoundError:
                    self._epoll.register(number, DISCONNECTS)
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
        self._changed = threading.Condition()
        self._has_left = False
        self._callback: Callable[[], None] | None = None
        self._connection = connection if IS_SUPPORTED else None
        if self._connection is not None:
            self._number = disconnect_watch.get().begin(self._connection, self._note)

    @property
    def has_happened(self) -> bool:
        """Whether the client has disconnected. Looks at the connection: the watching thread may not
        have run since, after a pause of the whole process."""
        connection = self._connection
        return self._has_left or (connection is not None and _is_disconnected(connection))

    def wait(self, seconds: float) -> bool:
        """Sleep for that time or until the client disconnects; True if it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._has_left, seconds)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call this from another thread when the client disconnects, or now if it has."""
        with self._changed:
            self._callback = callback
            is_known = self._has_left
        if is_known:
            callback()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            disconnect_watch.get().end(self._number)
        self._callback = None  # it refers to the call, which refers to this

    def _note(self) -> None:
        with self._changed:
            self._has_left = True
            self._changed.notify_all()
            callback = self._callback
        if callback is not None:
            callback()


disconnect_watch: Final[PerProcess[DisconnectWatch]] = PerProcess(DisconnectWatch)
