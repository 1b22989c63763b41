"""Wakes requests of this process that wait for their turn.

A script publishes whose turn has come, or comes earlier: the id of a ticket (line.lua). One thread
of a process for each server reads that, while requests wait. When it loses its connection, all of
them look for themselves.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any, Final

from ratelimit_ext.core.threads import forget_in_child, start_thread

#: As in line.lua. The ids are those of all applications of a server.
CHANNEL: Final = "ratelimit_ext:turns"
#: How long a thread without a message looks whether requests still wait, in seconds.
LISTEN_S: Final = 1.0
#: How long it pauses if a server does not let it listen.
AGAIN_S: Final = 5.0

_logger = logging.getLogger("ratelimit_ext")


class Bell:
    def __init__(self) -> None:
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """In a forked child: the requests that wait, and the threads, have stayed in the parent."""
        self._waiting: dict[int, tuple[Collection[str], threading.Event]] = {}
        #: By the id of their client.
        self._threads: dict[int, threading.Thread | None] = {}
        self._changes = threading.Lock()

    @contextlib.contextmanager
    def waiting(
        self, hold_id: int, keys: Collection[str], client: Any
    ) -> Iterator[threading.Event]:
        """Give an event that is set when it may be the turn of this ticket in one of these buckets.
        ``client`` is that of the server, or ``None`` in memory."""
        woken = threading.Event()
        with self._changes:
            self._waiting[hold_id] = keys, woken
            thread = self._threads.get(id(client))
            if client is not None and not (thread and thread.is_alive()):
                self._threads[id(client)] = start_thread("turns", self._listen, client)
        try:
            yield woken
        finally:
            with self._changes:
                del self._waiting[hold_id]

    def ring(self, hold_id: int) -> None:
        """It may be the turn of this ticket."""
        if (found := self._waiting.get(hold_id)) is not None:
            found[1].set()

    def ring_for(self, key: str | None) -> None:
        """Something of this bucket is free, or of any."""
        for keys, woken in tuple(self._waiting.values()) if self._waiting else ():
            if key is None or key in keys:
                woken.set()

    def _listen(self, client: Any) -> None:
        pause_s = LISTEN_S
        while not self._is_over(client):
            try:
                self._hear(client)
            except Exception:
                _logger.debug("The turns of waiting requests cannot be read", exc_info=True)
                self.ring_for(None)  # a restarted storage has lost their tickets
                time.sleep(pause_s)
                pause_s = AGAIN_S

    def _hear(self, client: Any) -> None:
        with contextlib.closing(client.pubsub(ignore_subscribe_messages=True)) as messages:
            messages.subscribe(CHANNEL)
            while self._waiting:
                message = messages.get_message(timeout=LISTEN_S)
                if message is not None:
                    self.ring(int(message["data"]))

    def _is_over(self, client: Any) -> bool:
        """Return whether no request waits any more; the next one begins another thread."""
        with self._changes:
            if not self._waiting:
                self._threads.pop(id(client), None)
            return not self._waiting


bell: Final = Bell()
