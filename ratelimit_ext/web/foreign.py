"""An engine over storages that cannot run our scripts: Memcached, MongoDB and others of `limits`.

It drives the stock strategies one after the other. All charges are looked at before any is taken,
so a denied request charges nothing. Between look and take another worker may come first. Fixed
windows are taken first then, and given back if another limit is lost. The other two strategies have
no operation that gives back: with two of them on one request, the first stays charged if the second
is lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemcachedStorage, Storage
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from ratelimit_ext.core import clock
from ratelimit_ext.core.charge import NO_HOLD, Change, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import ONCE_US, Correction
from ratelimit_ext.engine.verdicts import merged
from ratelimit_ext.strategies import strategy_named

_STOCK: Final[dict[str, type[RateLimiter]]] = {
    "fixed-window": FixedWindowRateLimiter,
    "sliding-window": MovingWindowRateLimiter,
    "sliding-window-counter": SlidingWindowCounterRateLimiter,
}
_BY_CODE: Final = {strategy_named(name).code: stock for name, stock in _STOCK.items()}
#: The strategy's code and the period in seconds, in a name that core.key has made.
_NAME: Final = re.compile(r":([a-z]+):(\d+)[^:]*:[^:]*:[^:]*:\{[^:]*\}$")


def _can_be_given_back(charge: Charge) -> bool:
    return charge.limit.strategy == "fixed-window"


class _NamedItem(RateLimitItemPerSecond):
    """An item whose bucket has the name that is given, and no other."""

    __slots__ = ()

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return "/".join(map(str, identifiers))


class ForeignEngine:
    """An :class:`~ratelimit_ext.engine.engine.Engine` over a storage's own operations."""

    gives_back: Final = False

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._limiters: dict[str, RateLimiter] = {}

    def supports(self, limit: Limit) -> None:
        """Raise ``ConfigurationError`` where this storage cannot carry out the limit."""
        if limit.strategy not in _STOCK or limit.anchor or limit.held:
            raise ConfigurationError(
                f"{limit}: the strategy {limit.strategy!r} in {limit.unit}"
                f"{' with an anchor' if limit.anchor else ''} needs Redis, Valkey or memory; "
                f"the storage is {type(self._storage).__name__}, which has {sorted(_STOCK)}."
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
        fits = [self._looks(charge) for charge in charges]
        denied = {i for i, c in enumerate(charges) if not fits[i] and c.limit.mode == "enforce"}
        if take:
            banned = any(charges[i].meta for i in denied)
            self._take(charges, fits, denied)
            for charge in charges:
                triggers = charge.on_denial or denied
                if charge.meta and charge.cost and not banned and not denied.isdisjoint(triggers):
                    self._hits(charge)
        verdicts = tuple(self._verdict(c, fits[i], now) for i, c in enumerate(charges))
        return Decision(not denied, now, verdicts)

    def _take(self, charges: Sequence[Charge], fits: list[bool], denied: set[int]) -> None:
        """Take what fits, unless the request is denied. If another worker came first, deny it
        and give back what was taken until then."""
        claimed = [i for i, c in enumerate(charges) if fits[i] and c.cost and not c.meta]
        taken = []
        for i in sorted(claimed, key=lambda i: not _can_be_given_back(charges[i])):
            enforced = charges[i].limit.mode == "enforce"
            if enforced and denied:
                continue
            if self._hits(charges[i]):
                taken += [i] * enforced
                continue
            fits[i] = False
            self._give_back(charges[i])  # a fixed window counts before it compares
            if enforced:
                denied.add(i)
                for other in taken:
                    self._give_back(charges[other])

    def _give_back(self, charge: Charge) -> None:
        """The cost of a fixed window; if that has ended meanwhile, nothing."""
        if not _can_be_given_back(charge):
            return
        storage, cost = self._storage, charge.cost
        if isinstance(storage, MemcachedStorage):  # has no negative increment, and stops at 0
            storage.call_memcached_func(storage.storage.decr, charge.key, cost, noreply=False)
            return
        expiry = self._item(charge.limit).get_expiry()
        left = storage.incr(charge.key, expiry, amount=-cost)
        if left < 0:
            storage.incr(charge.key, expiry, amount=-left)

    def settle(
        self,
        changes: Sequence[Change],
        *,
        once: str | None = None,
        once_for_us: int = ONCE_US,
        now_us: int | None = None,
    ) -> int:
        """Take what was only looked at; a negative difference is lost, as nothing gives it back.

        ``once`` is ignored: these storages cannot apply changes and note it in one step.
        """
        return sum(
            self._hits(change.charge._replace(cost=change.delta))
            for change in changes
            if isinstance(change, Correction) and change.delta > 0
        )

    def clear(self, keys: Sequence[str]) -> int:
        """See :meth:`Engine.clear`; how many there were is not known here."""
        for key in keys:
            name = _NAME.search(key)
            assert name is not None, key
            _BY_CODE[name[1]](self._storage).clear(_NamedItem(1, int(name[2])), key)
        return len(keys)

    def reset(self, prefix: str) -> int:
        """All buckets of the storage; raises ``NotImplementedError`` where it cannot."""
        return self._storage.reset() or 0

    def reachable(self) -> bool:
        """Whether the storage answers now."""
        return self._storage.check()

    def _limiter(self, limit: Limit) -> RateLimiter:
        self.supports(limit)
        if limit.strategy not in self._limiters:
            self._limiters[limit.strategy] = _STOCK[limit.strategy](self._storage)
        return self._limiters[limit.strategy]

    @staticmethod
    def _item(limit: Limit) -> RateLimitItem:
        return _NamedItem(limit.amount, limit.period_us // 1_000_000)

    def _looks(self, charge: Charge) -> bool:
        limiter = self._limiter(charge.limit)
        return limiter.test(self._item(charge.limit), charge.key, cost=charge.cost)

    def _hits(self, charge: Charge) -> bool:
        limiter = self._limiter(charge.limit)
        return limiter.hit(self._item(charge.limit), charge.key, cost=charge.cost)

    def _verdict(self, charge: Charge, allowed: bool, now: int) -> Verdict:
        window = self._limiter(charge.limit).get_window_stats(self._item(charge.limit), charge.key)
        reset = max(0, int(window.reset_time * 1_000_000) - now)
        possible = charge.cost <= charge.limit.capacity
        wait = 0 if allowed else reset if possible else None
        return Verdict(charge, allowed, max(0, window.remaining), wait, reset, 0)
