"""Decisions without Flask: the only file here that uses ratelimit_ext's internals."""

from __future__ import annotations

from typing import Protocol

import redis

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.redis import RedisEngine

DAY_US = 86_400_000_000
START_US = 1_800_000_000_000_000  # an instant of this decade, for virtual time


class Decide(Protocol):
    """Charge a key of a limit; whether the call was admitted."""

    def __call__(self, key: str, now_us: int | None = None, cost: int = 1) -> bool: ...


def decider(client: redis.Redis, strategy: str, amount: int, *, period_us: int = DAY_US) -> Decide:
    """Decisions on one limit, without the cache of denials; by the server's clock unless an
    instant is given."""
    engine = RedisEngine(client, redis.RedisError)
    limit = Limit(amount, period_us, strategy)

    def decide(key: str, now_us: int | None = None, cost: int = 1) -> bool:
        return engine.admit([Charge(limit, key, cost)], now_us=now_us).admitted

    return decide
