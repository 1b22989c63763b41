"""A cache of recent denials in the worker: a client that hammers costs no round trip.

A bucket that denies the same cost twice within a second is remembered: until its wait is over, for
at most a second, each request of any caller that charges it this cost is denied from memory.
So a shared limit that is exhausted costs a few round trips a second, for any number of callers.
Changes by this worker drop what is remembered of their buckets; a refund by another worker is seen
after at most a second.

A request is always decided by the engine if one of its limits counts denials, if another guard may
have a reason that comes first, or if it can never pass. Nothing is assumed of its other limits:
they are part of the answer if they were decided together with the denial, and else left out.

A denial may be decided before a refund and arrive after it. So each refund leaves a mark, before
and after it is sent, and a denial whose admission began before the mark is not remembered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from ratelimit_ext.core.charge import NO_HOLD, Change, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import ONCE_US, Engine
from ratelimit_ext.engine.verdicts import merged

LONGEST_S: Final = 1.0
MOST_BUCKETS: Final = 4096
#: The costs that are remembered of one bucket.
MOST_COSTS: Final = 16
#: Buckets share marks by hash; that only drops more denials than necessary.
MARKS: Final = 1024


class CachedDenial:
    """What a bucket has denied: the decision, and how long it is repeated. ``until`` is ``since``
    until it has denied twice. ``answers`` belongs to the cache's user: what it has made of this
    denial."""

    __slots__ = ("answers", "decision", "ends", "limit", "others", "since", "until", "verdict")

    def __init__(self, verdict: Verdict, decision: Decision, since: float, until: float) -> None:
        self.limit: Limit = verdict.charge.limit
        self.verdict = verdict
        self.decision = decision
        self.since = since
        self.until = until
        #: When the wait is over that it names.
        self.ends = since + (verdict.retry_after_us or 0) / 1_000_000
        #: What was decided together with it.
        self.others = {each.charge.key: each for each in decision.verdicts}
        self.answers: dict[Any, Any] = {}


class Recollection(Decision):
    """A denial that is repeated, ``elapsed_us`` after it was decided. ``known`` are the verdicts
    that are known, as they were then, in the order of the charges; ``ages_us`` is the time that has
    passed since each of them."""

    __slots__ = ("ages_us", "denial", "elapsed_us", "known")

    def __init__(
        self, denial: CachedDenial, elapsed_us: int, known: list[Verdict], ages_us: list[int]
    ) -> None:
        super().__init__(admitted=False, now_us=denial.decision.now_us + elapsed_us)
        self.denial = denial
        self.elapsed_us = elapsed_us
        self.known = known
        self.ages_us = ages_us

    def _read(self) -> tuple[Verdict, ...]:
        return tuple(map(_later, self.known, self.ages_us))


class DenialCache:
    """An engine in front of another: repeats recent denials, and asks the other otherwise."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: By bucket and cost; the bucket that has denied longest ago first.
        self._denials: dict[str, dict[int, CachedDenial]] = {}
        #: How often denials were dropped, and that count at the last drop of a bucket, by hash.
        self._forgotten = 0
        self._marks = [0] * MARKS
        #: Held while denials are remembered or dropped, and not while they are repeated.
        self._changes = threading.Lock()

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        """See :meth:`Engine.admit`. A decision from memory has the verdicts that are known."""
        if not take or now_us is not None:
            return self._engine.admit(charges, take=take, hold=hold, now_us=now_us)
        recalled = self.recall(charges)
        if recalled is not None:
            return recalled
        began = self._forgotten
        decision = self._engine.admit(charges, hold=hold)
        if not (decision.admitted or any(charge.meta for charge in charges)):
            self._remember(decision, began)
        return decision

    def recall(self, charges: Sequence[Charge]) -> Recollection | None:
        """The denial of these charges from memory; ``None`` if the engine has to decide."""
        known = self._denials
        if not known:
            return None
        for charge in charges:
            if charge.key in known:
                break
        else:
            return None
        return self._recollection(merged(charges))

    def _recollection(self, charges: Sequence[Charge]) -> Recollection | None:
        """The denials of these charges, with what was decided together with the longest of them."""
        here = time.monotonic()
        found: dict[str, CachedDenial] = {}
        longest: CachedDenial | None = None
        for charge in charges:
            limit, key, cost, is_meta, _, _ = charge
            if is_meta:
                return None  # it counts each denial
            denial = self._denials.get(key, _NOTHING).get(cost)
            if denial is not None and here < denial.until and _same(denial.limit, limit):
                found[key] = denial
                if longest is None or denial.ends > longest.ends:
                    longest = denial
        if longest is None:
            return None
        elapsed_us = int((here - longest.since) * 1_000_000)
        known, ages_us = [], []
        for charge in charges:
            own, other = found.get(charge.key), longest.others.get(charge.key)
            if own is not None:
                known.append(own.verdict)
                ages_us.append(int((here - own.since) * 1_000_000))
            elif other is not None and other.allowed and other.charge.cost == charge.cost:
                known.append(other)
                ages_us.append(elapsed_us)
            elif _may_come_first(charge):
                return None
        return Recollection(longest, elapsed_us, known, ages_us)

    def settle(
        self,
        changes: Sequence[Change],
        *,
        once: str | None = None,
        once_for_us: int = ONCE_US,
        now_us: int | None = None,
    ) -> int:
        """See :meth:`Engine.settle`."""
        with self._changing([change.charge.key for change in changes]):
            return self._engine.settle(changes, once=once, once_for_us=once_for_us, now_us=now_us)

    def clear(self, keys: Sequence[str]) -> int:
        """See :meth:`Engine.clear`."""
        with self._changing(keys):
            return self._engine.clear(keys)

    def reset(self, prefix: str) -> int:
        """See :meth:`Engine.reset`."""
        with self._changing(None):
            return self._engine.reset(prefix)

    @contextmanager
    def _changing(self, keys: Sequence[str] | None) -> Iterator[None]:
        """Drop the denials of these buckets, or all (``None``), before and after they change."""
        self._forget(keys)
        try:
            yield
        finally:
            self._forget(keys)

    def _forget(self, keys: Sequence[str] | None) -> None:
        with self._changes:
            self._forgotten += 1
            if keys is None:
                self._marks = [self._forgotten] * MARKS
                self._denials.clear()
                return
            for key in keys:
                self._marks[hash(key) % MARKS] = self._forgotten
                self._denials.pop(key, None)

    def _remember(self, decision: Decision, began: int) -> None:
        """``began`` is the count of drops when the admission began."""
        denials = decision.denials
        if decision.retry_after_ms is None:
            return  # it can never pass
        if not all(verdict.charge.limit.traits.cacheable for verdict in denials):
            return
        here = time.monotonic()
        with self._changes:
            for verdict in denials:
                key, cost = verdict.charge.key, verdict.charge.cost
                if not cost or self._marks[hash(key) % MARKS] > began:
                    continue  # a cost of 0 is denied only if it is charged later
                by_cost = self._denials.pop(key, {})
                self._drop_old(here)
                self._denials[key] = by_cost  # the last now
                before, until = by_cost.get(cost), here
                if before is not None and before.since == before.until > here - LONGEST_S:
                    until += min(LONGEST_S, (verdict.retry_after_us or 0) / 1_000_000)
                elif before is None and len(by_cost) >= MOST_COSTS:
                    by_cost.pop(next(iter(by_cost)))
                by_cost[cost] = CachedDenial(verdict, decision, here, until)

    def _drop_old(self, here: float) -> None:
        """Make room for one more bucket. The two that have denied longest ago are dropped if that
        was long ago, so that memory is bounded by the denials of about a second."""
        for key in tuple(islice(self._denials, 2)):
            is_old = max(each.since for each in self._denials[key].values()) < here - LONGEST_S
            if is_old or len(self._denials) >= MOST_BUCKETS:
                del self._denials[key]


_NOTHING: Final[dict[int, CachedDenial]] = {}


def _may_come_first(charge: Charge) -> bool:
    """Whether a charge of which nothing is known could change the answer: a guard denies for a
    reason of its own, and a cost above the capacity is never allowed."""
    limit = charge.limit
    return limit.mode == "enforce" and (
        limit.traits.denial_reason != "limit" or charge.cost > limit.capacity
    )


def _same(one: Limit, other: Limit) -> bool:
    return one is other or one == other


def _later(verdict: Verdict, elapsed_us: int) -> Verdict:
    wait = verdict.retry_after_us
    return verdict._replace(
        retry_after_us=max(1, wait - elapsed_us) if wait else wait,
        reset_after_us=max(0, verdict.reset_after_us - elapsed_us),
    )
