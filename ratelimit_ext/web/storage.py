"""Which engine decides: the storage's, or that of the outage while the storage is down.

The strategies are also registered in ``limits.strategies.STRATEGIES``, for plain `limits` code and
a plain ``flask_limiter.Limiter``, on the storages of `limits`.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

from limits import RateLimitItem, WindowStats
from limits.storage import MemoryStorage, RedisClusterStorage, RedisStorage, Storage
from limits.strategies import STRATEGIES

from ratelimit_ext.core.charge import DEFAULT_LEASE_S
from ratelimit_ext.core.decision import Degradation
from ratelimit_ext.core.errors import ConfigurationError, checked_seconds
from ratelimit_ext.core.events import Events, StorageEvent
from ratelimit_ext.core.key import SLOTS, Naming, escaped
from ratelimit_ext.core.limit import Limit, LimitOptions
from ratelimit_ext.engine.denial_cache import DenialCache
from ratelimit_ext.engine.engine import Engine, Workers
from ratelimit_ext.engine.memory import MemoryEngine, kept_in
from ratelimit_ext.records.store import storage_prefix
from ratelimit_ext.settlements.journal import Journal, storage_address
from ratelimit_ext.settlements.queue import SettlementQueue
from ratelimit_ext.web.declarations.limits_adapter import (
    BucketLimiter,
    LimitsEngine,
    ScopedLimiter,
    items_of,
    limit_of,
)
from ratelimit_ext.web.declarations.settings import seconds

if TYPE_CHECKING:
    from ratelimit_ext.engine.breaker import Breaker, StorageEngine
    from ratelimit_ext.engine.outage import OutageEngine

#: How long a call of the storage takes at most, in seconds.
DEADLINE: Final = "RATELIMIT_DEADLINE_SECONDS"
DEFAULT_DEADLINE_S: Final = 0.1
LONGEST_WAIT_S: Final = 3600.0
#: See ``DEFAULT_LEASE_S``.
LEASE: Final = "RATELIMIT_LEASE_SECONDS"
#: How many workers share the limits, and the number of this one from 0, while the storage is down.
WORKERS: Final = "RATELIMIT_WORKERS"
#: How many requests of a worker may wait at once for their turn.
WAITING: Final = "RATELIMIT_WAITING_MAX"
#: gunicorn's, and other servers'.
CONCURRENCY: Final = "WEB_CONCURRENCY"
MOST_WORKERS: Final = 10_000

NOT_INITIALISED: Final = "The limiter has no application. Call limiter.init_app(app) first."
NO_CONCURRENCY: Final = (
    "RATELIMIT_WORKERS is set without WEB_CONCURRENCY: this host has the share of one of %d "
    "workers. Set WEB_CONCURRENCY to the number of workers of this host."
)
CLUSTER_DOWN: Final = "The storage is down at the start; its nodes are asked again: %s"

_logger = logging.getLogger("ratelimit_ext")


class _Guarded(NamedTuple):
    """The engine over a storage; its breaker; and what carries limits out."""

    engine: Engine
    breaker: Breaker | None
    inner: Engine


_NOTHING: Final[tuple[Engine | None, Breaker | None, Engine | None]] = (None, None, None)
_engines: WeakKeyDictionary[Storage, _Guarded] = WeakKeyDictionary()


def engine_for(storage: Storage) -> Engine:
    """Return the engine over the storage; the same one at every call."""
    return _guarded(storage).engine


def _guarded(storage: Storage) -> _Guarded:
    return _engines.get(storage) or _engines.setdefault(storage, _new_engine(storage))


def _new_engine(storage: Storage) -> _Guarded:
    if isinstance(storage, MemoryStorage):
        memory = MemoryEngine(kept_in(cast(dict[str, Any], storage.storage)))
        return _Guarded(memory, None, memory)
    from ratelimit_ext.engine.breaker import Breaker  # noqa: PLC0415 - memory cannot fail

    if not isinstance(storage, RedisStorage):
        stock = LimitsEngine(storage)
        return _Guarded(breaker := Breaker(stock), breaker, stock)
    scripted = _scripted(storage)
    return _Guarded(DenialCache(breaker := Breaker(scripted)), breaker, scripted)


def _scripted(storage: RedisStorage) -> StorageEngine:
    """Return the engine over a storage that runs our scripts."""
    client, errors = storage.get_connection(), storage.base_exceptions
    if isinstance(storage, RedisClusterStorage):
        from ratelimit_ext.engine import cluster, nodes  # noqa: PLC0415 - only for clusters

        return cluster.ClusterEngine(nodes.Nodes(client, errors), prefix=storage_prefix(storage))
    from ratelimit_ext.engine.redis import RedisEngine  # noqa: PLC0415 - only for Redis

    return RedisEngine(client, errors, prefix=storage_prefix(storage))


def deadline_s(config: Mapping[str, Any]) -> float:
    """Return the deadline in seconds: from the configuration or the environment. Raises
    ``ConfigurationError``."""
    return seconds(DEADLINE, config.get(DEADLINE, os.environ.get(DEADLINE) or DEFAULT_DEADLINE_S))


def lease_s(config: Mapping[str, Any]) -> float:
    """Return the configured lease in seconds. Raises ``ConfigurationError``."""
    return seconds(LEASE, config.get(LEASE, DEFAULT_LEASE_S))


def with_deadline(uri: str, options: Mapping[str, Any], deadline: float) -> dict[str, Any]:
    """Return the options of a storage, with the deadline where they set no timeout of their own.
    Only the clients of Redis and Valkey know such options."""
    if not uri.startswith(("redis", "valkey")):
        return dict(options)
    timeouts = {"socket_timeout": deadline, "socket_connect_timeout": deadline}
    with_own = {**timeouts, **options}
    for word in timeouts:
        if with_own[word] is not None:
            where = f"The storage's options: {word}"
            hint = "None would wait without end."
            with_own[word] = checked_seconds(where, with_own[word], most=LONGEST_WAIT_S, hint=hint)
    if "+sentinel" in uri.partition("://")[0]:
        # redis-py retries for seconds otherwise.
        once = {**timeouts, "retry": None}
        with_own["sentinel_kwargs"] = {**once, **options.get("sentinel_kwargs", {})}
    return with_own


@contextmanager
def cluster_may_be_down(uri: str) -> Iterator[None]:
    """The client of a cluster asks it for its nodes and commands when it is made. In this block it
    may get no answer, like the client of a single server. Until it does, it takes the first node
    for the owner of all slots."""
    scheme = uri.partition("://")[0]
    if scheme not in RedisClusterStorage.STORAGE_SCHEME:
        yield
        return
    library: Any = importlib.import_module(f"{scheme.partition('+')[0]}.cluster")
    nodes, commands = library.NodesManager, library.CommandsParser
    ask_nodes, ask_commands = nodes.initialize, commands.initialize
    silent: list[Any] = []
    own_thread = threading.get_ident()

    def ask_nodes_that_may_be_down(layout: Any, **options: Any) -> None:
        try:
            ask_nodes(layout, **options)
        except Exception as error:
            is_silence = isinstance(error.__cause__, library.ConnectionError | library.TimeoutError)
            if not is_silence or threading.get_ident() != own_thread:
                raise
            _logger.error(CLUSTER_DOWN, error)
            silent.append(layout)
            first = next(iter(layout.startup_nodes.values()))
            first.server_type = library.PRIMARY
            layout.nodes_cache, layout.default_node = {first.name: first}, first
            layout.slots_cache = {slot: [first] for slot in range(SLOTS)}

    def ask_commands_of_nodes(parser: Any, client: Any) -> None:
        if client.nodes_manager not in silent:
            ask_commands(parser, client)

    nodes.initialize, commands.initialize = ask_nodes_that_may_be_down, ask_commands_of_nodes
    try:
        yield
    finally:
        nodes.initialize, commands.initialize = ask_nodes, ask_commands


def workers(config: Mapping[str, Any]) -> Workers:
    """Return how many workers share the limits: from the configuration, the environment, or the
    number that gunicorn was started with, which is that of this host; 1 if unknown. Raises
    ``ConfigurationError``."""
    count, on_host, waiting = (_whole(name, config) for name in (WORKERS, CONCURRENCY, WAITING))
    if count is None:
        count = on_host = on_host or 1
    return Workers(count, on_host, waiting or 1)


def _whole(name: str, config: Mapping[str, Any]) -> int | None:
    value = config.get(name, os.environ.get(name))
    if value is None or value == "":
        return None
    text = str(value)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MOST_WORKERS):
        allowed = f"a whole number from 1 to {MOST_WORKERS}"
        raise ConfigurationError(f"{name}: found {value!r}; allowed: {allowed}.")
    return int(text)


def failure_policy(
    limit: Limit, *, has_fallback: bool = False, swallow_errors: bool = False
) -> Degradation:
    """Return the ``on_failure`` of a limit. Two of Flask-Limiter's settings change the default:
    with its in-memory fallback it is ``local`` for all, else with ``swallow_errors`` ``open``."""
    if limit.on_failure is not None:
        return cast(Degradation, limit.on_failure)
    if limit.traits.guard or has_fallback:
        return "local"
    if swallow_errors:
        return "open"
    return "closed" if limit.unit == "usd" else "local"


class Engines:
    """The engines of a storage: its own, and the one that decides while it is down. Without a
    storage (the extension has no application yet, or is disabled) only their absence can be asked
    for."""

    def __init__(
        self,
        storage: Storage | None,
        policy: Callable[[Limit], Degradation],
        workers: Workers,
        *,
        events: Events,
        queue: SettlementQueue,
    ) -> None:
        self._storage = storage
        self._events = events
        self._queue = queue
        guarded = None if storage is None else _guarded(storage)
        self._primary, self._breaker, self._inner = guarded or _NOTHING
        #: Decides while the storage is down, and single requests whose call has failed. ``None``:
        #: the storage cannot fail.
        self.outage: OutageEngine | None = None
        self._strategy_objects: dict[int, ScopedLimiter] = {}
        if self._breaker is not None and self._primary is not None:
            from ratelimit_ext.engine.outage import OutageEngine  # noqa: PLC0415 - see above

            self.outage = OutageEngine(self._primary, policy, workers, wake=self._breaker.wake)
            self.outage.is_deciding = self._breaker.is_open
            self._breaker.outage = self.outage

            def note(event: StorageEvent) -> None:
                events.emit(event)
                if not event.is_down:
                    queue.flush(0)  # without waiting
                elif workers.count > 1 and workers.on_host is None:
                    _logger.warning(NO_CONCURRENCY, workers.count)

            self._breaker.changed = note

    @property
    def current(self) -> Engine:
        if self.outage is not None and self.outage.is_deciding:
            return self.outage
        assert self._primary is not None, NOT_INITIALISED
        return self._primary

    @property
    def shared_client(self) -> Any:
        """The client of a storage that workers share by our scripts, or ``None``."""
        storage = self._storage
        return storage.get_connection() if isinstance(storage, RedisStorage) else None

    @property
    def is_down(self) -> bool:
        return self.outage is not None and self.outage.is_deciding

    def instead_of(self, failed: Engine) -> OutageEngine | None:
        """Return the engine that decides a request after another has failed, if any."""
        return None if failed is self.outage else self.outage

    @property
    def primary(self) -> Engine:
        """The storage's engine, also while it is down: for what all workers have to see."""
        assert self._primary is not None, NOT_INITIALISED
        return self._primary

    def check(self, text: str, options: LimitOptions, *, strategy: str) -> None:
        """Raise ``ConfigurationError`` if the storage cannot carry out the limits of this string;
        ``strategy`` is that of limits that state none."""
        if isinstance(self._inner, LimitsEngine):
            for item in items_of(text, getattr(options, "options", options)):  # of a definition
                self._inner.supports(limit_of(item, strategy))

    def check_storage(self) -> None:
        """Ask the storage whether it serves, unless it is known to be down."""
        if self._breaker is not None:
            self._breaker.check()

    def keep_settlements(self, directory: Path | None, uri: str) -> None:
        """Keep queued settlements in files of the directory, if the storage of this URI outlives
        the process and can apply them once."""
        engine = self.primary
        if directory and not isinstance(self._inner, LimitsEngine | MemoryEngine):
            journal = Journal(directory, storage_address(uri))
            if self.outage is not None:
                from ratelimit_ext.engine.outage_store import outage_path  # noqa: PLC0415

                self.outage.share(outage_path(directory, journal.storage))
                # The first one, because it knows whether a call is still on its way to the storage.
                self._queue.keep(self.outage, journal, events=self._events)
            self._queue.keep(engine, journal, events=self._events)

    def strategy_object(self, naming: Naming) -> ScopedLimiter:
        """Flask-Limiter's strategy object; the same one as long as the engine is."""
        engine = self.current
        assert self._storage is not None
        made = ScopedLimiter(self._storage, engine, naming)
        return self._strategy_objects.setdefault(id(engine), made)


