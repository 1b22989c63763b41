"""Storing: which engine decides, the storage's or the fallback's, and when that changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import flask_limiter
from flask_limiter.constants import MAX_BACKEND_CHECKS
from limits import RateLimitItem
from limits.strategies import RateLimiter

from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.web.bucket_limiter import ScopedLimiter
from ratelimit_ext.web.claims import Naming
from ratelimit_ext.web.foreign import ForeignEngine
from ratelimit_ext.web.limits_adapter import limit_of
from ratelimit_ext.web.storages import storage_prefix


class StoringLimiter(flask_limiter.Limiter):
    """Flask-Limiter's extension, with engines of ours over its storages."""

    def __init__(self, key_func: Callable[[], str], **options: Any) -> None:
        self._engine: Engine | None = None
        self._fallback_engine: Engine | None = None
        self._adapters: dict[int, ScopedLimiter] = {}
        self._recovery_checks = 0
        self._last_recovery_check = time.time()
        super().__init__(key_func, **options)

    @property
    def engine(self) -> Engine:
        """What decides now: the storage's engine, or the fallback's while the storage is away."""
        if self._storage_dead and self._fallback_engine is not None:
            return self._fallback_engine
        assert self._engine is not None, "the extension has not been initialised with an app"
        return self._engine

    @property
    def _shared_engine(self) -> Engine:
        """The storage's, also while it is away: for what means nothing in one worker's memory."""
        assert self._engine is not None, "the extension has not been initialised with an app"
        return self._engine

    def check_storage(self, item: RateLimitItem) -> None:
        """Raise ``ConfigurationError`` for a limit that the storage cannot carry out."""
        if isinstance(self._engine, ForeignEngine) and self._strategy:
            self._engine.supports(limit_of(item, self._strategy))

    @property
    def limiter(self) -> RateLimiter:
        """Flask-Limiter's strategy object, over our buckets."""
        engine = self.engine
        adapter = self._adapters.get(id(engine))
        if adapter is None:
            storage = self.storage if engine is self._engine else self._fallback_storage
            adapter = self._adapters[id(engine)] = ScopedLimiter(storage, engine, self._naming)
        return adapter

    @property
    def _naming(self) -> Naming:
        assert self._strategy
        return Naming(storage_prefix(self.storage), self._key_prefix, self._strategy)

    def _falls_back(self, engine: Engine) -> bool:
        """The engine has failed: whether another one decides from now on."""
        if engine is not self._engine or self._fallback_engine is None:
            return False
        self.logger.warning("Rate limit storage unreachable - falling back to in-memory storage")
        self._storage_dead = True
        return True

    def _look_for_recovery(self) -> None:
        """Ask the storage whether it is back, after 1, 2, 4, … 32 seconds."""
        if self._recovery_checks > MAX_BACKEND_CHECKS:
            self._recovery_checks = 0
        if time.time() - self._last_recovery_check > 2**self._recovery_checks:
            self._last_recovery_check = time.time()
            self._recovery_checks += 1
            if self.storage.check():
                self.logger.info("Rate limit storage recovered")
                self._storage_dead = False
                self._recovery_checks = 0
