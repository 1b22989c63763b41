"""The memory engine: exact under threads, and it forgets what has expired."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ratelimit_ext.core.charge import Charge, new_hold
from ratelimit_ext.core.errors import StorageFull
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine import memory
from ratelimit_ext.engine.memory import SWEEP_EVERY, Buckets, MemoryEngine
from tests.strategies.world import DAY, HOUR, MINUTE, RATES, SECOND, START


@pytest.mark.parametrize("strategy", RATES)
def test_sixteen_threads_get_exactly_the_amount(strategy: str) -> None:
    """800 simultaneous calls on 150: not one too many, not one too few."""
    engine = MemoryEngine()
    burst = {"burst": 150} if strategy == "token-bucket" else {}
    limit = Limit(1 if burst else 150, HOUR, strategy, **burst)
    start = threading.Barrier(16)

    def calls() -> int:
        start.wait()
        return sum(engine.admit([Charge(limit, "hot")]).admitted for _ in range(50))

    with ThreadPoolExecutor(16) as pool:
        assert sum(future.result() for future in [pool.submit(calls) for _ in range(16)]) == 150


def test_expired_buckets_are_swept() -> None:
    """Many clients that call once do not fill the memory permanently."""
    buckets = Buckets()
    engine = MemoryEngine(lambda: buckets)
    limit = Limit(5, SECOND)
    for number in range(10 * SWEEP_EVERY):
        engine.admit([Charge(limit, f"client {number}")], now_us=START + number * 10_000)
    assert len(buckets.named("client")) <= SWEEP_EVERY + 100


def test_clear_and_reset_forget() -> None:
    """`clear` takes names, `reset` takes a beginning; both say how many there were."""
    engine = MemoryEngine()
    for key in ("a:1", "a:2", "b:1"):
        engine.admit([Charge(Limit(1, HOUR), key)])
    assert engine.clear(["a:1", "unknown"]) == 1
    assert engine.reset("a:") == 1
    assert engine.reset("") == 1


def test_the_owner_of_the_buckets_may_replace_them() -> None:
    """They are read at every use, so that their owner may empty them."""
    held = {"buckets": Buckets()}
    engine = MemoryEngine(lambda: held["buckets"])
    charge = Charge(Limit(1, HOUR), "bucket")
    assert engine.admit([charge]).admitted
    assert not engine.admit([charge]).admitted
    held["buckets"] = Buckets()
    assert engine.admit([charge]).admitted


DAILY = Limit(3, DAY, "sliding-window", name="daily")
PACE = Limit(30, MINUTE, "token-bucket", name="pace")
AT_ONCE = Limit(2, HOUR, "concurrency", name="at-once", unit="calls")


def of(limit: Limit, identity: str) -> Charge:
    return Charge(limit, f"LIMITS:{limit.name}:{{{identity}}}")


def test_invented_callers_fill_it_and_reset_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond MOST_BUCKETS an exhausted caller stays exhausted, a known one is served, and an
    unknown one gets StorageFull and is not counted: as on a full server."""
    monkeypatch.setattr(memory, "MOST_BUCKETS", 100)
    buckets = Buckets()
    engine = MemoryEngine(lambda: buckets)
    assert [engine.admit([of(DAILY, "spent")]).admitted for _ in range(4)] == [True] * 3 + [False]
    assert engine.admit([of(DAILY, "ada")]).admitted
    refused = 0
    for number in range(200):
        try:
            engine.admit([of(DAILY, f"invented-{number}")])
        except StorageFull:
            refused += 1
    assert (refused, len(buckets.named(""))) == (102, 100)
    assert not engine.admit([of(DAILY, "spent")]).admitted
    assert engine.admit([of(DAILY, "ada"), of(PACE, "ada")]).admitted
    assert engine.admit([of(DAILY, "*")]).admitted
    with pytest.raises(StorageFull) as caught:
        engine.admit([of(PACE, "eve"), of(DAILY, "eve")])
    assert caught.value.key == "LIMITS:daily:{eve}"
    assert buckets.named("LIMITS:pace:{eve}") == []


def test_a_full_memory_still_counts_what_is_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of a minute, and calls in flight. They make no caller known; a shadow is left out."""
    monkeypatch.setattr(memory, "MOST_BUCKETS", 0)
    engine = MemoryEngine()
    slot, watched = of(AT_ONCE, "eve"), of(replace(DAILY, mode="shadow"), "eve")
    calls = [engine.admit([slot, of(PACE, "eve"), watched], hold=new_hold(HOUR)) for _ in range(3)]
    assert [call.admitted for call in calls] == [True, True, False]
    assert engine.reset("LIMITS:daily") == 0
    with pytest.raises(StorageFull):
        engine.admit([of(DAILY, "eve")])
