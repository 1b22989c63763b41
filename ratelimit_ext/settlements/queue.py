"""The settlement queue: sends changes to an engine, and retries while the storage is unavailable.

A lost settlement is money that is not charged, or a slot that stays taken. So a failed one is sent
again, with growing pauses, until its hold has expired: its lease plus ten minutes. A correction has
a marker, so that a lost reply does not apply it twice; a settlement needs none, as a hold is
settled once. The marker of a first attempt is kept for one minute, as each refund leaves one: if a
reply is lost just before an outage of more than a minute, a refund may be applied twice.

What is queued is also in a journal, so that it survives the process: see
:mod:`~ratelimit_ext.settlements.journal`.

Reports, blocks and renewals are not sent again: they would be out of date. Nor are corrections of a
quota that the provider counts, so these have no marker: its next report is right.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import KEPT_AFTER_LEASE_S, Charge, Hold, new_hold
from ratelimit_ext.core.errors import ShardUnavailable, StorageUnavailable
from ratelimit_ext.core.events import Events, SettlementEvent, SettlementOutcome
from ratelimit_ext.core.threads import forget_in_child, start_thread
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.entry import Entry
from ratelimit_ext.settlements.journal import Journal, Line

#: How many batches are queued at most; then the oldest is dropped.
MOST_WAITING: Final = 10_000
FIRST_MARKER_US: Final = 60_000_000
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 1.0
#: How often a process looks for the journals of others that have ended.
LOOK_EVERY_S: Final = 1.0
#: How long a process that ends waits for the storage.
EXIT_S: Final = 1.0

_logger = logging.getLogger("ratelimit_ext")

UNAVAILABLE: Final = "The storage is unavailable; settlements are queued and sent again: %s"
AVAILABLE: Final = "The storage is available again; queued settlements are sent"
DROPPED: Final = "A settlement is lost (%s): %s"
FAILED: Final = "Could not settle %d charges; they are freed when their lease expires"
TAKEN_OVER: Final = "Sending %d settlements of an earlier process, from %s"
RELEASED: Final = "Ending %d calls of a process that was killed, from %s"
LEFT: Final = "The storage is unavailable; %d settlements are left in %s for the next process"


class Batch(NamedTuple):
    """What is sent together. ``until`` is by the queue's clock; ``line`` is where the journal has
    it, and ``events`` are those of the extension that queued it."""

    engine: Engine
    entry: Entry
    until: float
    line: Line | None = None
    events: Events | None = None


@dataclass(kw_only=True, eq=False)
class SettlementQueue:
    """Sends at once; queues what the storage could not take, and sends it again from a thread.

    The thread exists only while something is queued. ``in_background=False`` starts none: then
    :meth:`send_waiting` has to be called.
    """

    clock: Callable[[], float] = time.monotonic
    epoch: Callable[[], float] = time.time
    most_waiting: int = MOST_WAITING
    in_background: bool = True

    def __post_init__(self) -> None:
        self._journals: WeakKeyDictionary[Engine, Journal] = WeakKeyDictionary()
        #: Those of the extensions, for what is taken over.
        self._events: WeakKeyDictionary[Engine, Events] = WeakKeyDictionary()
        self.forget()

    def forget(self) -> None:
        """Empty the queue: in a forked child, whose parent sends what is queued."""
        for journal in self._journals.values():
            journal.forget()
        #: When to look for the journals of processes that have ended.
        self._look_at = 0.0 if self._journals else math.inf
        self._lost: Counter[str] = Counter()
        self._waiting: OrderedDict[int, Batch] = OrderedDict()  # the oldest first
        self._numbers = itertools.count()
        #: Those that could not take something, and whether it was logged: once it has failed again.
        self._unavailable: dict[Engine, bool] = {}
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._one_sender = threading.Lock()
        self._awake = threading.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def lost(self) -> dict[str, int]:
        """What this process has lost, by unit: costs that were not charged, refunds, and slots that
        were not released before their lease ended."""
        return dict(self._lost)

    def keep(self, engine: Engine, journal: Journal, *, events: Events | None = None) -> None:
        """Keep what is queued for the engine in the journal, and send what ended processes have
        left there. Listeners of ``events`` learn what becomes of it."""
        with self._changed:
            self._journals[engine] = journal
            if events is not None:
                self._events[engine] = events
        self._look()

    def begin(self, engine: Engine, hold: Hold, charges: Sequence[Charge]) -> None:
        """Note what a call will hold, before the engine admits it: if this process is killed,
        another ends the call."""
        if self.clock() >= self._look_at:
            self._look()
        if (journal := self._journals.get(engine)) is not None:
            journal.begin(hold, filter(attrgetter("limit.held"), charges))

    def end(self, engine: Engine, hold: Hold) -> None:
        """Note that a call holds nothing any more, or that its changes are sent or queued."""
        if (journal := self._journals.get(engine)) is not None:
            journal.end(hold.id)

    def send(
        self,
        engine: Engine,
        changes: Sequence[Change],
        *,
        lease_s: float,
        events: Events | None = None,
        later: bool = False,
    ) -> SettlementOutcome:
        """Send changes to the engine that took their charges; ``later``: when it is available
        again. Never raises. If they are queued, listeners of ``events`` learn the outcome later."""
        now, kept_s = self.clock(), lease_s + KEPT_AFTER_LEASE_S
        if now >= self._look_at:
            self._look()
        entry = Entry(changes, _marker(changes), FIRST_MARKER_US)
        if not later:
            try:
                entry.send(engine)
            except ShardUnavailable:  # the other shards take what they are sent
                pass
            except StorageUnavailable:
                self._unavailable.setdefault(engine, False)
            except Exception:  # with its trace: an engine's own failures have a class
                _logger.exception(FAILED, len(changes))
                self._lose(_kept(changes), "an unexpected error")
                return "lost"
            else:
                if engine in self._unavailable:
                    self._note_available(engine)
                return "sent"
        again = entry._replace(
            changes=_kept(changes), marker_us=int(kept_s * 1_000_000), until=self.epoch() + kept_s
        )
        return self._keep(Batch(engine, again, now + kept_s, None, events))

    def take_over(self) -> None:
        """Queue what ended processes have left in the journals, while half of the queue is free."""
        self._look_at = self.clock() + LOOK_EVERY_S
        for engine, journal in list(self._journals.items()):
            files = journal.take_over(self.epoch())
            while len(self) <= self.most_waiting // 2 and (left := next(files, None)):
                self._take(engine, *left)

    def send_waiting(self) -> int:
        """Send what is queued, the oldest first; returns how many batches are left."""
        with self._one_sender:
            failed: set[Engine] = set()
            with self._changed:
                waiting = tuple(self._waiting.items())
            for number, batch in waiting:
                if self.clock() >= batch.until:
                    self._drop(number, "its hold has expired")
                elif batch.engine not in failed:
                    try:
                        batch.entry.send(batch.engine)
                    except ShardUnavailable:
                        self._postpone(number)
                        continue
                    except StorageUnavailable as error:
                        failed.add(batch.engine)
                        if not self._unavailable.get(batch.engine):
                            self._unavailable[batch.engine] = True
                            _logger.error(UNAVAILABLE, error)
                        self._postpone(number)
                        continue
                    except Exception:
                        _logger.exception(FAILED, len(batch.entry.changes))
                        self._drop(number, "an unexpected error")
                        continue
                    self._remove(number)
                    _emit(batch, "sent")
                    if batch.engine in self._unavailable:
                        self._note_available(batch.engine)
            return len(self._waiting)

    def flush(self, timeout_s: float = EXIT_S) -> bool:
        """Wait until the queue is empty, at most ``timeout_s``; False if it is not."""
        self._awake.set()
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self, timeout_s: float = EXIT_S) -> None:
        """At the end of the process: :meth:`flush`, and say what is left and what is lost."""
        self.flush(timeout_s)
        for journal in self._journals.values():
            journal.close()
        with self._changed:
            left = [batch.line for batch in self._waiting.values() if batch.line is not None]
            for number in [n for n, batch in self._waiting.items() if batch.line is None]:
                self._drop(number, "the process ends")
        if left:
            _logger.warning(LEFT, len(left), left[0].file.path.parent)

    def _keep(self, batch: Batch) -> SettlementOutcome:
        if not batch.entry.changes:
            return "lost"
        with self._changed:
            journal = self._journals.get(batch.engine)
            if journal is not None:
                batch = batch._replace(line=journal.append(batch.entry))
            self._put(batch)
            self._start()
        return "queued"

    def _take(self, engine: Engine, path: Path, entries: Sequence[tuple[Line, Entry]]) -> None:
        calls = len([entry for _, entry in entries if not entry.until])
        for text, count in (TAKEN_OVER, len(entries) - calls), (RELEASED, calls):
            if count:
                _logger.warning(text, count, path)
        with self._changed:
            now, epoch = self.clock(), self.epoch()
            for line, entry in entries:
                # If the clock was set back, no longer than it may be sent at all.
                left_s = min((entry.until or math.inf) - epoch, entry.marker_us / 1_000_000)
                self._put(Batch(engine, entry, now + left_s, line, self._events.get(engine)))

    def _put(self, batch: Batch) -> None:
        self._waiting[next(self._numbers)] = batch
        if len(self._waiting) > self.most_waiting:
            self._drop(next(iter(self._waiting)), "too many are queued")

    def _start(self) -> None:
        if self.in_background and self._thread is None:
            self._thread = start_thread("settlements", self._run)

    def _look(self) -> None:
        """Let the thread take over journals of processes that have ended, if there are files."""
        with self._changed:
            self._look_at = self.clock() + LOOK_EVERY_S
            if self._others_exist():
                self._start()

    def _others_exist(self) -> bool:
        return any(journal.has_others() for journal in set(self._journals.values()))

    def _postpone(self, number: int) -> None:
        """Put a batch last, so that one that always fails does not hold up the others."""
        with self._changed:
            if number in self._waiting:
                self._waiting.move_to_end(number)

    def _remove(self, number: int) -> Batch | None:
        with self._changed:
            batch = self._waiting.pop(number, None)
            if batch is not None and batch.line is not None:
                batch.line.sent()
            return batch

    def _drop(self, number: int, why: str) -> None:
        batch = self._remove(number)
        if batch is not None:
            self._lose(batch.entry.changes, why)
            _emit(batch, "lost")

    def _lose(self, changes: Sequence[Change], why: str) -> None:
        if not changes:
            return
        with self._changed:
            for change in changes:
                self._lost[change.charge.limit.unit] += change.lost_units
        _logger.error(DROPPED, why, ", ".join(map(_described, changes)))

    def _note_available(self, engine: Engine) -> None:
        was_logged = self._unavailable.pop(engine, False)
        self._awake.set()
        if was_logged:
            _logger.info(AVAILABLE)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            if self._awake.wait(pause_s):
                self._awake.clear()
                pause_s = FIRST_PAUSE_S
            else:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                self.take_over()
                self.send_waiting()
                with self._changed:
                    if not self._waiting:
                        self._changed.notify_all()
                        if not self._others_exist():
                            self._thread = None
                            return
            except Exception:  # the thread of a process that has no other
                _logger.exception("Queued settlements could not be sent; trying again")


def _emit(batch: Batch, outcome: SettlementOutcome) -> None:
    if batch.events is not None and batch.events.listeners:
        batch.events.emit(SettlementEvent(batch.entry.changes, outcome, 0.0))


def _marker(changes: Sequence[Change]) -> str | None:
    """Return the key that marks changes as applied: in the first bucket's slot of a cluster, and
    under its prefix. ``None`` if they may be applied twice."""
    if not [each for each in changes if each.verb == "adjust" and each.is_sent_again]:
        return None
    return f"{changes[0].charge.key}:once:{new_hold(0).id:x}"


def _kept(changes: Iterable[Change]) -> list[Change]:
    """Return the changes that are sent again if the storage could not take them."""
    return [change for change in changes if change.is_sent_again]


def _described(change: Change) -> str:
    amount = f"{change.numbers[1]:+d}" if change.verb == "adjust" else ""
    if change.verb == "settle":
        amount = f"actual {change.numbers[1]}"
    return f"{change.charge.key} {amount} {change.charge.limit.unit}"


#: One queue, and at most one thread, for the whole process.
settlements: Final = SettlementQueue()

atexit.register(settlements.close)
forget_in_child(settlements)
