"""What the storage last left of each bucket, for a worker that has to decide alone.

While the storage serves, each decision is only put on a queue, unread. The queue holds the latest
ones, and is read when a request has to be decided without the storage, or if buckets are emptied.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from ratelimit_ext.core.charge import Change
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Correction, Settlement
from ratelimit_ext.strategies import strategy_of

#: Makes a named tuple of its items, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__
#: How many decisions and settlements are kept, and how many buckets of those that were read.
MOST_NOTES: Final = 2048
MOST_BUCKETS: Final = 8192

#: When it was sent, by the monotonic clock; what the storage has decided or changed.
Note: TypeAlias = tuple[float, Decision | Sequence[Change]]


class Rest(NamedTuple):
    """What is left of a bucket: ``remaining`` units, and when it is full again, as in a verdict.
    ``asked_at`` is when the storage was asked, by the monotonic clock."""

    remaining: int
    reset_after_us: int
    asked_at: float

    @property
    def age_us(self) -> int:
        return int((time.monotonic() - self.asked_at) * 1_000_000)


class LastVerdicts:
    """See the module."""

    def __init__(self) -> None:
        self._notes: deque[Note] = deque(maxlen=MOST_NOTES)
        #: Takes a :data:`Note`. Each request does so.
        self.note: Final = self._notes.append
        #: By bucket; the oldest first.
        self._known: dict[str, _Known] = {}
        self._reading = threading.Lock()

    def take(self, limit: Limit, key: str) -> Rest | None:
        """What was last known of a bucket, as of now and without other callers; ``None`` if it is
        unknown. It is not known any more afterwards."""
        with self._reading:
            self._read()
            known = self._known.pop(key, None)
        if known is None:
            return None
        verdict = known.decision.verdicts[known.place]
        if verdict.charge.limit != limit:
            return None
        for change in known.changes:
            verdict = _changed(verdict, change)
        elapsed_us = int((time.monotonic() - known.began) * 1_000_000)
        later = strategy_of(limit).later(verdict, elapsed_us)
        remaining, wait_us = later.remaining, verdict.retry_after_us
        if wait_us and elapsed_us >= wait_us and verdict.remaining >= 0:
            remaining = max(remaining, verdict.charge.cost)  # as its denial said
        remaining = max(0, min(remaining, limit.capacity))
        return Rest(remaining, later.reset_after_us, known.began)

    def forget(self, is_emptied: Callable[[str], bool]) -> None:
        """Forget the buckets of these names, which were emptied."""
        with self._reading:
            self._read()
            for key in [key for key in self._known if is_emptied(key)]:
                del self._known[key]

    def _read(self) -> None:
        """Sort what was noted by bucket. A request waits for it, so no verdict is made here."""
        notes, known = self._notes, self._known
        while notes:
            began, noted = notes.popleft()
            if isinstance(noted, Decision):
                for place, key in enumerate(noted.keys()):
                    known.pop(key, None)
                    known[key] = _new(_Known, (began, noted, place, ()))
                continue
            for change in noted:
                before = known.get(change.charge.key)
                # One that was sent earlier may be a part of the verdict.
                if before is not None and began >= before.began:
                    changes = (*before.changes, change)
                    known[change.charge.key] = before._replace(changes=changes)
        # Not one by one: each search for the first would pass the places of those before it.
        for key in tuple(islice(known, max(0, len(known) - MOST_BUCKETS))):
            del known[key]


class _Known(NamedTuple):
    """The decision that has the last verdict of a bucket, its place in it, and what has changed
    since."""

    began: float
    decision: Decision
    place: int
    changes: tuple[Change, ...]


def _changed(verdict: Verdict, change: Change) -> Verdict:
    """The verdict after the change. Of an exhausted bucket it is not known how far it is
    overdrawn, so what comes back to it is left out."""
    returned = 0
    if isinstance(change, Settlement):
        returned = change.charge.cost - change.actual
    elif isinstance(change, Correction):
        returned = -change.delta
    if returned > 0 and not verdict.allowed and not verdict.remaining:
        return verdict
    return verdict._replace(remaining=verdict.remaining + returned)
