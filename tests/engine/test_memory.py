"""The memory engine: exact under threads, and it forgets what has expired."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import SWEEP_EVERY, Buckets, MemoryEngine
from tests.strategies.world import HOUR, RATES, SECOND, START


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
