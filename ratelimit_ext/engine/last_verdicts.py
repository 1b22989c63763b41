"""What the storage last left of each bucket, for a worker that has to decide alone.

While the storage serves, each decision is only put on a queue, unread. The queue holds the latest
ones, and is read when a request has to be decided without the storage, or a change be queued for
it, or if buckets are emptied.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.scratch import scratch
from ratelimit_ext.strategies import strategy_of

#: Makes a named tuple of its items, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__
#: How many decisions and settlements are kept, and how many buckets of those that were read.
MOST_NOTES: Final = 2048
MOST_BUCKETS: Final = 8192

#: When it was sent, by the monotonic clock; what the storage has decided or changed.
Note: TypeAlias = tuple[float, Decision | Sequence[Change]]


class Remainder(NamedTuple):
    """What is left of a bucket: ``remaining`` units, and when it is full again, as in a verdict.
    ``asked_at`` is when the storage was asked, by the monotonic clock."""

    remaining: int
    reset_after_us: int
    asked_at: float


class LastVerdicts:
    def __init__(self) -> None:
        self._notes: deque[Note] = deque(maxlen=MOST_NOTES)
        #: Takes a :data:`Note`. Each request does so.
        self.note: Final = self._notes.append
        #: By bucket; the oldest first.
        self._by_key: dict[str, _LastVerdict] = {}
        #: How far the storage's clock is ahead of the monotonic one, and when that was asked.
        self.ahead: tuple[int, float] | None = None
        self._reading = threading.Lock()

    def take(self, limit: Limit, key: str) -> Remainder | None:
        """Return what was last known of a bucket, as of now and without other callers; ``None`` if
        it is unknown, or was taken and not decided since."""
        with self._reading:
            self._read()
            last = self._by_key.get(key)
            if last is None or last.is_taken:
                return None
            if not last.limit.is_of(limit):
                del self._by_key[key]
                return None
            self._by_key[key] = last._replace(is_taken=True)
        return last.remainder(limit)

    def untaken(self) -> list[Charge]:
        """Return the buckets that are known and were not taken, the latest first."""
        with self._reading:
            self._read()
            untaken = [last for last in reversed(self._by_key.values()) if not last.is_taken]
        return [last.decision.verdicts[last.place].charge for last in untaken]

    def change(self, began: float, change: Change) -> tuple[int, int] | None:
        """Note a change that the storage did not confirm, and will make. If what was left of the
        bucket was taken: how much that is by now, without the change and with it."""
        key = change.charge.key
        with self._reading:
            self._read()
            before = self._by_key.get(key)
            if before is None or not before.limit.is_of(change.charge.limit):
                return None
            after = self._by_key[key] = before.after(began, change)
        limit = change.charge.limit
        if not before.is_taken:
            return None
        return before.remainder(limit).remaining, after.remainder(limit).remaining

    def forget(self, is_emptied: Callable[[str], bool]) -> None:
        """Forget the buckets of these names, which were emptied."""
        with self._reading:
            self._read()
            for key in [key for key in self._by_key if is_emptied(key)]:
                del self._by_key[key]

    def _read(self) -> None:
        """Sort what was noted by bucket. A request waits for it, so no verdict is made here."""
        notes, by_key = self._notes, self._by_key
        if len(notes) == MOST_NOTES:  # what was decided since may be lost
            for key in [key for key, last in by_key.items() if last.is_taken]:
                del by_key[key]
        while notes:
            began, noted = notes.popleft()
            if isinstance(noted, Decision):
                self.ahead = noted.now_us - int(began * 1_000_000), began
                for place, key in enumerate(noted.keys()):
                    by_key.pop(key, None)
                    by_key[key] = _new(_LastVerdict, (began, noted, place, (), False))
                continue
            for change in noted:
                before = by_key.get(change.charge.key)
                if before is not None:
                    by_key[change.charge.key] = before.after(began, change)
        # Not one by one: each search for the first would pass the places of those before it.
        for key in tuple(islice(by_key, max(0, len(by_key) - MOST_BUCKETS))):
            del by_key[key]


class _LastVerdict(NamedTuple):
    """The decision that has the last verdict of a bucket, its place in it, what has changed since,
    and whether it was taken."""

    began: float
    decision: Decision
    place: int
    changes: tuple[Change, ...]
    is_taken: bool

    @property
    def limit(self) -> Limit:
        return self.decision.verdicts[self.place].charge.limit

    def after(self, began: float, change: Change) -> _LastVerdict:
        """With a change that was sent then. One that was sent before the decision may be a part of
        it; a queued one is confirmed later; one without a receipt is of an unknown decision."""
        if (
            change.receipt is None
            or any(other is change for other in self.changes)
            or began < self.began
        ):
            return self
        return self._replace(changes=(*self.changes, change))

    def remainder(self, asking: Limit) -> Remainder:
        """Return what is left for a class of the limit, as of now and without other callers."""
        decision, place = self.decision.part(self.place)
        verdict, asked_us = decision.verdicts[place], decision.now_us
        limit, wait_us = verdict.charge.limit, verdict.retry_after_us
        # The verdict does not say how far the bucket is overdrawn. If unknown, nothing comes back.
        overdrawn = 0 if verdict.remaining else decision.overdrawn(place)
        used = limit.capacity - verdict.remaining + (overdrawn or 0)
        state = scratch.filled(limit, used, asked_us, verdict.reset_after_us)
        for change in self.changes:
            if (delta := _delta(change)) > 0 or overdrawn is not None:
                state = scratch.adjusted(limit, state, asked_us, change.receipt or 0, delta)
        elapsed_us = int((time.monotonic() - self.began) * 1_000_000)
        now_us = asked_us + elapsed_us
        strategy, snapshot = strategy_of(limit), scratch.snapshot(limit, state, now_us)
        remaining = limit.capacity - strategy.used(limit, snapshot, now_us)
        _, reset_us, _ = strategy.left(limit, snapshot, now_us, 0)
        is_over = wait_us and elapsed_us >= wait_us and not verdict.allowed
        if is_over and all(_delta(change) <= 0 for change in self.changes):
            remaining = max(remaining, verdict.charge.cost)  # as its denial said
        whole = max(0, min(remaining, limit.capacity) + limit.part.kept)
        remaining = whole - asking.part.kept  # below 0 if what is kept is used
        return Remainder(remaining, reset_us, self.began)


def _delta(change: Change) -> int:
    """Return by how many units the charge was wrong."""
    return change.numbers[1] - (change.charge.cost if change.verb == "settle" else 0)
