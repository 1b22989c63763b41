"""Which engine decides: the storage's, or the in-memory fallback's while the storage is down.

The strategies are also registered in ``limits.strategies.STRATEGIES``, for plain `limits` code and
a plain ``flask_limiter.Limiter``, on the storages of `limits`.
"""

from __future__ import annotations

import logging
import time
from typing import Any, ClassVar, Final, cast
from weakref import WeakKeyDictionary

from flask_limiter.constants import MAX_BACKEND_CHECKS
from limits import RateLimitItem
from limits.storage import MemoryStorage, RedisClusterStorage, RedisStorage, Storage
from limits.strategies import STRATEGIES

from ratelimit_ext.core.key import escaped
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.denial_cache import DenialCache
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.memory import Buckets, MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.web.bound_limit import Naming
from ratelimit_ext.web.limits_adapter import BucketLimiter, LimitsEngine, ScopedLimiter

#: Where our buckets are kept in a stock memory storage, so that its ``reset`` drops them.
OWN_BUCKETS: Final = "ratelimit_ext"

NOT_INITIALISED: Final = "the extension has not been initialised with an app"

_engines: WeakKeyDictionary[Storage, Engine] = WeakKeyDictionary()


def engine_for(storage: Storage) -> Engine:
    """The engine over the storage; the same one at every call."""
    engine = _engines.get(storage)
    if engine is None:
        engine = _engines[storage] = _new_engine(storage)
    return engine


def _new_engine(storage: Storage) -> Engine:
    if isinstance(storage, MemoryStorage):
        held = cast(dict[str, Any], storage.storage)
        return MemoryEngine(lambda: held.setdefault(OWN_BUCKETS, Buckets()))
    if isinstance(storage, RedisStorage) and not isinstance(storage, RedisClusterStorage):
        redis = RedisEngine(storage.get_connection(), storage.base_exceptions)
        return DenialCache(redis)
    return LimitsEngine(storage)


def storage_prefix(storage: Storage) -> str:
    """What every name in the storage begins with."""
    return str(getattr(storage, "key_prefix", "LIMITS"))


class Engines:
    """The engines of a storage and of its fallback. Without a storage (the extension has no
    application yet, or is disabled) only their absence can be asked for."""

    def __init__(
        self, storage: Storage | None, fallback: Storage | None, *, logger: logging.Logger
    ) -> None:
        self._storage = storage
        self._fallback_storage = fallback
        self._logger = logger
        self._primary = None if storage is None else engine_for(storage)
        self._fallback = None if fallback is None else engine_for(fallback)
        self._strategy_objects: dict[int, ScopedLimiter] = {}
        #: Whether the storage is down. Only with a fallback is another engine used then.
        self.is_down = False
        self._checks = 0
        self._last_check = time.time()

    @property
    def current(self) -> Engine:
        """The engine that decides now."""
        engine = (self.is_down and self._fallback) or self._primary
        assert engine is not None, NOT_INITIALISED
        return engine

    @property
    def primary(self) -> Engine:
        """The storage's engine, also while it is down: for what all workers have to see."""
        assert self._primary is not None, NOT_INITIALISED
        return self._primary

    def check(self, limit: Limit) -> None:
        """Raise ``ConfigurationError`` if the storage cannot carry out the limit."""
        if isinstance(self._primary, LimitsEngine):
            self._primary.supports(limit)

    def strategy_object(self, naming: Naming) -> ScopedLimiter:
        """Flask-Limiter's strategy object; the same one as long as the engine is."""
        engine = self.current
        storage = self._storage if engine is self._primary else self._fallback_storage
        assert storage is not None
        return self._strategy_objects.setdefault(id(engine), ScopedLimiter(storage, engine, naming))

    def fall_back(self, failed: Engine) -> bool:
        """Use the fallback after an engine has failed; False if no other is left."""
        if failed is not self._primary or self._fallback is None:
            return False
        self._logger.warning("Rate limit storage unreachable - falling back to in-memory storage")
        self.is_down = True
        return True

    def look_for_recovery(self) -> None:
        """Check the storage after 1, 2, 4, … 32 seconds, and return to it if it answers."""
        if self._checks > MAX_BACKEND_CHECKS:
            self._checks = 0
        if time.time() - self._last_check > 2**self._checks:
            self._last_check = time.time()
            self._checks += 1
            if self._storage is not None and self._storage.check():
                self._logger.info("Rate limit storage recovered")
                self.is_down = False
                self._checks = 0


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
