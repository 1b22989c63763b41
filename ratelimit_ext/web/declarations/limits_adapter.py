"""The library `limits`: items that carry a limit's options, strategy objects over our buckets, and
an engine over storages that cannot run our scripts.

``LimitManager`` and the ``flask limiter`` commands pass on only a limit's ``RateLimitItem``. So its
options are part of the item and of its equality: two limits that differ only in their strategy are
two limits.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, total_ordering
from typing import Any, Final

from flask_limiter._limits import RuntimeLimit
from limits import RateLimitItem, RateLimitItemPerSecond, WindowStats, strategies
from limits.limits import GRANULARITIES
from limits.storage import MemcachedStorage, Storage

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold, checked_cost
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.errors import ConfigurationError, StorageUnavailable
from ratelimit_ext.core.key import Identity, Naming, bucket_key
from ratelimit_ext.core.limit import NO_OPTIONS, Limit, LimitOptions
from ratelimit_ext.core.limit_string import ParsedLimit, parse
from ratelimit_ext.engine.engine import Engine, Marker
from ratelimit_ext.engine.verdicts import merged
from ratelimit_ext.policy.errors import unknown_identity
from ratelimit_ext.strategies import ALIASES, strategy_named


def _extended(stock: type[RateLimitItem]) -> type[RateLimitItem]:
    """Return a subclass of a stock item with room for a parsed limit and its options.

    The body must not name ``GRANULARITY``: the stock metaclass would make the subclass what
    `limits` parses that word to.
    """

    @total_ordering
    class Extended(stock):  # type: ignore[misc,valid-type]
        __slots__ = ("options", "parsed")

        def __eq__(self, other: object) -> bool:
            parsed = getattr(other, "parsed", None)
            theirs = options_of(other), parsed and parsed.multiple
            return stock.__eq__(self, other) and (self.options, self.parsed.multiple) == theirs

        def __hash__(self) -> int:
            return hash((stock.__hash__(self), self.options, self.parsed.multiple))

        def __lt__(self, other: RateLimitItem) -> bool:
            return rank(self) < rank(other)

        def __repr__(self) -> str:
            return str(self.parsed)

    return Extended


_EXTENDED = {period: _extended(stock) for period, stock in GRANULARITIES.items()}


def items_of(text: object, options: LimitOptions) -> tuple[RateLimitItem, ...]:
    """Return the items of a limit string. Raises ``ConfigurationError`` for an invalid one."""
    return tuple([_item(parsed, parsed.merged(options)) for parsed in parse(text)])


def with_amount(
    runtime: RuntimeLimit, text: object, default_strategy: str
) -> tuple[RateLimitItem, ParsedLimit]:
    """Return the item of a string that changes only the limit's amount. Its item must have options.
    Raises ``ConfigurationError`` for any other string, and for an amount that no call can pass."""
    original: Any = runtime.limit
    parsed: ParsedLimit = original.parsed.with_amount(text)
    options = options_of(original)
    if options.keep:
        before = limit_of(original, default_strategy)
        kept = [(name, before.outside(units)) for name, units in before.kept_of(parsed.amount)]
        priority = options.priority if kept else None
        options = replace(options, keep=tuple(kept), priority=priority)
    item = _item(parsed, options)
    limit_of(item, default_strategy).check_amount(runtime.cost)
    return item, parsed


def _item(parsed: ParsedLimit, options: LimitOptions) -> RateLimitItem:
    """Return the item; a stock one if the limit has no options."""
    amount, count, period = parsed.amount, parsed.count, parsed.period
    if options == NO_OPTIONS:
        return GRANULARITIES[period](amount, count)
    item: Any = _EXTENDED[period](amount, count)
    item.options, item.parsed = options, parsed
    return item  # type: ignore[no-any-return]


def options_of(item: object) -> LimitOptions:
    """Return the item's options; a stock item has none."""
    options: LimitOptions = getattr(item, "options", NO_OPTIONS)
    return options


def function_of(
    item: RateLimitItem, word: str, identities: Mapping[str, Identity]
) -> Callable[[], Any] | None:
    """Return what says of whom (``fair``) or of which class (``priority``) a request is. Raises
    ``ConfigurationError`` for an unknown name."""
    stated: Callable[[], Any] | str | None = getattr(options_of(item), word)
    if not isinstance(stated, str):
        return stated
    if stated not in identities:
        raise ConfigurationError(f"{item!r}, {word}: {unknown_identity(stated, identities)}")
    return identities[stated]


def rank(item: RateLimitItem) -> tuple[int, int]:
    """Shorter periods come first, smaller amounts before larger ones."""
    return item.get_expiry(), item.amount


