"""The thread that brings calls into the database, so that no request waits for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from chatapp.ledger.call import Call
from chatapp.ledger.rows import as_json

log = logging.getLogger(__name__)

BATCH: Final = 500
AWAY: Final = (OperationalError, InterfaceError, PoolTimeoutError, OSError)
#: Drivers raise their own, too: sqlite3 an OverflowError for what has more than 63 bits.
IN_A_ROW: Final = (SQLAlchemyError, ArithmeticError, ValueError, TypeError)
LOST: Final = "The ledger could not be written; this call is only here: %s"

Write = Callable[[Sequence[Call]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """What the writer does while the database is away, in seconds.

    It tries again after ``first_s``, then after twice as long each time up to ``longest_s``; after
    ``whole_s`` it gives the rows to the log and goes on with the next. At the process's end
    there are ``at_end_s`` for everything.
    """

    first_s: float = 0.1
    longest_s: float = 5.0
    whole_s: float = 60.0
    at_end_s: float = 5.0


class Writer:
    """Calls on their way to the database.

    At most ``most`` wait; ``linger_s`` is how long one waits for others, so that many share a
    transaction, and so how much a crash can lose. The end of a call replaces its beginning where
    that is still waiting. What has no room, or cannot be written, goes to the log as JSON, at
    ERROR: nothing is dropped unsaid.
    """

    def __init__(
        self,
        write: Write,
        *,
        most: int = 10_000,
        linger_s: float = 0.05,
        patience: Patience | None = None,
    ) -> None:
        self._write = write
        self._most = most
        self._linger_s = linger_s
        self._patience = patience or Patience()
        self._process = os.getpid()
        self._waiting: dict[str, Call] = {}
        self._in_hand: list[Call] = []
        # The thread sleeps on `_arrived` or `_ending`: a call that comes while it gathers or writes
        # must not wake it, which would cost the request more than all the rest of this.
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._ending = threading.Condition(self._lock)
        self._written = threading.Condition(self._lock)
        self._closing_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        """Have the call written soon. Never waits, never raises."""
        with self._lock:
            has_room = call.id in self._waiting or len(self._waiting) < self._most
            if has_room and self._closing_since is None:
                if not self._waiting:
                    self._arrived.notify_all()
                self._waiting[call.id] = call
                return
        log.error(LOST, as_json(call))

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is waiting any more; whether that came to pass."""
        with self._lock:
            return self._written.wait_for(lambda: not (self._in_hand or self._waiting), timeout_s)

    def close(self) -> None:
        """Write what is waiting, as far as that is possible in a short time, and end."""
        if os.getpid() != self._process:
            return  # a fork has the memory of its parent's writer, and not its thread
        with self._lock:
            self._closing_since = self._closing_since or time.monotonic()
            self._arrived.notify_all()
            self._ending.notify_all()
        self._thread.join(self._patience.at_end_s + 1)
        with self._lock:
            # What the thread has in hand may yet be written; then it is said once too often.
            left = [*self._in_hand, *self._waiting.values()]
            self._waiting.clear()
        self._give_up(left)

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._bring(batch)
            except Exception:  # a thread that dies would lose all that follow
                log.exception("The ledger's writer failed")
                self._give_up(batch)

    def _next(self) -> list[Call]:
        """The next calls to write, when there are some; none at the end."""
        with self._lock:
            self._in_hand = []
            self._written.notify_all()
            self._arrived.wait_for(lambda: self._waiting or self._closing_since)
            self._ending.wait_for(lambda: self._closing_since, self._linger_s)
            batch = list(islice(self._waiting.values(), BATCH))
            for call in batch:
                del self._waiting[call.id]
            self._in_hand = batch
        return batch

    def _bring(self, batch: Sequence[Call]) -> None:
        began, pause_s = time.monotonic(), self._patience.first_s
        while True:
            try:
                self._write(batch)
            except AWAY as error:
                if time.monotonic() - began >= self._patience.whole_s or self._is_late():
                    log.error("The ledger's database is away: %s", error)
                    self._give_up(batch)
                    return
                log.warning("The ledger's database is away, %d calls wait: %s", len(batch), error)
                with self._lock:
                    self._ending.wait_for(self._is_late, pause_s)
                pause_s = min(2 * pause_s, self._patience.longest_s)
            except IN_A_ROW as error:
                # Not the database, but something in a row: the others are not to suffer for it.
                if len(batch) == 1:
                    log.error("The ledger refuses a call: %s", error)
                    self._give_up(batch)
                    return
                for call in batch:
                    self._bring([call])
                return
            else:
                return

    def _is_late(self) -> bool:
        since = self._closing_since
        return since is not None and time.monotonic() - since >= self._patience.at_end_s

    def _give_up(self, calls: Sequence[Call]) -> None:
        for call in calls:
            log.error(LOST, as_json(call))
