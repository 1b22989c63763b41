"""The engine that belongs to a storage of the `limits` library."""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakKeyDictionary

from limits.storage import MemoryStorage, RedisClusterStorage, RedisStorage, Storage

from ratelimit_ext.engine.denial_cache import DenialCache
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.memory import Buckets, MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.web.foreign import ForeignEngine

#: Under which name our buckets live in a stock memory storage, so that its ``reset`` drops them.
OWN_BUCKETS = "ratelimit_ext"

_engines: WeakKeyDictionary[Storage, Engine] = WeakKeyDictionary()


def engine_for(storage: Storage) -> Engine:
    """The engine over the storage; the same one at every call."""
    engine = _engines.get(storage)
    if engine is None:
        engine = _engines[storage] = _made_for(storage)
    return engine


def _made_for(storage: Storage) -> Engine:
    if isinstance(storage, MemoryStorage):
        held = cast(dict[str, Any], storage.storage)
        return MemoryEngine(lambda: held.setdefault(OWN_BUCKETS, Buckets()))
    if isinstance(storage, RedisStorage) and not isinstance(storage, RedisClusterStorage):
        redis = RedisEngine(storage.get_connection(), storage.base_exceptions)
        return DenialCache(redis)
    return ForeignEngine(storage)


def storage_prefix(storage: Storage) -> str:
    """What every name in the storage begins with."""
    return str(getattr(storage, "key_prefix", "LIMITS"))