def limit_of(item: RateLimitItem, default_strategy: str) -> Limit:
    """Return the core's limit for an item. Raises ``ConfigurationError`` if it is invalid.

    ``default_strategy`` is the extension's, for items without a strategy.
    """
    parsed: ParsedLimit = getattr(item, "parsed", None) or ParsedLimit(
        str(item), item.amount, item.multiples, item.GRANULARITY.name
    )
    return _limit_of(parsed, options_of(item), default_strategy)


@lru_cache(maxsize=4096)
def _limit_of(parsed: ParsedLimit, options: LimitOptions, default_strategy: str) -> Limit:
    strategy = parsed.strategy or options.strategy or default_strategy
    strategy_named(strategy)
    return parsed.limit(options, ALIASES.get(strategy, strategy))


class BucketLimiter(strategies.RateLimiter):
    """``hit``, ``test``, ``get_window_stats`` and ``clear``, decided by an engine."""

    def __init__(self, storage: Storage, engine: Engine, naming: Naming) -> None:
        super().__init__(storage)
        self.engine = engine
        self.naming = naming

    @abstractmethod
    def _key(self, limit: Limit, item: RateLimitItem, identifiers: tuple[str, ...]) -> str: ...

    def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Take the cost if it fits; True if it did."""
        return self._decided(item, identifiers, cost, take=True).admitted

    def test(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """True if the cost fits; nothing is taken."""
        return self._decided(item, identifiers, cost, take=False).admitted

    def get_window_stats(self, item: RateLimitItem, *identifiers: str) -> WindowStats:
        """Return when the limit resets (seconds since 1970), and what remains."""
        decision = self._decided(item, identifiers, 0, take=False)
        verdict = decision.verdicts[0]
        return WindowStats(
            (decision.now_us + verdict.reset_after_us) / 1_000_000, verdict.remaining
        )

    def clear(self, item: RateLimitItem, *identifiers: str) -> None:
        """Forget what was taken."""
        limit = limit_of(item, self.naming.strategy)
        self.engine.clear([self._key(limit, item, identifiers)])

    def _decided(
        self, item: RateLimitItem, identifiers: tuple[str, ...], cost: int, *, take: bool
    ) -> Decision:
        limit = limit_of(item, self.naming.strategy)
        key = self._key(limit, item, identifiers)
        return self.engine.admit([Charge(limit, key, checked_cost(cost, item))], take=take)


class ScopedLimiter(BucketLimiter):
    """``limiter.limiter``: strategies by identity and scope, over the buckets of requests."""

    def _key(self, limit: Limit, item: RateLimitItem, identifiers: tuple[str, ...]) -> str:
        """Return the last two identifiers: a prefix before them is in the naming."""
        identity, scope = identifiers[-2:] if len(identifiers) > 1 else (*identifiers, "")
        return bucket_key(self.naming.prefix(limit, str(scope)), str(identity))


_STOCK: Final[dict[str, type[strategies.RateLimiter]]] = {
    "fixed-window": strategies.FixedWindowRateLimiter,
    "sliding-window": strategies.MovingWindowRateLimiter,
    "sliding-window-counter": strategies.SlidingWindowCounterRateLimiter,
}
_BY_CODE: Final = {strategy_named(name).code: stock for name, stock in _STOCK.items()}
A_SECOND_US: Final = 1_000_000
#: The strategy's code and the period in seconds, in a name that core.key has made.
_NAME: Final = re.compile(r":([a-z]+):(\d+)[^:]*:[^:]*:[^:]*:\{[^:]*\}$")


def _is_refundable(charge: Charge) -> bool:
    return charge.limit.strategy == "fixed-window"


class _NamedItem(RateLimitItemPerSecond):
    """An item whose bucket is named by the identifiers alone."""

    __slots__ = ()

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return "/".join(map(str, identifiers))


class LimitsEngine:
    """An :class:`~ratelimit_ext.engine.engine.Engine` over storages of `limits` that cannot run
    our scripts: Memcached, MongoDB and others.

    It calls the stock strategies one after the other. All charges are checked before any is taken,
    so a denied request charges nothing. Between check and take another worker may come first:
    fixed windows are therefore taken first, and given back if another limit then denies. The other
    two strategies cannot give back: with two of them on one request, the first stays charged if the
    second denies.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._limiters: dict[str, strategies.RateLimiter] = {}

    def supports(self, limit: Limit) -> None:
        """Raise ``ConfigurationError`` if this storage cannot carry out the limit."""
        options = {"an anchor": limit.anchor, "reserve": limit.reserve, "keep": limit.keep}
        options["fair"] = limit.fair
        option = next((f" with {name}" for name, value in options.items() if value), "")
        if limit.strategy not in _STOCK or limit.held or option:
            raise ConfigurationError(
                f"{limit}: the strategy {limit.strategy!r} in {limit.unit}{option} needs Redis, "
                f"Valkey or memory; the storage is {type(self._storage).__name__}, which has "
                f"{sorted(_STOCK)}."
            )

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        """See :meth:`Engine.admit`; ``now_us`` is not supported by the stock storages."""
        now = clock.now_us()
        charges = merged(charges)
        asked = [(self._limiter(c.limit), self._item(c.limit), c) for c in charges]
        fits = [limiter.test(item, c.key, cost=c.cost) for limiter, item, c in asked]
        denied = {i for i, c in enumerate(charges) if not fits[i] and c.limit.mode == "enforce"}
        if take:
            banned = any(charges[i].meta for i in denied)
            self._take(charges, fits, denied)
            for charge in charges:
                triggers = charge.on_denial or denied
                if charge.meta and charge.cost and not banned and not denied.isdisjoint(triggers):
                    self._hits(charge)
        verdicts = tuple(self._verdict(c, fits[i], now) for i, c in enumerate(charges))
        return Decision(admitted=not denied, now_us=now, verdicts=verdicts)

    def _take(self, charges: Sequence[Charge], fits: list[bool], denied: set[int]) -> None:
        """Take what fits, shadows last, unless the request is denied. If another worker came
        first, deny the request and refund what was taken."""
        claimed = [i for i, c in enumerate(charges) if fits[i] and c.taken and not c.meta]
        shadows = {i for i in claimed if charges[i].limit.mode != "enforce"}
        taken: list[int] = []
        for i in sorted(claimed, key=lambda i: (i in shadows, not _is_refundable(charges[i]))):
            if denied:
                return
            if self._hits(charges[i]):
                taken.append(i)
                continue
            fits[i] = False
            self._give_back(charges[i])  # a fixed window counts before it compares
            if i not in shadows:
                denied.add(i)
                for other in taken:
                    self._give_back(charges[other])

    def _give_back(self, charge: Charge) -> None:
        """Refund a fixed window, unless it has ended."""
        if not _is_refundable(charge):
            return
        storage, cost = self._storage, charge.taken
        if isinstance(storage, MemcachedStorage):  # has no negative increment, and stops at 0
            storage.call_memcached_func(storage.storage.decr, charge.key, cost, noreply=False)
            return
        expiry = self._item(charge.limit).get_expiry()
        left = storage.incr(charge.key, expiry, amount=-cost)
        if left < 0:
            storage.incr(charge.key, expiry, amount=-left)

    def settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        """Apply corrections above 0; refunds are lost, because the storages have none.

        ``once`` is ignored: these storages cannot apply changes and mark them in one step.
        """
        return sum(
            self._hits(change.charge._replace(cost=change.numbers[1], at_once=None))
            for change in changes
            if change.verb == "adjust" and change.numbers[1] > 0
        )

    def clear(self, keys: Sequence[str]) -> int:
        """See :meth:`Engine.clear`; the stock storages do not say how many existed."""
        for key in keys:
            name = _NAME.search(key)
            assert name is not None, key
            _BY_CODE[name[1]](self._storage).clear(_NamedItem(1, int(name[2])), key)
        return len(keys)

    def probe(self) -> int:
        """See :meth:`StorageEngine.probe`. Workers leave no note here."""
        if not self._storage.check():
            raise StorageUnavailable(f"the storage {type(self._storage).__name__} does not answer")
        return A_SECOND_US

    def reset(self, prefix: str) -> int:
        """Forget all buckets of the storage. Raises ``NotImplementedError`` if it cannot."""
        return self._storage.reset() or 0

    def _limiter(self, limit: Limit) -> strategies.RateLimiter:
        self.supports(limit)
        if limit.strategy not in self._limiters:
            self._limiters[limit.strategy] = _STOCK[limit.strategy](self._storage)
        return self._limiters[limit.strategy]

    @staticmethod
    def _item(limit: Limit) -> RateLimitItem:
        return _NamedItem(limit.amount, limit.period_us // 1_000_000)

    def _hits(self, charge: Charge) -> bool:
        limiter = self._limiter(charge.limit)
        return limiter.hit(self._item(charge.limit), charge.key, cost=charge.taken)

    def _verdict(self, charge: Charge, allowed: bool, now: int) -> Verdict:
        window = self._limiter(charge.limit).get_window_stats(self._item(charge.limit), charge.key)
        reset = max(0, int(window.reset_time * 1_000_000) - now)
        possible = charge.cost <= charge.limit.capacity
        wait = 0 if allowed else reset if possible else None
        return Verdict(charge, allowed, max(0, window.remaining), wait, reset, 0)
