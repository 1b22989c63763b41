"""Storages of `limits`, and the engines that belong to them."""

import gc
import weakref

import pytest
import redis
from limits import RateLimitItemPerMinute, parse
from limits.storage import MemoryStorage, RedisStorage, Storage
from limits.strategies import STRATEGIES, FixedWindowRateLimiter, RateLimiter

from ratelimit_ext.web.storage import engine_for
from tests import servers
from tests.clocks import Clock
from tests.web.calls import statuses
from tests.web.conftest import Maker


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
    make: Maker, redis_uri: str, redis_client: redis.Redis
) -> None:
    """An application that moves from Flask-Limiter finds its old entries in Redis."""
    storage = RedisStorage(redis_uri)
    for name in ("fixed-window", "moving-window", "sliding-window-counter"):
        redis_client.flushall()
        strategy = STRATEGIES[name](storage)
        assert strategy.hit(parse("1/hour"), "someone", "root")
        app, limiter = make(storage_uri=redis_uri, strategy=name)
        app.get("/", endpoint="root")(limiter.limit("1/hour")(lambda: "ok"))
        assert statuses(app, times=2) == [200, 429]
        assert not strategy.hit(parse("1/hour"), "someone", "root")


def test_a_storages_own_prefix_begins_every_name(
    make: Maker, redis_uri: str, redis_client: redis.Redis
) -> None:
    """`storage_options={"key_prefix": …}`: what `reset` may delete begins with it."""
    for prefix in ("one", "two"):
        app, limiter = make(storage_uri=redis_uri, storage_options={"key_prefix": prefix})
        app.get("/")(limiter.limit("1/hour")(lambda: "ok"))
        assert statuses(app, times=2) == [200, 429]
    assert {key.split(b":")[0] for key in redis_client.scan_iter()} == {b"one", b"two"}
    limiter.reset()
    assert {key.split(b":")[0] for key in redis_client.scan_iter()} == {b"one"}


# -- strategies registered with limits -------------------------------------------------------------


@pytest.fixture(params=["memory", "redis", "unix", "wrapped"])
def storage(
    request: pytest.FixtureRequest, redis_server: servers.Server, redis_client: redis.Redis
) -> Storage:
    return {
        "memory": MemoryStorage,
        "redis": lambda: RedisStorage(redis_server.uri),
        "unix": lambda: RedisStorage(redis_server.unix_uri),
        "wrapped": lambda: RedisStorage(redis_server.uri, wrap_exceptions=True),
    }[request.param]()


@pytest.mark.parametrize("name", ["token-bucket", "sliding-window"])
def test_plain_limits_code_can_use_the_strategies(name: str, storage: Storage) -> None:
    """`hit`, `test`, `get_window_stats` and `clear`, with costs and any number of identifiers."""
    strategy: RateLimiter = STRATEGIES[name](storage)
    item = parse("5/hour")
    assert strategy.hit(item, "chat", "ada")
    assert strategy.hit(item, "chat", "ada", cost=3)
    assert strategy.test(item, "chat", "ada")
    assert not strategy.test(item, "chat", "ada", cost=2)
    assert not strategy.hit(item, "chat", "ada", cost=2)
    assert strategy.get_window_stats(item, "chat", "ada").remaining == 1
    assert strategy.get_window_stats(item, "chat", "eve").remaining == 5
    assert strategy.hit(item)
    strategy.clear(item, "chat", "ada")
    assert strategy.get_window_stats(item, "chat", "ada").remaining == 5
    assert strategy.get_window_stats(item).remaining == 4


def test_reading_takes_nothing(storage: Storage) -> None:
    """`test` and `get_window_stats` can be repeated."""
    strategy = STRATEGIES["token-bucket"](storage)
    item = parse("1/hour")
    assert all(strategy.test(item, "ada") for _ in range(5))
    assert strategy.get_window_stats(item, "ada").remaining == 1
    assert strategy.hit(item, "ada")


def test_a_registered_token_bucket_refills(clock: Clock) -> None:
    """Evenly; `reset_time` is when it is full, or when the next call passes if none is left."""
    strategy = STRATEGIES["token-bucket"](MemoryStorage())
    item = RateLimitItemPerMinute(30)
    assert sum(strategy.hit(item, "ada") for _ in range(15)) == 15
    assert strategy.get_window_stats(item, "ada").reset_time == clock.now_s + 30
    assert sum(strategy.hit(item, "ada") for _ in range(25)) == 15
    assert strategy.get_window_stats(item, "ada").reset_time == clock.now_s + 2
    nothing = strategy.get_window_stats(RateLimitItemPerMinute(0), "ada")
    assert (nothing.remaining, nothing.reset_time) == (0, clock.now_s + 60)
    clock.forward(10)
    assert sum(strategy.hit(item, "ada") for _ in range(40)) == 5


def test_identifiers_do_not_collide(storage: Storage) -> None:
    """`a/b` with `c` and `a` with `b/c` are different buckets."""
    strategy = STRATEGIES["sliding-window"](storage)
    item = parse("1/hour")
    for identifiers in (("a/b", "c"), ("a", "b/c"), ("a", "b", "c"), ("a%2Fb", "c"), ("a}", "{b")):
        assert strategy.hit(item, *identifiers), identifiers
        assert not strategy.hit(item, *identifiers)


@pytest.mark.parametrize("cost", [-1, "3", 1.5])
def test_an_invalid_cost_is_an_error(cost: object) -> None:
    """That names the limit."""
    strategy = STRATEGIES["token-bucket"](MemoryStorage())
    with pytest.raises(ValueError, match="'5 per 1 hour'"):
        strategy.hit(parse("5/hour"), "ada", cost=cost)  # type: ignore[arg-type]


def test_the_stock_strategies_are_unchanged() -> None:
    """A name that is taken is not replaced."""
    assert STRATEGIES["fixed-window"].__module__ == "limits.strategies"
    assert STRATEGIES["moving-window"].__module__ == "limits.strategies"
    assert STRATEGIES["sliding-window-counter"].__module__ == "limits.strategies"
