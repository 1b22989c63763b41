"""The engine that keeps its buckets in this process: for tests, the fallback and one worker.

Not for: several workers. Each of them would have its own limits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import StorageFull
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.bell import bell
from ratelimit_ext.engine.engine import Marker
from ratelimit_ext.engine.verdicts import Reply, key_of, merged, sent_costs
from ratelimit_ext.strategies import check_changes, strategy_of
from ratelimit_ext.strategies.line import Line, Lined, Looked, inner_of
from ratelimit_ext.strategies.strategy import LONGEST_LIFETIME_US, Snapshot, Strategy

#: How many admissions pass between two looks for expired buckets.
SWEEP_EVERY: Final = 1024
#: The buckets of a process, in about 100 MB. Beyond them it is full, like a server with maxmemory.
MOST_BUCKETS: Final = 200_000
#: A full process also keeps what lives no longer than this: see ``admit.lua``.
BRIEF_US: Final = 60_000_000
#: Where our buckets are kept in a stock memory storage, so that its ``reset`` drops them.
_OWN: Final = "ratelimit_ext"
_EVERYONE: Final = "{*}"
#: How many parameters of limits are kept, and for how long: those of the calendar change.
MOST_PREPARED: Final = 4096
PREPARED_US: Final = 60_000_000
#: A bucket's name, its state, and for how long that matters.
Kept: TypeAlias = tuple[str, Any, int]


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

    def get(self, keys: Sequence[str], now_us: int) -> list[Any]:
        """Return the states, or ``None``. Drop expired ones: a clock set back would revive them."""
        found, states = [], self._states
        for key in keys:
            state, expiry = states.get(key, (None, now_us + 1))
            if expiry <= now_us:
                del states[key]
                state = None
            found.append(state)
        return found

    def put(self, states: Iterable[Kept], now_us: int) -> None:
        """Keep each state for its lifetime in whole milliseconds and one more, as on a server."""
        kept, over = {}, []
        for key, state, lifetime_us in states:
            if lifetime_us > 0:
                whole_ms = -(-min(lifetime_us, LONGEST_LIFETIME_US) // 1000) + 1
                kept[key] = state, now_us + whole_ms * 1000
            else:
                over.append(key)
        self._update(kept)
        if over:
            self.drop(over)

    def _update(self, kept: Mapping[str, tuple[Any, int]]) -> None:
        self._states.update(kept)

    @property
    def are_full(self) -> bool:
        """Whether no bucket of an unknown identity may be added."""
        return len(self._states) >= MOST_BUCKETS

    def drop(self, keys: Sequence[str]) -> int:
        """Forget these buckets; returns how many there were."""
        return len([key for key in keys if self._states.pop(key, None) is not None])

    def named(self, prefix: str) -> list[str]:
        return [key for key in self._states if key.startswith(prefix)]

    def sweep(self, now_us: int) -> None:
        """Once in :data:`SWEEP_EVERY` calls, drop what has expired."""
        self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._until_sweep = SWEEP_EVERY
            self.drop([key for key, (_, expiry) in self._states.items() if expiry <= now_us])


def kept_in(others: dict[str, Any]) -> Callable[[], Buckets]:
    """Return what finds buckets beside others, whose owner may clear them."""
    return lambda: others.get(_OWN) or others.setdefault(_OWN, Buckets())


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
        #: By the limit's id, which no other has as long as the limit is here, and the minute.
        self._prepared: dict[tuple[int, int], tuple[Strategy, tuple[int, ...], Limit]] = {}

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
            checked = self._check(buckets, charges, now, hold)
            failed = {place for place, each in enumerate(checked) if not each.fits}
            denied = "enforce" in [charges[place].limit.mode for place in failed]
            if take:
                self._take(buckets, checked, failed, denied=denied, now=now, hold=hold)
        reply = [now, 0 if denied else 1]
        for each in checked:
            reply += (int(each.fits), *each.snapshot)
        for each in checked:
            reply += each.part or ()
        return Reply(charges, reply, take=take)

    def _check(
        self, buckets: Buckets, charges: Sequence[Charge], now: int, hold: Hold
    ) -> list[_Checked]:
        befores, costs = buckets.get(list(map(key_of, charges)), now), sent_costs(charges)
        minute = now // PREPARED_US
        checked: list[_Checked] = []
        for charge, before, cost in zip(charges, befores, costs, strict=True):
            limit = charge.limit
            known = self._prepared.get((id(limit), minute)) or self._prepare(limit, now)
            strategy, own, _ = known
            waits = limit.wait is not None
            parameters: Any = (own, hold) if limit.held or waits else own
            if not waits and type(before) is Lined:  # its limit let requests wait
                before = before.inner  # noqa: PLW2901
            answer: tuple[bool, Snapshot, Any] = True, (0, strategy.idle or 0, 0), None
            part = None
            if charge.claim is not None:
                own_charge = charge._replace(cost=cost)
                answer, part = strategy.claimed(before, now, own_charge, parameters)
            elif before is not None or strategy.idle is None:
                answer = strategy.check(before, now, cost, parameters)
            fits, snapshot, state = answer
            fits = fits or (charge.cost == 0 and charge.at_once is None)
            if not fits and limit.is_share and limit.is_shadow:  # its group's charge is not made
                checked[-1] = checked[-1]._replace(fits=False)
            checked.append(
                _Checked(charge, strategy, parameters, cost, before, fits, snapshot, state, part)
            )
        return checked

    def _prepare(self, limit: Limit, now: int) -> tuple[Strategy, tuple[int, ...], Limit]:
        if len(self._prepared) >= MOST_PREPARED:
            self._prepared.clear()
        strategy = strategy_of(limit)
        known = strategy, strategy.parameters(limit, now), limit
        self._prepared[id(limit), now // PREPARED_US] = known
        return known

    def _take(
        self,
        buckets: Buckets,
        checked: Sequence[_Checked],
        failed: AbstractSet[int],
        *,
        denied: bool,
        now: int,
        hold: Hold,
    ) -> None:
        kept: list[tuple[_Checked, Kept]] = []
        metas = [checked[i].charge.limit.mode for i in failed if checked[i].charge.meta]
        banned = "enforce" in metas
        waits = hold.waited_us is not None and all(
            isinstance(each.state, Looked) and each.state.due is not None
            for each in (checked[i] for i in failed if checked[i].charge.limit.mode == "enforce")
        )
        for i, each in enumerate(checked):
            charge, strategy, parameters, cost, before, _, _, state, part = each
            if before is None and strategy.idle is not None:
                continue  # there is nothing to keep
            taken = cost if charge.at_once is None else min(charge.at_once, cost)
            taken = taken if part is None else part[0]
            if charge.meta:
                triggers = charge.on_denial or failed
                wanted = (
                    i not in failed and denied and not banned and not failed.isdisjoint(triggers)
                )
            else:
                wanted = i not in failed and not denied
            after = None
            if waits and i in failed and charge.limit.mode == "enforce":
                line = cast(Line, strategy)
                state = line.place(state, now, parameters)
                after = before = line.placed(state)
            if wanted and taken:
                after = strategy.take(state, now, taken, parameters)
            else:
                if strategy.is_stale(before, now, parameters):
                    after = before = strategy.take(state, now, 0, parameters)
                if wanted and not denied:
                    reserved = strategy.reserve(before, now, parameters)
                    after = after if reserved is None else reserved
            if after is not None:
                lifetime_us = strategy.lifetime(after, now, parameters)
                kept.append((each, (charge.key, after, lifetime_us)))
        if buckets.are_full:
            kept = _kept_by_full(checked, kept, now)
        buckets.put([change for _, change in kept], now)

    def settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        check_changes(changes)
        buckets = self._buckets()
        kept: dict[str, Kept] = {}
        with buckets.lock:
            now = self._now_us() if now_us is None else now_us
            applied, minute = 0, now // PREPARED_US
            keys = [change.charge.key for change in changes]
            states = dict(zip(keys, buckets.get(keys, now), strict=True))
            if once is not None and changes:
                is_known = buckets.get([once.key], now) != [None]
                kept[once.key] = once.key, (), once.for_us
                if is_known:
                    changes = ()
            for change in changes:
                (limit, key, *_), hold = change.charge, change.hold
                known = self._prepared.get((id(limit), minute)) or self._prepare(limit, now)
                strategy, own, _ = known
                waits = limit.wait is not None
                parameters = (own, hold) if limit.held or waits else own
                state = states[key] if waits else inner_of(states[key])
                after = strategy.apply(change, state, now, parameters)
                if after is not None:
                    applied += 1
                    lifetime_us = strategy.lifetime(after, now, parameters)
                    kept[key] = key, after, lifetime_us
                    states[key] = after if lifetime_us > 0 else None
            buckets.put(kept.values(), now)
        for change in changes:
            bell.ring_for(change.charge.key)
        return applied

    def take_over(self, limit: Limit, key: str, before: Any) -> Carried:
        """Take the holds out of a bucket, for another engine. ``before`` is its state after the
        last time, or ``None``."""
        buckets, strategy, now = self._buckets(), strategy_of(limit), self._now_us()
        parameters = parameters_of(limit, now)
        with buckets.lock:
            state = inner_of(buckets.get([key], now)[0])
            if state is None:
                return Carried(None, (), 0)
            rest, holds = strategy.without_holds(state, now, parameters)
            if holds:
                buckets.put([(key, rest, strategy.lifetime(rest, now, parameters))], now)
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
            state = inner_of(buckets.get([key], now)[0])
            used = 0 if state is None else strategy.usage(state, now, parameters)
            if used >= units:
                return None
            state = strategy.filled(units, now, parameters, reset_after_us, age_us)
            buckets.put([(key, state, strategy.lifetime(state, now, parameters))], now)
        return state

    def missing(self, limit: Limit, left: int, state: Any) -> int:
        """Return how many units more than ``left`` a state has; negative: less."""
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
            state = inner_of(buckets.get([key], now)[0])
            units = min(units, used(before))
            if not units:
                return before
            less, earlier = (
                strategy.credited(each, now, parameters, units) for each in (state, before)
            )
            if used(state) - used(less) != used(before) - used(earlier):
                return before
            buckets.put([(key, less, strategy.lifetime(less, now, parameters))], now)
        return earlier

    def clear(self, keys: Sequence[str]) -> int:
        buckets = self._buckets()
        with buckets.lock:
            return buckets.drop(keys)

    def reset(self, prefix: str) -> int:
        buckets = self._buckets()
        with buckets.lock:
            return buckets.drop(buckets.named(prefix))


class _Checked(NamedTuple):
    """A charge with its strategy and parameters, and the cost as the strategy sees it; the state as
    it is stored; and the strategy's answer."""

    charge: Charge
    strategy: Strategy
    parameters: Any
    cost: int
    before: Any
    fits: bool
    snapshot: Snapshot
    state: Any
    part: tuple[int, int] | None


def _kept_by_full(
    checked: Sequence[_Checked], changes: Sequence[tuple[_Checked, Kept]], now: int
) -> list[tuple[_Checked, Kept]]:
    """Return those changes that are made although no bucket may be added; StorageFull if the
    request has an unknown identity. The rule is that of ``admit.lua``."""
    known = {_EVERYONE}
    for charge, strategy, parameters, _, before, *_ in checked:
        if (
            before is not None
            and not charge.limit.traits.ends_with_calls
            and strategy.lifetime(before, now, parameters) > BRIEF_US
        ):
            known.add(_identity_of(charge.key))
    kept = []
    for change in changes:
        charge, lifetime_us = change[0].charge, change[1][2]
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
    return key[key.rfind("{") :] if key.endswith("}") and "{" in key else key


def parameters_of(limit: Limit, now: int, hold: Hold = NO_HOLD) -> Any:
    """Return the limit as numbers, with the hold if its costs are reserved."""
    own = strategy_of(limit).parameters(limit, now)
    return (own, hold) if limit.held or limit.wait is not None else own
