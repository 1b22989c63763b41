"""The settlement queue: sends changes to an engine, and again those that the storage did not take.

A settlement that is lost is money that is not charged, or a slot that stays taken. So what fails is
sent again, with growing pauses, until its hold is forgotten: its lease plus ten minutes. A
correction has a marker from its first sending on, so that a lost reply does not apply it twice; a
settlement needs none, as a hold is settled once. The marker of a first sending is kept for a minute
alone, as each refund leaves one: a reply that is lost just before an outage of more than a minute
may refund twice.

Not for reports, blocks and renewals: by the time the storage answers again they are out of date.
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
from ratelimit_ext.engine.engine import Correction, Engine, Settlement

#: For how long after its lease a hold is remembered, and its settlement sent again, in seconds.
KEPT_AFTER_LEASE_S: Final = 600.0
#: How many sendings wait at most; beyond that the oldest is dropped.
MOST_WAITING: Final = 10_000
FIRST_MARKER_US: Final = 60_000_000
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
#: How long the end of the process waits for the storage.
EXIT_S: Final = 1.0

_logger = logging.getLogger("ratelimit_ext")

AWAY: Final = "the storage is unavailable; settlements are kept and sent again: %s"
BACK: Final = "the storage takes settlements again"
DROPPED: Final = "a settlement is lost, %s: %s"
FAILED: Final = "could not settle %d charges, their lease ends by itself"


class Sending(NamedTuple):
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
    """Sends at once; keeps what the storage could not take, and sends it again from a thread.

    The thread exists only while something waits. ``in_background=False`` starts none: then
    :meth:`send_waiting` is called from outside.
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
        """Begin anew, with nothing waiting: in a forked child, whose parent sends what waits."""
        self._waiting: dict[int, Sending] = {}  # the oldest first
        self._numbers = itertools.count()
        self._away: set[Engine] = set()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._one_sender = threading.Lock()
        self._awake = threading.Event()

    def __len__(self) -> int:
        """How many sendings wait."""
        return len(self._waiting)

    def send(self, engine: Engine, changes: Sequence[Change], *, lease_s: float) -> None:
        """Send changes to the engine that took their charges. Never raises."""
        kept_s = lease_s + KEPT_AFTER_LEASE_S
        until = self._clock() + kept_s
        sending = Sending(engine, changes, _marker(changes), FIRST_MARKER_US, until)
        kept = [change for change in changes if isinstance(change, Correction | Settlement)]
        again = sending._replace(changes=kept, marker_us=int(kept_s * 1_000_000))
        if engine in self._away and self._waiting:  # the thread asks the storage
            self._keep(again)
            return
        try:
            sending.send()
        except StorageUnavailable as error:
            if engine not in self._away:
                self._away.add(engine)
                _logger.error(AWAY, error)
            self._keep(again)
        except Exception:  # with its trace: an engine's own failures have a class
            _logger.exception(FAILED, len(changes))
        else:
            if engine in self._away:
                self._answers(engine)

    def send_waiting(self) -> int:
        """Send what waits once more, the oldest first; returns how many sendings still wait."""
        with self._one_sender:
            failed: set[Engine] = set()
            with self._changed:
                waiting = tuple(self._waiting.items())
            for number, sending in waiting:
                if self._clock() >= sending.until:
                    self._drop(number, "it was kept for its time")
                elif sending.engine not in failed:
                    try:
                        sending.send()
                    except StorageUnavailable:
                        failed.add(sending.engine)
                        continue
                    except Exception:
                        _logger.exception(FAILED, len(sending.changes))
                    self._waiting.pop(number, None)
                    if sending.engine in self._away:
                        self._answers(sending.engine)
            return len(self._waiting)

    def flush(self, timeout_s: float = EXIT_S) -> bool:
        """Wait until nothing waits any more, at most ``timeout_s``; whether that is so."""
        self._awake.set()
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _keep(self, sending: Sending) -> None:
        if not sending.changes:
            return
        with self._changed:
            self._waiting[next(self._numbers)] = sending
            if len(self._waiting) > self._most_waiting:
                self._drop(next(iter(self._waiting)), "too many wait")
            if self._in_background and self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="ratelimit-settlements", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:  # no more threads, or the interpreter ends: the next one tries
                    self._thread = None

    def _drop(self, number: int, why: str) -> None:
        sending = self._waiting.pop(number, None)
        if sending is not None:
            _logger.error(DROPPED, why, ", ".join(map(_described, sending.changes)))

    def _answers(self, engine: Engine) -> None:
        self._away.discard(engine)
        self._awake.set()
        _logger.info(BACK)

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
    """A key of its own for changes that must not be applied twice: beside the first of their
    buckets, in the same slot of a cluster and under the same prefix."""
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
