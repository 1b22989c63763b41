"""Storages of `limits`, and the engines that belong to them."""

from __future__ import annotations

import gc
import weakref

import redis
from flask import Flask
from limits import parse
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import STRATEGIES, FixedWindowRateLimiter

from ratelimit_ext import Limiter
from ratelimit_ext.web.storage import engine_for
from tests import servers
from tests.web.calls import statuses
from tests.web.conftest import asked_key


def test_a_storage_has_one_engine() -> None:
    """Strategies over one storage share its buckets; an engine ends with its storage."""
    storage = MemoryStorage()
    assert engine_for(storage) is engine_for(storage)
    assert engine_for(storage) is not engine_for(MemoryStorage())
    item = parse("1/hour")
    assert STRATEGIES["token-bucket"](storage).hit(item, "ada")
    assert not STRATEGIES["token-bucket"](storage).hit(item, "ada")


def test_a_storage_is_not_kept_alive_by_its_engine() -> None:
    """A dropped storage is collected with its buckets."""
    storage = MemoryStorage()
    storage.timer.join()
    engine_for(storage)
    gone = weakref.ref(storage)
    del storage
    gc.collect()
    assert gone() is None


def test_reset_of_a_stock_memory_storage_forgets_our_buckets() -> None:
    """They live in it, beside those of the stock strategies."""
    storage = MemoryStorage()
    item = parse("1/hour")
    ours, stock = STRATEGIES["token-bucket"](storage), FixedWindowRateLimiter(storage)
    assert ours.hit(item, "ada")
    assert stock.hit(item, "ada")
    assert not ours.hit(item, "ada")
    storage.reset()
    assert ours.hit(item, "ada")
    assert stock.hit(item, "ada")


def test_stock_entries_of_the_same_limit_disturb_nothing(
    redis_server: servers.Server, redis_client: redis.Redis
) -> None:
    """An application that moves from Flask-Limiter finds its old entries in Redis."""
    storage = RedisStorage(redis_server.uri)
    for name in ("fixed-window", "moving-window", "sliding-window-counter"):
        redis_client.flushall()
        strategy = STRATEGIES[name](storage)
        assert strategy.hit(parse("1/hour"), "someone", "root")
        app = Flask("example")
        limiter = Limiter(asked_key, app=app, storage_uri=redis_server.uri, strategy=name)
        app.get("/", endpoint="root")(limiter.limit("1/hour")(lambda: "ok"))
        assert statuses(app, times=2) == [200, 429]
        assert not strategy.hit(parse("1/hour"), "someone", "root")


def test_a_storages_own_prefix_begins_every_name(
    redis_server: servers.Server, redis_client: redis.Redis
) -> None:
    """`storage_options={"key_prefix": …}`: what `reset` may delete begins with it."""
    for prefix in ("one", "two"):
        app = Flask("example")
        limiter = Limiter(
            asked_key,
            app=app,
            storage_uri=redis_server.uri,
            storage_options={"key_prefix": prefix},
        )
        app.get("/")(limiter.limit("1/hour")(lambda: "ok"))
        assert statuses(app, times=2) == [200, 429]
    assert {key.split(b":")[0] for key in redis_client.scan_iter()} == {b"one", b"two"}
    limiter.reset()
    assert {key.split(b":")[0] for key in redis_client.scan_iter()} == {b"one"}
