"""`spread`: callers of a limit that all share do not come back at the same instant."""

import random
import time
from collections import Counter
from collections.abc import Container
from typing import Any

import pytest
from flask import Flask

from ratelimit_ext import RateLimitExceeded
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import MOST_SPREAD_US, spread
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import MemoryEngine
from tests.clocks import Clock
from tests.strategies.world import MINUTE, World
from tests.web.conftest import Maker


def limited(make: Maker, **more: Any) -> Flask:
    """A view for two calls a minute of everyone together."""
    app, limiter = make(headers_enabled=True)
    words: dict[str, Any] = {"name": "all", "key_func": lambda: "everyone", **more}
    app.add_url_rule("/", "view", limiter.limit("2/minute", **words)(lambda: "ok"))
    return app


def refused(app: Flask, number: int) -> Any:
    environment = {"REMOTE_ADDR": f"10.0.{number // 256}.{number % 256}"}
    return app.test_client().get("/", environ_base=environment)


def test_all_that_tells_the_wait_agrees(make: Maker, clock: Clock) -> None:
    """Also if it is repeated from memory: a caller hears the same again, another another."""
    app = limited(make, spread=True)
    for number in (0, 0):
        assert refused(app, number).status_code == 200
    waits = []
    for number in (1, 1, 1, 2, 2, 3, 1):
        answer = refused(app, number)
        wait_ms = int(answer.headers["retry-after-ms"])
        assert 60_000 <= wait_ms <= 65_000
        assert answer.json["retry_after"] == wait_ms / 1000
        assert int(answer.headers["Retry-After"]) == -(-wait_ms // 1000)
        assert answer.headers["RateLimit"] == f'"all";r=0;t={-(-wait_ms // 1000)}'
        waits.append(wait_ms)
    assert waits[0] == waits[1] == waits[2] == waits[6]
    assert waits[3] == waits[4]
    assert len(set(waits)) == 3


@pytest.mark.parametrize("strategy", ["token-bucket", "sliding-window", "fixed-window"])
def test_never_earlier_and_not_much_later(strategy: str) -> None:
    """By at most the percents that are written, and never by more than five seconds."""
    world, limit = World(MemoryEngine()), Limit(3, 10 * MINUTE, strategy, spread=4)
    world.passed(limit, 3)
    denied = world.look(limit)
    true_us = denied.retry_after_us or 0
    for number in range(100):
        stated_us = spread(denied, str(number)).retry_after_us or 0
        assert true_us <= stated_us <= true_us + min(true_us * 4 // 100, MOST_SPREAD_US)
        assert stated_us == spread(denied, str(number)).retry_after_us


def test_a_job_without_a_request(make: Maker) -> None:
    """It has no address; the rest says who it is."""
    app, limiter = make()
    words: dict[str, Any] = {"name": "jobs", "spread": True}
    app.add_url_rule("/", "view", limiter.limit("1/minute", **words)(lambda: "ok"))
    begin = time.monotonic()
    with app.app_context():
        with limiter.charge("jobs", "nightly"):
            pass
        with pytest.raises(RateLimitExceeded) as refusal, limiter.charge("jobs", "nightly"):
            pass
    assert refusal.value.wait_ms is not None
    passed_ms = 1000 * (time.monotonic() - begin)
    assert 59_999 - passed_ms <= refusal.value.wait_ms <= 65_000


def test_one_caller_without_it(make: Maker, clock: Clock) -> None:
    """Waits are exact."""
    app = limited(make)
    waits = [refused(app, number).headers.get("retry-after-ms") for number in range(5)]
    assert waits == [None, None, "60000", "60000", "60000"]


@pytest.mark.parametrize(("percent", "most"), [(0, {1000}), (10, range(1, 41))])
def test_a_thousand_callers_that_obey(percent: int, most: Container[int]) -> None:
    """They are refused within half a minute, and come back when their wait is over. The most of
    them in any tenth of a second: all of them, or a few."""
    chance = random.Random(26)
    world, limit = World(MemoryEngine()), Limit(100, MINUTE, spread=percent)
    world.passed(limit, 100)
    begin, back = world.now_us, []
    for number in range(1000):
        world.now_us = begin + chance.randrange(MINUTE // 2)
        denied = spread(world.request(Charge(limit, "bucket")).verdicts[0], f"caller {number}")
        assert not denied.allowed
        back.append(world.now_us + (denied.retry_after_us or 0))
    assert min(back) >= begin + MINUTE
    tenths = Counter((each - begin) // 100_000 for each in back)
    assert max(tenths.values()) in most
