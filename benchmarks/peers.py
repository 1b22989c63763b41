"""The libraries that are measured beside this one, used as their documentation has it.

One that is not installed is left out, and the result says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

import limits
import redis
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES

from benchmarks.harness import Session

T = TypeVar("T")
#: Charge a key of all limits; whether the call was admitted.
Hit = Callable[[str], bool]

#: The modules of the libraries that may be missing.
MODULES = {"throttled-py": "throttled", "pyrate-limiter": "pyrate_limiter"}


def installed(contenders: Mapping[str, T], session: Session) -> dict[str, T]:
    """The contenders whose library, with which a name begins, is installed."""
    found = {}
    for name, contender in contenders.items():
        module = MODULES.get(name.partition(",")[0])
        if module is None or find_spec(module):
            found[name] = contender
        else:
            session.skipped.append(f"{name}: not installed (benchmarks/requirements.txt)")
    return found


def client_of(uri: str) -> redis.Redis:
    return redis.from_url(unix(uri))


def unix(uri: str) -> str:
    """The address as redis-py takes it."""
    return uri.replace("redis+unix", "unix")


def limits_hit(strategy: str, uri: str, amounts: Mapping[str, int]) -> Hit:
    limiter = STRATEGIES[strategy](storage_from_string(uri))
    items = [limits.parse(f"{amount}/{period}") for period, amount in amounts.items()]
    return lambda key: all(limiter.hit(item, key) for item in items)


def throttled_hit(strategy: str, uri: str, amounts: Mapping[str, int]) -> Hit:
    from throttled import Throttled, store

    kept = store.RedisStore(server=unix(uri))
    parts = [
        (
            f"/{period}",
            Throttled(using=strategy, quota=f"{amount}/{period} burst {amount}", store=kept),
        )
        for period, amount in amounts.items()
    ]
    return lambda key: not any(each.limit(key + period).limited for period, each in parts)


def pyrate_hit(uri: str, amounts: Mapping[str, int]) -> Hit:
    """By its buckets: each of its limiters has a thread, and denies at once while another thread
    uses it."""
    from pyrate_limiter import GCRA, Duration, Rate, RateItem, RedisStateStore, StateBucket

    rates = [Rate(amount, Duration[period.upper()]) for period, amount in amounts.items()]
    client = client_of(uri)
    buckets: dict[str, StateBucket] = {}

    def hit(key: str) -> bool:
        if key not in buckets:
            buckets[key] = StateBucket(rates, GCRA(), RedisStateStore(client, key))
        return bool(buckets[key].put(RateItem(key, time.time_ns() // 1_000_000)))

    return hit


#: From the address of a storage and amounts by period ("day") to a Hit.
HITS: dict[str, Callable[[str, Mapping[str, int]], Hit]] = {
    "limits, fixed window": partial(limits_hit, "fixed-window"),
    "limits, moving window": partial(limits_hit, "moving-window"),
    "throttled-py, token bucket": partial(throttled_hit, "token_bucket"),
    "pyrate-limiter, GCRA": pyrate_hit,
}
