"""The engine that keeps its buckets in this process: for tests, the fallback and one worker.

Not for: several workers. Each of them would have its own limits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import StorageFull
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import ONCE_US
from ratelimit_ext.engine.verdicts import Reply, merged, sent_cost
from ratelimit_ext.strategies import strategy_of
from ratelimit_ext.strategies.strategy import LONGEST_LIFETIME_US, Snapshot

#: How many admissions pass between two looks for expired buckets.
SWEEP_EVERY: Final = 1024
#: The buckets of a process, in about 100 MB. Beyond them it is full, like a server with maxmemory.
MOST_BUCKETS: Final = 200_000
#: A full process also keeps what lives no longer than this: see ``admit.lua``.
BRIEF_US: Final = 60_000_000
_EVERYONE: Final = "{*}"


class Carried(NamedTuple):
    """What another engine takes over of a bucket: the holds of its calls in flight (each with what
    it holds and what is spent of it), the state without them, and the units that were used since
    the last time."""

    state: Any
    holds: Sequence[tuple[Hold, int, int]]
    used: int


class Buckets:
    """Bucket states with the instant from which each of them no longer matters."""

    lock: AbstractContextManager[Any]

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._states: dict[str, tuple[Any, int]] = {}
        self._until_sweep = SWEEP_EVERY

    def get(self, key: str, now_us: int) -> Any:
        """The state, or ``None``. An expired one is dropped: a clock set back would revive it."""
        state, expiry = self._states.get(key, (None, now_us + 1))
        if expiry > now_us:
            return state
        del self._states[key]
        return None

    def put(self, key: str, state: Any, expiry_us: int) -> None:
        """Keep the state until then."""
        self._states[key] = (state, expiry_us)

    @property
    def are_full(self) -> bool:
        """Whether no bucket of an unknown identity may be added."""
        return len(self._states) >= MOST_BUCKETS

    def drop(self, keys: Sequence[str]) -> int:
        """Forget these buckets; returns how many there were."""
        return sum(self._states.pop(key, None) is not None for key in keys)

    def named(self, prefix: str) -> list[str]:
        return [key for key in self._states if key.startswith(prefix)]

    def sweep(self, now_us: int) -> None:
        """Once in :data:`SWEEP_EVERY` calls, drop what has expired."""
        self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._until_sweep = SWEEP_EVERY
            self.drop([key for key, (_, expiry) in self._states.items() if expiry <= now_us])


class MemoryEngine:
    """An :class:`~ratelimit_ext.engine.engine.Engine` over :class:`Buckets`, under one lock.

    ``buckets`` is called at each use, so that their owner may replace them. ``now_us`` replaces the
    process's clock.
    """

    def __init__(
        self,
        buckets: Callable[[], Buckets] | None = None,
        *,
        now_us: Callable[[], int] = lambda: clock.now_us(),  # noqa: PLW0108 - tests replace it
    ) -> None:
        own = Buckets()
        self._buckets = buckets or (lambda: own)
        self._now_us = now_us

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        charges = merged(charges)
        buckets = self._buckets()
        with buckets.lock:
            now = self._now_us() if now_us is None else now_us
            buckets.sweep(now)
            checked = [_check(buckets, charge, now, hold) for charge in charges]
            denied = any(
                not fits and charge.limit.mode == "enforce"
                for charge, (fits, _, _) in zip(charges, checked, strict=True)
            )
            if take:
                self._take(buckets, charges, checked, denied=denied, now=now, hold=hold)
        reply = [now, 0 if denied else 1]
        for fits, snapshot, _ in checked:
            reply += (int(fits), *snapshot)
        return Reply(charges, reply, take=take)

    def _take(
        self,
        buckets: Buckets,
        charges: Sequence[Charge],
        checked: Sequence[tuple[bool, Snapshot, Any]],
        *,
        denied: bool,
        now: int,
        hold: Hold,
    ) -> None:
        failed = {i for i, (fits, _, _) in enumerate(checked) if not fits}
        changes: list[tuple[Charge, Any, int]] = []
        banned = any(charges[i].meta and charges[i].limit.mode == "enforce" for i in failed)
        for i, charge in enumerate(charges):
            if charge.meta:
                triggers = charge.on_denial or failed
                wanted = (
                    i not in failed and denied and not banned and not failed.isdisjoint(triggers)
                )
            else:
                wanted = i not in failed and not denied
            strategy, state = strategy_of(charge.limit), buckets.get(charge.key, now)
            parameters = parameters_of(charge.limit, now, hold)
            kept = None
            if wanted and charge.taken:
                units = min(charge.taken, sent_cost(charge))
                kept = strategy.take(checked[i][2], now, units, parameters)
            else:
                if strategy.is_stale(state, now, parameters):
                    kept = state = strategy.take(checked[i][2], now, 0, parameters)
                if wanted and not denied:
                    reserved = strategy.reserve(state, now, parameters)
                    kept = kept if reserved is None else reserved
            if kept is not None:
                changes.append((charge, kept, strategy.lifetime(kept, now, parameters)))
        if buckets.are_full:
            changes = _kept_by_full(buckets, charges, changes, now, hold)
        for charge, kept, lifetime in changes:
            _keep(buckets, charge.key, kept, lifetime, now)

    def settle(
        self,
        changes: Sequence[Change],
        *,
        once: str | None = None,
        once_for_us: int = ONCE_US,
        now_us: int | None = None,
    ) -> int:
        for change in changes:
            strategy_of(change.charge.limit).check_change(change)
        buckets = self._buckets()
        applied = 0
        with buckets.lock:
            now = self._now_us() if now_us is None else now_us
            if once is not None and changes:
                is_known = buckets.get(once, now) is not None
                _keep(buckets, once, (), once_for_us, now)
                if is_known:
                    return 0
            for change in changes:
                charge = change.charge
                strategy = strategy_of(charge.limit)
                parameters = parameters_of(charge.limit, now, change.hold)
                state = strategy.apply(change, buckets.get(charge.key, now), now, parameters)
                if state is not None:
                    applied += 1
                    lifetime = strategy.lifetime(state, now, parameters)
                    _keep(buckets, charge.key, state, lifetime, now)
        return applied

    def take_over(self, limit: Limit, key: str, before: Any) -> Carried:
        """Take the holds out of a bucket, for another engine. ``before`` is its state after the
        last time, or ``None``."""
        buckets, strategy, now = self._buckets(), strategy_of(limit), self._now_us()
        parameters = parameters_of(limit, now)
        with buckets.lock:
            state = buckets.get(key, now)
            if state is None:
                return Carried(None, (), 0)
            rest, holds = strategy.without_holds(state, now, parameters)
            if holds:
                _keep(buckets, key, rest, strategy.lifetime(rest, now, parameters), now)
        used = strategy.usage(rest, now, parameters)
        if before is not None:
            used -= strategy.usage(before, now, parameters)
        return Carried(rest, holds, used)

    def fill(self, limit: Limit, key: str, left: int, reset_after_us: int, age_us: int) -> Any:
        """Let a bucket have no more than ``left`` units, as it had in another engine ``age_us``
        ago, and be full again after ``reset_after_us``. Returns its state; ``None`` if it had no
        more."""
        buckets, strategy, now = self._buckets(), strategy_of(limit), self._now_us()
        parameters, units = parameters_of(limit, now, NO_HOLD), limit.capacity - left
        with buckets.lock:
            state = buckets.get(key, now)
            used = 0 if state is None else strategy.usage(state, now, parameters)
            if used >= units:
                return None
            state = strategy.filled(units, now, parameters, reset_after_us, age_us)
            _keep(buckets, key, state, strategy.lifetime(state, now, parameters), now)
        return state

    def missing(self, limit: Limit, left: int, state: Any) -> int:
        """How many units more than ``left`` a state has; negative: less."""
        now, used = self._now_us(), 0
        if state is not None:
            used = strategy_of(limit).usage(state, now, parameters_of(limit, now))
        return left - (limit.capacity - used)

    def credit(self, limit: Limit, key: str, units: int, before: Any) -> Any:
        """Give back up to ``units`` of what a bucket counted as used in ``before``, an earlier
        state of it; take as many more if negative. Returns ``before`` after the same. Both stay as
        they were if they cannot be changed alike."""
        buckets, strategy, now = self._buckets(), strategy_of(limit), self._now_us()
        parameters = parameters_of(limit, now)

        def used(state: Any) -> int:
            return 0 if state is None else strategy.usage(state, now, parameters)

        with buckets.lock:
            state = buckets.get(key, now)
            units = min(units, used(before))
            if not units:
                return before
            less, earlier = (
                strategy.credited(each, now, parameters, units) for each in (state, before)
            )
            if used(state) - used(less) != used(before) - used(earlier):
                return before
            _keep(buckets, key, less, strategy.lifetime(less, now, parameters), now)
        return earlier

    def clear(self, keys: Sequence[str]) -> int:
        buckets = self._buckets()
        with buckets.lock:
            return buckets.drop(keys)

    def reset(self, prefix: str) -> int:
        buckets = self._buckets()
        with buckets.lock:
            return buckets.drop(buckets.named(prefix))


def _check(buckets: Buckets, charge: Charge, now: int, hold: Hold) -> tuple[bool, Snapshot, Any]:
    fits, snapshot, state = strategy_of(charge.limit).check(
        buckets.get(charge.key, now),
        now,
        sent_cost(charge),
        parameters_of(charge.limit, now, hold),
    )
    return fits or (charge.cost == 0 and charge.at_once is None), snapshot, state


def _kept_by_full(
    buckets: Buckets,
    charges: Sequence[Charge],
    changes: Sequence[tuple[Charge, Any, int]],
    now: int,
    hold: Hold,
) -> list[tuple[Charge, Any, int]]:
    """Those changes that are made although no bucket may be added; StorageFull if the request has
    an unknown identity. The rule is that of ``admit.lua``."""
    known = {_EVERYONE}
    for charge in charges:
        state, limit = buckets.get(charge.key, now), charge.limit
        if state is not None and not limit.traits.ends_with_calls:
            left_us = strategy_of(limit).lifetime(state, now, parameters_of(limit, now, hold))
            if left_us > BRIEF_US:
                known.add(_identity_of(charge.key))
    kept = []
    for change in changes:
        charge, _, lifetime_us = change
        if (
            lifetime_us <= BRIEF_US
            or charge.limit.traits.ends_with_calls
            or _identity_of(charge.key) in known
        ):
            kept.append(change)
        elif not charge.meta and charge.limit.mode == "enforce":
            raise StorageFull(charge.key)
    return kept


def _identity_of(key: str) -> str:
    """The end of a bucket's name that is its identity."""
    return key[key.rfind("{") :] if key.endswith("}") and "{" in key else key


def _keep(buckets: Buckets, key: str, state: Any, lifetime_us: int, now: int) -> None:
    """For its lifetime in whole milliseconds and one more, as on a server."""
    if lifetime_us > 0:
        whole_ms = -(-min(lifetime_us, LONGEST_LIFETIME_US) // 1000) + 1
        buckets.put(key, state, now + whole_ms * 1000)
    else:
        buckets.drop([key])


def parameters_of(limit: Limit, now: int, hold: Hold = NO_HOLD) -> Any:
    """The limit as numbers, with the hold if its costs are reserved."""
    own = strategy_of(limit).parameters(limit, now)
    return (own, hold) if limit.held else own
