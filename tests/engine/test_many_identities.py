"""A worker's memory does not grow with the number of callers that it has met."""

import gc
import os
import tracemalloc
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine import denial_cache, last_verdicts
from ratelimit_ext.engine.breaker import Breaker
from ratelimit_ext.engine.denial_cache import DenialCache
from ratelimit_ext.engine.engine import Workers
from ratelimit_ext.engine.outage import OutageEngine
from tests.strategies.world import DAY

#: More than each table has room for. `RATELIMIT_IDENTITIES=1000000` takes minutes.
IDENTITIES = int(os.environ.get("RATELIMIT_IDENTITIES", "10000"))
LIMITS = (Limit(1, DAY, name="day"), Limit(100, 60_000_000, "token-bucket", name="pace"))
HOUR_US = 3_600_000_000


class Exhausted:
    """A storage of which each caller has used up one of two limits."""

    def admit(self, charges: Sequence[Charge], **_: Any) -> Decision:
        day, pace = charges
        verdicts = Verdict(day, False, 0, HOUR_US, HOUR_US, 0), Verdict(pace, True, 9, 0, 0, 0)
        return Decision(admitted=False, now_us=0, verdicts=verdicts)

    def settle(self, *_: Any, **__: Any) -> int:
        return 0

    clear = reset = probe = settle


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of callers, for denials from memory and for an outage: the latest."""
    monkeypatch.setattr(Breaker, "wake", lambda _: None)
    # A slow machine would keep fewer: those of a second.
    monkeypatch.setattr(denial_cache, "time", SimpleNamespace(monotonic=lambda: 0.0))
    breaker = Breaker(Exhausted())
    outage = breaker.outage = OutageEngine(breaker, lambda _: "local", Workers())
    cache, used = DenialCache(breaker), list[int]()
    tracemalloc.start()
    try:
        for number in range(IDENTITIES):
            charges = [Charge(each, f"LIMITS:{each.name}:{{user:{number}}}") for each in LIMITS]
            for _ in range(2):
                cache.admit(charges)
            if number + 1 in {IDENTITIES // 2, IDENTITIES}:
                gc.collect()  # later in a process with more objects
                used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    for table in (cache._denials, cache._allowances):
        assert len(table) == denial_cache.MOST_BUCKETS
    assert len(outage.last._notes) == last_verdicts.MOST_NOTES
    outage.last.untaken()  # reads the notes
    assert 0 < len(outage.last._by_key) <= last_verdicts.MOST_BUCKETS
    assert used[1] < 1.05 * used[0]
    assert used[1] < 16 * 2**20
