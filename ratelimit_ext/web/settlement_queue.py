"""The settlement queue: sends changes to an engine, and retries while the storage is unavailable.

A lost settlement is money that is not charged, or a slot that stays taken. So a failed one is sent
again, with growing pauses, until its hold has expired: its lease plus ten minutes. A correction has
a marker, so that a lost reply does not apply it twice; a settlement needs none, as a hold is
settled once. The marker of a first attempt is kept for one minute, as each refund leaves one: if a
reply is lost just before an outage of more than a minute, a refund may be applied twice.

Reports, blocks and renewals are not sent again: they would be out of date.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ratelimit_ext.core.charge import Change, new_hold
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.events import Outcome
from ratelimit_ext.engine.engine import Correction, Engine, Settlement

#: How long after its lease a hold is kept, and its settlement sent again, in seconds.
KEPT_AFTER_LEASE_S: Final = 600.0
#: How many batches are queued at most; then the oldest is dropped.
MOST_WAITING: Final = 10_000
FIRST_MARKER_US: Final = 60_000_000
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
#: How long a process that ends waits for the storage.
EXIT_S: Final = 1.0

_logger = logging.getLogger("ratelimit_ext")

UNAVAILABLE: Final = "The storage is unavailable; settlements are queued and sent again: %s"
AVAILABLE: Final = "The storage is available again; queued settlements are sent"
DROPPED: Final = "A settlement is lost (%s): %s"
FAILED: Final = "Could not settle %d charges; they are freed when their lease expires"


class Batch(NamedTuple):
    """Changes that are sent together. ``until`` is of the queue's clock."""

    engine: Engine
    changes: Sequence[Change]
    marker: str | None
    marker_us: int
    until: float

    def send(self) -> None:
        """Send them; raises as the engine does."""
        self.engine.settle(self.changes, once=self.marker, once_for_us=self.marker_us)


class SettlementQueue:
    """Sends at once; queues what the storage could not take, and sends it again from a thread.

    The thread exists only while something is queued. ``in_background=False`` starts none: then
    :meth:`send_waiting` has to be called.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        most_waiting: int = MOST_WAITING,
        in_background: bool = True,
    ) -> None:
        self._clock = clock
        self._most_waiting = most_waiting
        self._in_background = in_background
        self.forget()

    def forget(self) -> None:
        """Empty the queue: in a forked child, whose parent sends what is queued."""
        self._waiting: dict[int, Batch] = {}  # the oldest first
        self._numbers = itertools.count()
        self._unavailable: set[Engine] = set()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._one_sender = threading.Lock()
        self._awake = threading.Event()

    def __len__(self) -> int:
        """How many batches are queued."""
        return len(self._waiting)

    def send(self, engine: Engine, changes: Sequence[Change], *, lease_s: float) -> Outcome:
        """Send changes to the engine that took their charges. Never raises."""
        kept_s = lease_s + KEPT_AFTER_LEASE_S
        until = self._clock() + kept_s
        batch = Batch(engine, changes, _marker(changes), FIRST_MARKER_US, until)
        kept = [change for change in changes if isinstance(change, Correction | Settlement)]
        again = batch._replace(changes=kept, marker_us=int(kept_s * 1_000_000))
        if engine in self._unavailable and self._waiting:  # the thread retries
            return self._keep(again)
        try:
            batch.send()
        except StorageUnavailable as error:
            if engine not in self._unavailable:
                self._unavailable.add(engine)
                _logger.error(UNAVAILABLE, error)
            return self._keep(again)
        except Exception:  # with its trace: an engine's own failures have a class
            _logger.exception(FAILED, len(changes))
            return "lost"
        if engine in self._unavailable:
            self._note_available(engine)
        return "sent"

    def send_waiting(self) -> int:
        """Send what is queued, the oldest first; returns how many batches are left."""
        with self._one_sender:
            failed: set[Engine] = set()
            with self._changed:
                waiting = tuple(self._waiting.items())
            for number, batch in waiting:
                if self._clock() >= batch.until:
                    self._drop(number, "its hold has expired")
                elif batch.engine not in failed:
                    try:
                        batch.send()
                    except StorageUnavailable:
                        failed.add(batch.engine)
                        continue
                    except Exception:
                        _logger.exception(FAILED, len(batch.changes))
                    self._waiting.pop(number, None)
                    if batch.engine in self._unavailable:
                        self._note_available(batch.engine)
            return len(self._waiting)

    def flush(self, timeout_s: float = EXIT_S) -> bool:
        """Wait until the queue is empty, at most ``timeout_s``; False if it is not."""
        self._awake.set()
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _keep(self, batch: Batch) -> Outcome:
        if not batch.changes:
            return "lost"
        with self._changed:
            self._waiting[next(self._numbers)] = batch
            if len(self._waiting) > self._most_waiting:
                self._drop(next(iter(self._waiting)), "too many are queued")
            if self._in_background and self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="ratelimit-settlements", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:  # no more threads, or the interpreter ends: the next one tries
                    self._thread = None
        return "queued"

    def _drop(self, number: int, why: str) -> None:
        batch = self._waiting.pop(number, None)
        if batch is not None:
            _logger.error(DROPPED, why, ", ".join(map(_described, batch.changes)))

    def _note_available(self, engine: Engine) -> None:
        self._unavailable.discard(engine)
        self._awake.set()
        _logger.info(AVAILABLE)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            if self._awake.wait(pause_s):
                self._awake.clear()
                pause_s = FIRST_PAUSE_S
            else:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self.send_waiting()
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return


def _marker(changes: Sequence[Change]) -> str | None:
    """The key that marks changes as applied: in the first bucket's slot of a cluster, and under its
    prefix. ``None`` if they may be applied twice."""
    if not any(isinstance(change, Correction) for change in changes):
        return None
    return f"{changes[0].charge.key}:once:{new_hold(0).id:x}"


def _described(change: Change) -> str:
    amount = f"{change.delta:+d}" if isinstance(change, Correction) else ""
    if isinstance(change, Settlement):
        amount = f"actual {change.actual}"
    return f"{change.charge.key} {amount} {change.charge.limit.unit}"


#: One queue, and at most one thread, for the whole process.
settlements: Final = SettlementQueue()

atexit.register(settlements.flush)
if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=settlements.forget)