def _leave() -> None:
    """At the end of the process, charge what was decided without the storage, or leave it to other
    workers, with what this one knows of buckets."""
    for _, breaker, inner in list(_engines.values()):
        if breaker is not None and breaker.outage is not None:
            # Without requests it has not noticed an outage.
            is_down = breaker.is_open or (breaker.outage.last.untaken() and not _serves(inner))
            breaker.outage.leave(inner, is_down=bool(is_down))


def _serves(engine: Any) -> bool:
    with suppress(Exception):  # the process ends
        engine.probe()
        return True
    return False


atexit.register(_leave)  # before the queue, which was registered earlier


class RegisteredLimiter(BucketLimiter):
    """One strategy for all items, as the strategies of `limits` are."""

    STRATEGY: ClassVar[str]

    def __init__(self, storage: Storage) -> None:
        naming = Naming(storage_prefix(storage), "", self.STRATEGY)
        super().__init__(storage, engine_for(storage), naming)

    def _key(self, limit: Limit, item: RateLimitItem, identifiers: tuple[str, ...]) -> str:
        identity = "/".join(escaped(str(part)).replace("/", "%2F") for part in identifiers)
        return f"{self.naming.prefix(limit, item.namespace)}{{{identity}}}"

    def get_window_stats(self, item: RateLimitItem, *identifiers: str) -> WindowStats:
        """Return when the limit resets, and what remains. If nothing remains, return when a call of
        cost 1 passes: Flask-Limiter makes Retry-After of it."""
        decision = self._decided(item, identifiers, 1, take=False)
        verdict = decision.verdicts[0]
        wait_us = verdict.reset_after_us if verdict.allowed else verdict.retry_after_us
        reset_us = decision.now_us + (verdict.reset_after_us if wait_us is None else wait_us)
        return WindowStats(reset_us / 1_000_000, verdict.remaining)


class TokenBucketRateLimiter(RegisteredLimiter):
    STRATEGY = "token-bucket"


class SlidingWindowRateLimiter(RegisteredLimiter):
    STRATEGY = "sliding-window"


def register() -> None:
    """Add the strategies whose names are not taken."""
    strategies = cast(dict[str, Any], STRATEGIES)
    for strategy in (TokenBucketRateLimiter, SlidingWindowRateLimiter):
        strategies.setdefault(strategy.STRATEGY, strategy)
