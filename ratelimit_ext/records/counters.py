"""How many decisions each limit made, by the minute, for operators who watch.

Each process counts, and :mod:`~ratelimit_ext.records.recorder` adds its counts to those in
the limits' storage, which keeps them for two hours.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Final, TypeAlias

from ratelimit_ext.core import clock
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.events import DecisionEvent
from ratelimit_ext.engine.denial_cache import CachedDecision
from ratelimit_ext.records.store import RecordStore, require_store

#: By the minute since 1970, the name of the limit, and the outcome: allowed, denied, shadow (it
#: would have denied), degraded (the storage was down; such a decision is also one of the others).
Counts: TypeAlias = Counter[tuple[int, str, str]]

REQUESTS: Final = ""
KEEP_S: Final = 2 * 3600
#: How many counts a process keeps between two writes, and the storage for an hour.
MOST_COUNTS: Final = 2000
MOST_GROUPS: Final = 500
MOST_STORED: Final = 20_000
HOUR: Final = 60
KEPT: Final = "counts of decisions"


class Counters:
    def __init__(self) -> None:
        #: None also in this process's memory, which no other process can watch.
        self.store: RecordStore | None = None
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counts = Counter()
        #: Requests by the minute, the outcome and the names of the limits that count it; if it was
        #: denied, those that denied it. So a request is one step, whatever its limits.
        self._requests: Counter[tuple[int, str, tuple[str, ...]]] = Counter()

    def note(self, event: DecisionEvent) -> None:
        minute, decision, is_tried = clock.now_us() // 60_000_000, event.decision, False
        if event.reason is None:
            outcome = "allowed"
            labels: dict[str, None] = {}
            for _, _, charge in event.charges:
                limit = charge.limit
                if charge.meta:
                    continue
                is_tried = is_tried or limit.is_shadow
                if limit.mode == "enforce" and limit.visible:  # a guard counts only if it denies
                    labels[limit.label] = None
            names = tuple(labels)
        else:
            outcome = "denied"
            if isinstance(decision, CachedDecision):  # its other verdicts would have to be computed
                names = (decision.denial.verdict.charge.limit.label,)
            else:
                names = tuple([verdict.charge.limit.label for verdict in event.denials])
        key = minute, outcome, names
        with self._lock:
            before = self._requests.get(key)
            if before is not None or len(self._requests) < MOST_GROUPS:
                self._requests[key] = (before or 0) + 1
        if is_tried:
            tried = [verdict.charge.limit for verdict in event.shadow_denials]
            self._add(((minute, limit.label, "shadow"), 1) for limit in tried if limit.is_shadow)
        if decision.degraded:
            self._add([((minute, REQUESTS, "degraded"), 1)])

    def flush(self) -> None:
        """Write what was counted. Raises ``StorageUnavailable``: then it is kept."""
        if self.store is None:
            return
        with self._lock:
            others, self._counts = self._counts, Counter()
            requests, self._requests = self._requests, Counter()
        counted: Counts = Counter()
        for (minute, outcome, names), count in requests.items():
            for name in (REQUESTS, *names):
                counted[minute, name, outcome] += count
        counted.update(others)
        hours: dict[int, Counts] = {}
        for key, count in counted.items():
            hours.setdefault(key[0] // HOUR, Counter())[key] = count
        while hours:
            hour = next(iter(hours))
            try:
                self.add(hour, hours[hour])
            except StorageUnavailable:
                self._add(item for rest in hours.values() for item in rest.items())
                raise
            del hours[hour]

    def _add(self, counted: Iterable[tuple[tuple[int, str, str], int]]) -> None:
        with self._lock:
            counts = self._counts
            for key, count in counted:
                before = counts.get(key)
                if before is not None or len(counts) < MOST_COUNTS:
                    counts[key] = (before or 0) + count

    def read(self, minutes: int) -> dict[int, dict[str, Counter[str]]]:
        """Return the counts by the minute (since 1970, the first one first), the name of the limit
        and the outcome, of the current minute and those before it, at most an hour. Minutes without
        decisions are there, too. Raises ``OperatorError`` if the storage keeps none, and
        ``StorageUnavailable``."""
        require_store(self.store, KEPT)
        self.flush()
        now = clock.now_us() // 60_000_000
        counts: dict[int, dict[str, Counter[str]]] = {
            minute: {} for minute in range(now - minutes + 1, now + 1)
        }
        for hour in (now // HOUR - 1, now // HOUR):
            for (minute, name, outcome), count in self.of_hour(hour).items():
                if minute in counts:
                    counts[minute].setdefault(name, Counter())[outcome] = count
        return counts

    def add(self, hour: int, counts: Counts) -> None:
        words = [
            word
            for (minute, name, outcome), count in counts.items()
            for word in (f"{minute}:{outcome}:{name}", count)
        ]
        store = require_store(self.store, KEPT)
        store.change("counters", [f"tallies:{hour}"], KEEP_S * 1000, MOST_STORED, *words)

    def of_hour(self, hour: int) -> Counts:
        counts = Counts()
        for text, count in require_store(self.store, KEPT).table(f"tallies:{hour}").items():
            minute, outcome, name = text.split(":", 2)
            counts[int(minute), name, outcome] = int(count)
        return counts
