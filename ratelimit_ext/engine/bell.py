"""Wakes requests of this process that wait for a slot of calls in flight.

A release publishes whose turn it is: the id of a hold (reservations.lua). One thread of a process
for each server reads that, while requests wait.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any, Final

from ratelimit_ext.core.threads import forget_in_child, start_thread

#: As in reservations.lua. The ids are those of all applications of a server.
CHANNEL: Final = "ratelimit_ext:turns"
#: How long a thread without a message looks whether requests still wait, in seconds.
LISTEN_S: Final = 1.0

_logger = logging.getLogger("ratelimit_ext")


class Bell:
    def __init__(self) -> None:
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """In a forked child: the requests that wait, and the threads, have stayed in the parent."""
        self._waiting: dict[int, tuple[str, threading.Event]] = {}
        #: By the id of their client.
        self._threads: dict[int, threading.Thread | None] = {}
        self._changes = threading.Lock()

    @contextlib.contextmanager
    def waiting(self, hold_id: int, key: str, client: Any) -> Iterator[threading.Event]:
        """Give an event that is set when it may be the turn of this hold in this bucket. ``client``
        is that of the server, or ``None`` in memory."""
        woken = threading.Event()
        with self._changes:
            self._waiting[hold_id] = key, woken
            thread = self._threads.get(id(client))
            if client is not None and not (thread and thread.is_alive()):
                self._threads[id(client)] = start_thread("turns", self._listen, client)
        try:
            yield woken
        finally:
            with self._changes:
                del self._waiting[hold_id]

    def ring(self, hold_id: int) -> None:
        """It is the turn of this hold."""
        if (found := self._waiting.get(hold_id)) is not None:
            found[1].set()

    def ring_for(self, key: str) -> None:
        """A slot of this bucket is free."""
        for name, woken in tuple(self._waiting.values()) if self._waiting else ():
            if name == key:
                woken.set()

    def _listen(self, client: Any) -> None:
        try:
            with contextlib.closing(client.pubsub(ignore_subscribe_messages=True)) as messages:
                messages.subscribe(CHANNEL)
                while True:
                    message = messages.get_message(timeout=LISTEN_S)
                    if message is not None:
                        self.ring(int(message["data"]))
                    with self._changes:
                        if not self._waiting:
                            del self._threads[id(client)]
                            return
        except Exception:  # the next request that waits begins another
            _logger.debug("The turns of waiting requests cannot be read", exc_info=True)


bell: Final = Bell()
