"""Decisions are counted by limit and minute, for all workers together, within bounds."""

from typing import Any

import pytest
import redis

from ratelimit_ext.records import counters as module
from ratelimit_ext.records.counters import REQUESTS
from tests.clocks import Clock
from tests.records.site import Site, remembering
from tests.web.calls import serve
from tests.web.conftest import Maker

KEYS = "LIMITS:tallies:{operators}:*"


def limited(make: Maker, uri: str) -> Site:
    """An application with a limit that has a candidate, a shadow and a block."""
    site = app, limiter = remembering(make, uri)
    serve(
        app,
        limiter.limit("3/hour", name="calls", candidate="2/hour"),
        limiter.limit("1/hour", name="shadow", mode="shadow"),
        limiter.limit("unless blocked", name="stop"),
    )
    return site


def test_decisions_of_all_workers_are_counted(make: Maker, redis_uri: str) -> None:
    """Admitted and denied ones by limit; would-be denials of shadows and candidates. A guard counts
    what it denies, and what a denied request would have used elsewhere does not count."""
    one, other = limited(make, redis_uri), limited(make, redis_uri)
    assert one.hit(4) + other.hit(1) == [200, 200, 200, 429, 429]
    with one.app.app_context():
        one.limiter.operators.block("stop", "bob")
    assert one.hit(2, key="bob") == [403, 403]
    for site in (one, other):
        site.recorder.flush()
    [counts] = other.recorder.counters.read(1).values()
    assert counts == {
        REQUESTS: {"allowed": 3, "denied": 4},
        "calls": {"allowed": 3, "denied": 2, "shadow": 1},
        "shadow": {"shadow": 2},
        "stop": {"denied": 2},
    }


def test_counts_are_by_the_minute_for_an_hour(make: Maker, redis_uri: str, clock: Clock) -> None:
    """Every minute is there; an older one is not."""
    site = limited(make, redis_uri)
    site.hit(1)
    clock.forward(60)
    site.hit(1, key="bob")
    found = site.recorder.counters.read(60)
    assert len(found) == 60
    assert list(found) == sorted(found)
    shown = [minute[REQUESTS]["allowed"] if minute else 0 for minute in found.values()]
    assert shown == [0] * 58 + [1, 1]
    clock.forward(59 * 60)
    assert [each for each in site.recorder.counters.read(60).values() if each] == [
        {REQUESTS: {"allowed": 1}, "calls": {"allowed": 1}}
    ]


def test_counts_are_bounded_and_end(
    make: Maker, redis_uri: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process and in the storage; what is known goes on counting."""
    monkeypatch.setattr(module, "MOST_COUNTS", 2)
    site = limited(make, redis_uri)
    site.hit(4)
    assert len(site.recorder.counters._counts) == 2
    monkeypatch.setattr(module, "MOST_STORED", 2)
    site.recorder.flush()
    minute = next(iter(site.recorder.counters.read(1)))
    more: Any = {(minute, "", "allowed"): 1, (minute, "new", "allowed"): 1}
    site.recorder.counters.add(minute // 60, more)
    (key,) = redis_client.keys(KEYS)
    assert len(redis_client.hgetall(key)) == 2
    assert site.recorder.counters.read(1)[minute][REQUESTS]["allowed"] == 4
    assert 7000 < redis_client.ttl(key) <= 7200


def test_an_outage_is_counted(make: Maker, redis_uri: str) -> None:
    """Decisions without the storage are allowed or denied ones, and degraded as well; they are
    written when the storage is back."""
    site = limited(make, "redis://127.0.0.1:1")
    site.hit(2)
    for _ in range(2):
        site.recorder.flush()
    other = limited(make, redis_uri).recorder
    site.recorder.counters.store = other.counters.store
    [counts] = site.recorder.counters.read(1).values()
    assert counts[REQUESTS] == {"allowed": 2, "degraded": 2}


def test_a_write_between_two_steps_of_a_request_changes_no_count(
    make: Maker, redis_uri: str
) -> None:
    """The names of its limits were found before, and it is counted after."""
    site = limited(make, redis_uri)
    counters = site.recorder.counters

    lock: Any = counters._lock

    class WrittenBefore:
        def __enter__(self) -> None:
            counters._lock = lock
            counters.flush()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    site.hit(1)
    counters._lock = WrittenBefore()  # type: ignore[assignment]
    site.hit(1)
    assert counters._lock is lock  # it was written
    [counts] = counters.read(1).values()
    assert counts == {REQUESTS: {"allowed": 2}, "calls": {"allowed": 2}, "shadow": {"shadow": 1}}


def test_a_missing_right_is_logged_once(
    make: Maker, redis_uri: str, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """And concerns only what needs it: here the denials, not these counts."""
    redis_client.acl_setuser(
        "few", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-xadd"]
    )
    try:
        site = limited(make, redis_uri.replace("://", "://few:pw@"))
        site.hit(4)
        for _ in range(2):
            site.recorder.flush()
    finally:
        redis_client.acl_deluser("few")
    logged = [each.getMessage() for each in caplog.records if "for operators" in each.msg]
    assert len(logged) == 1
    assert "no permissions to run the 'xadd' command" in logged[0]
    [counts] = limited(make, redis_uri).recorder.counters.read(1).values()
    assert counts["calls"] == {"allowed": 3, "denied": 1, "shadow": 1}


def test_memory_keeps_no_counts(make: Maker) -> None:
    """No other process could see them."""
    site = limited(make, "memory://")
    site.hit(1)
    assert not site.recorder.counters._counts
    with pytest.raises(ValueError, match="set RATELIMIT_STORAGE_URI"):
        site.recorder.counters.read(1)
