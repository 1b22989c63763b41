"""The strategies under their names in ``limits.strategies.STRATEGIES``.

A plain ``flask_limiter.Limiter(strategy="token-bucket")`` and plain `limits` code use them on the
storages of `limits`.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from limits import RateLimitItem
from limits.storage import Storage
from limits.strategies import STRATEGIES

from ratelimit_ext.core.key import escaped
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.web.bound_limit import Naming
from ratelimit_ext.web.limits_adapter import BucketLimiter
from ratelimit_ext.web.storage import engine_for, storage_prefix


class RegisteredLimiter(BucketLimiter):
    """One strategy for all items, as the strategies of `limits` are."""

    STRATEGY: ClassVar[str]

    def __init__(self, storage: Storage) -> None:
        naming = Naming(storage_prefix(storage), "", self.STRATEGY)
        super().__init__(storage, engine_for(storage), naming)

    def _key(self, limit: Limit, item: RateLimitItem, identifiers: tuple[str, ...]) -> str:
        identity = "/".join(escaped(str(part)).replace("/", "%2F") for part in identifiers)
        return f"{self.naming.prefix(limit, item.namespace)}{{{identity}}}"


class TokenBucketRateLimiter(RegisteredLimiter):
    """See :mod:`ratelimit_ext.strategies.token_bucket`."""

    STRATEGY = "token-bucket"


class SlidingWindowRateLimiter(RegisteredLimiter):
    """See :mod:`ratelimit_ext.strategies.sliding_window`."""

    STRATEGY = "sliding-window"


def register() -> None:
    """Add the strategies whose names are not taken."""
    strategies = cast(dict[str, Any], STRATEGIES)
    for strategy in (TokenBucketRateLimiter, SlidingWindowRateLimiter):
        strategies.setdefault(strategy.STRATEGY, strategy)
