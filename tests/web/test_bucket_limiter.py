"""`limiter.limiter`: Flask-Limiter's strategy object, over the buckets of requests."""

from __future__ import annotations

import pytest
from flask import Flask
from limits import parse

from ratelimit_ext import Limiter
from ratelimit_ext.core.limit import LimitOptions
from ratelimit_ext.web.limits_adapter import items_of
from tests.web.calls import statuses
from tests.web.conftest import Clock, Maker, asked_key


def root() -> str:
    """The view of all tests."""
    return "ok"


@pytest.mark.parametrize("prefix", ["", "tenant"])
def test_it_reads_and_writes_what_requests_are_charged_to(make: Maker, prefix: str) -> None:
    """By identity and scope, whether or not the prefix is given with them."""
    app, limiter = make(key_prefix=prefix)
    app.get("/")(limiter.limit("3/minute")(root))
    item, strategy = parse("3/minute"), limiter.limiter
    assert statuses(app) == [200]
    assert strategy.get_window_stats(item, "someone", "root").remaining == 2
    assert strategy.get_window_stats(item, prefix, "someone", "root").remaining == 2
    assert strategy.hit(item, "someone", "root", cost=2)
    assert not strategy.test(item, "someone", "root")
    assert statuses(app) == [429]
    strategy.clear(item, prefix, "someone", "root")
    assert statuses(app) == [200]


def test_an_items_own_strategy_and_name_lead_to_its_bucket(make: Maker, clock: Clock) -> None:
    """An item with keywords is another limit than one without."""
    app, limiter = make()
    app.get("/")(limiter.limit("6/minute", strategy="token-bucket", burst=2, name="pace")(root))
    assert statuses(app) == [200]
    options = LimitOptions(strategy="token-bucket", burst=2, name="pace")
    (item,) = items_of("6/minute", options)
    stats = limiter.limiter.get_window_stats(item, "someone", "root")
    assert (stats.remaining, stats.reset_time) == (1, clock.now_s + 10)
    assert limiter.limiter.get_window_stats(parse("6/minute"), "someone", "root").remaining == 6


def test_an_unopened_window_is_full(make: Maker, clock: Clock) -> None:
    """Asking does not open it."""
    _, limiter = make()
    stats = limiter.limiter.get_window_stats(parse("3/minute"), "someone", "root")
    assert stats.remaining == 3
    assert stats.reset_time >= clock.now_s


def test_while_the_storage_is_away_it_is_the_fallbacks() -> None:
    """What it says is what decides."""
    app = Flask("example")
    limiter = Limiter(
        asked_key,
        app=app,
        storage_uri="redis://127.0.0.1:1",
        in_memory_fallback_enabled=True,
    )
    app.get("/")(limiter.limit("3/minute")(root))
    assert statuses(app) == [200]
    assert limiter.limiter.get_window_stats(parse("3/minute"), "someone", "root").remaining == 2
