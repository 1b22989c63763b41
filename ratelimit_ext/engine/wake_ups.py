"""Wakes requests of this process that wait for their turn.

A script publishes the id of a ticket whose turn has come, or comes earlier (line.lua). While
requests wait, one thread of the process for each server reads these ids. If it loses its
connection, it wakes all of them, and each asks the storage again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from ratelimit_ext.core.threads import forget_in_child, start_thread

#: The same as in line.lua. All applications of a server publish their ids there.
CHANNEL: Final = "ratelimit_ext:turns"
#: How often a thread without messages checks that requests still wait, in seconds.
LISTEN_S: Final = 1.0
#: How long it pauses if a server does not let it listen, in seconds.
AGAIN_S: Final = 5.0

_logger = logging.getLogger("ratelimit_ext")


class WakeUps:
    def __init__(self) -> None:
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Start empty in a forked child: the waiting requests and the threads are the parent's."""
        self._waiting: dict[int, threading.Event] = {}
        #: By the id of their client.
        self._threads: dict[int, threading.Thread | None] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def waiting(self, hold_id: int, client: Any, woken: threading.Event) -> Iterator[None]:
        """Set the event when it may be the turn of this ticket. ``client`` is that of the server,
        or ``None`` in memory."""
        with self._lock:
            self._waiting[hold_id] = woken
            thread = self._threads.get(id(client))
            if client is not None and not (thread and thread.is_alive()):
                self._threads[id(client)] = start_thread("turns", self._listen, client)
        try:
            yield
        finally:
            with self._lock:
                del self._waiting[hold_id]

    def wake(self, hold_id: int) -> None:
        if (woken := self._waiting.get(hold_id)) is not None:
            woken.set()

    def wake_all(self) -> None:
        for woken in tuple(self._waiting.values()):
            woken.set()

    def _listen(self, client: Any) -> None:
        pause_s = LISTEN_S
        while not self._is_over(client):
            try:
                self._hear(client)
            except Exception:
                _logger.debug("The turns of waiting requests cannot be read", exc_info=True)
                self.wake_all()  # a restarted storage has lost their tickets
                time.sleep(pause_s)
                pause_s = AGAIN_S

    def _hear(self, client: Any) -> None:
        with contextlib.closing(client.pubsub(ignore_subscribe_messages=True)) as messages:
            messages.subscribe(CHANNEL)
            while self._waiting:
                message = messages.get_message(timeout=LISTEN_S)
                if message is not None:
                    self.wake(int(message["data"]))

    def _is_over(self, client: Any) -> bool:
        """Return whether no request waits any more; the next one starts another thread."""
        with self._lock:
            if not self._waiting:
                self._threads.pop(id(client), None)
            return not self._waiting


wake_ups: Final = WakeUps()
