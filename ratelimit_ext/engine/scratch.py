"""One bucket alone, as bytes: what it counts as used, and what a correction would leave of it.

An outage begins where the storage stopped, of which only verdicts are known, and corrects what it
will hand back. Nothing here is kept, or charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge
from ratelimit_ext.core.limit import Limit, Part
from ratelimit_ext.engine.memory import Buckets, Kept, MemoryEngine
from ratelimit_ext.strategies import strategy_of

_KEY: Final = "bucket"


@lru_cache(maxsize=1024)
def _without_line(limit: Limit, _differs: Part) -> Limit:
    """Return the limit that counts what is used, and not those who wait."""
    return limit if limit.wait is None else replace(limit, wait=None)


class Scratch:
    def __init__(self) -> None:
        self._buckets = Buckets()
        self._engine = MemoryEngine(lambda: self._buckets)

    def snapshot(self, limit: Limit, state: Kept, now_us: int) -> Sequence[int]:
        with self._buckets.lock:
            self._begin(state)
            look = Charge(_without_line(limit, limit.part), _KEY, 0)
            return self._engine.admit([look], take=False, now_us=now_us).snapshot(0)

    def used(self, limit: Limit, state: Kept, now_us: int) -> int:
        """Return the units that a bucket counts as used, debt included."""
        if state is None:
            return 0
        return strategy_of(limit).used(limit, self.snapshot(limit, state, now_us), now_us)

    def filled(self, limit: Limit, units: int, now_us: int, reset_after_us: int) -> Kept:
        """Return a bucket with so many used units, which is full again after ``reset_after_us``."""
        with self._buckets.lock:
            self._begin(None)
            calls = strategy_of(limit).calls(limit, units, now_us, reset_after_us)
            for instant_us, cost in calls:
                self._adjust(limit, instant_us, 0, cost)
            return self._buckets.take_out([_KEY])[0]

    def adjusted(self, limit: Limit, state: Kept, now_us: int, receipt: int, delta: int) -> Kept:
        with self._buckets.lock:
            self._begin(state)
            self._adjust(limit, now_us, receipt, delta)
            return self._buckets.take_out([_KEY])[0]

    def credited(self, limit: Limit, state: Kept, now_us: int, units: int) -> tuple[Kept, int]:
        """Return a bucket with ``units`` less of what it counts as used, the oldest first, or more
        if they are negative; and how many less it counts."""
        strategy, snapshot = strategy_of(limit), self.snapshot(limit, state, now_us)
        receipt, delta = strategy.credit(limit, snapshot, now_us, units)
        after = self.adjusted(limit, state, now_us, receipt, delta)
        less = strategy.used(limit, snapshot, now_us) - self.used(limit, after, now_us)
        return after, less

    def _begin(self, state: Kept) -> None:
        self._buckets.drop([_KEY])
        self._buckets.put_back([(_KEY, state)])

    def _adjust(self, limit: Limit, now_us: int, receipt: int, delta: int) -> None:
        charge = Charge(_without_line(limit, limit.part), _KEY, 0)
        change = Change(charge, NO_HOLD, "adjust", (receipt, delta))
        self._engine.settle([change], now_us=now_us)


scratch: Final = Scratch()
