"""A cache of recent denials in the worker: a client that hammers costs no round trip.

A bucket that denies the same cost twice within a second is remembered: until its wait is over, for
at most a second, each request of any caller that charges it this cost is denied from memory.
So a shared limit that is exhausted costs a few round trips a second, for any number of callers.
Changes by this worker drop what is remembered of their buckets, and so does what it takes if that
may lengthen the wait; what another worker changes is seen after at most a second.

A denial from memory tells the longest wait of all limits that deny. So each limit of the request
has to be known at its cost: it denies, or within the last second it had enough left, less what this
worker has taken since. Of a limit that is not known, it suffices that it can never deny for longer;
it is left out of the answer. A request is always decided by the engine if one of its limits counts
denials, if another guard may have a reason that comes first, or if it can never pass.

A denial may be decided before a refund and arrive after it. So each refund leaves a mark, before
and after it is sent, and a denial whose admission began before the mark is not remembered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from math import inf
from operator import attrgetter, mod
from typing import Any, Final, NamedTuple

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine, Marker
from ratelimit_ext.engine.verdicts import key_of, merged
from ratelimit_ext.strategies import strategy_of

LONGEST_S: Final = 1.0
MOST_BUCKETS: Final = 4096
#: The costs that are remembered of one bucket.
MOST_COSTS: Final = 16
#: Buckets share marks by hash; that only asks the engine more often than necessary.
MARKS: Final = 1024


@dataclass(slots=True, eq=False)
class CachedDenial:
    """What a bucket has denied: the decision, and how long it is repeated. ``until`` is ``since``
    until it has denied twice. ``answers`` is what the cache's user has made of it."""

    verdict: Verdict
    decision: Decision
    since: float
    until: float
    #: What this worker had taken of the buckets with its mark, and whether others may take from
    #: this one before the wait is over.
    taken: int
    has_more: bool = field(init=False)
    #: When the wait is over that it names.
    ends: float = field(init=False)
    limit: Limit = field(init=False)
    answers: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.limit = limit = self.verdict.charge.limit
        self.has_more = self.verdict.charge.cost > 1 or bool(limit.keep) or limit.has_shares
        self.ends = self.since + (self.verdict.retry_after_us or 0) / 1_000_000


class Allowance(NamedTuple):
    """What a bucket had left when another limit denied: ``until`` when that is relied on, and how
    much this worker had ``taken`` of the buckets with its ``mark``, and will have when nothing is
    ``left``."""

    limit: Limit
    verdict: Verdict
    decision: Decision
    until: float
    left: float
    mark: int
    taken: int


class CachedDecision(Decision):
    """A denial that is repeated, ``elapsed_us`` after it was decided. ``cached_verdicts`` are those
    of its charges that are cached, as they were then; ``ages_us`` are their ages."""

    __slots__ = ("ages_us", "cached_verdicts", "denial", "elapsed_us")

    cached = True

    def __init__(
        self, denial: CachedDenial, elapsed_us: int, verdicts: list[Verdict], ages_us: list[int]
    ) -> None:
        self.admitted = False
        self.now_us = denial.decision.now_us + elapsed_us
        self._verdicts = None
        self.denial = denial
        self.elapsed_us = elapsed_us
        self.cached_verdicts = verdicts
        self.ages_us = ages_us

    def _read(self) -> tuple[Verdict, ...]:
        return tuple(map(_later, self.cached_verdicts, self.ages_us))


class DenialCache:
    """An engine in front of another: repeats recent denials, and asks the other otherwise."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: By bucket and cost; the bucket that has denied longest ago first.
        self._denials: dict[str, dict[int, CachedDenial]] = {}
        self._allowances: dict[str, Allowance] = {}
        #: How often denials were dropped, and that count at the last drop of a bucket, by hash.
        self._forgotten = 0
        self._marks = [0] * MARKS
        #: The units that this worker has taken, by hash.
        self._taken = [0] * MARKS
        #: Held while denials are remembered or dropped, and not while they are repeated.
        self._lock = threading.Lock()

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
        if hold.waited_us is not None:  # it gets a place in line
            return self.ask(charges, hold)
        return self.cached(charges) or self.ask(charges, hold)

    def ask(self, charges: Sequence[Charge], hold: Hold) -> Decision:
        """Decide charges that have no denial in memory."""
        began, counts = self._forgotten, self._taken
        keys = list(map(key_of, charges))
        marks = list(map(mod, map(hash, keys), _COUNT))
        taken = list(map(counts.__getitem__, marks))
        decision = self._engine.admit(charges, hold=hold)
        if decision.admitted:
            for mark, charge in zip(marks, charges, strict=True):
                counts[mark] += charge.cost if charge.claim is None else _most_of(charge)
        elif not any(charge.meta for charge in charges):
            self._remember(decision, began, dict(zip(keys, taken, strict=True)))
        return decision

    def cached(self, charges: Sequence[Charge]) -> CachedDecision | None:
        """Return the denial of these charges from memory; ``None`` if the engine has to decide."""
        if not self._denials or self._denials.keys().isdisjoint(map(key_of, charges)):
            return None
        return self._cached_decision(merged(charges))

    def _cached_decision(self, charges: Sequence[Charge]) -> CachedDecision | None:
        """Return the denials of these charges, with what was decided together with the longest of
        them; ``None`` if another limit may deny for longer."""
        now_s = time.monotonic()
        denials: list[CachedDenial | None] = []
        longest: CachedDenial | None = None
        for charge in charges:
            if charge.meta:
                return None  # it counts each denial
            denial = self._denials.get(charge.key, _NOTHING).get(charge.cost)
            if denial is not None:
                limit = denial.limit
                # What was taken since may make the wait longer, and leaves less.
                is_old = denial.has_more and denial.taken != self._taken[hash(charge.key) % MARKS]
                if (
                    now_s >= denial.until
                    or is_old
                    or (limit is not charge.limit and limit != charge.limit)
                ):
                    denial = None
                elif longest is None or denial.ends > longest.ends:
                    longest = denial
            denials.append(denial)
        return None if longest is None else self._explained(charges, denials, longest, now_s)

    def _explained(
        self,
        charges: Sequence[Charge],
        denials: Sequence[CachedDenial | None],
        longest: CachedDenial,
        now_s: float,
    ) -> CachedDecision | None:
        """Return the longest denial with what else is known, if that is enough."""
        elapsed_us = int((now_s - longest.since) * 1_000_000)
        verdicts, ages_us = [], []
        for charge, denial in zip(charges, denials, strict=True):
            if denial is not None:
                verdicts.append(denial.verdict)
                ages_us.append(int((now_s - denial.since) * 1_000_000))
                continue
            # Inline: each call counts here. Whether enough is known to be left for the charge.
            spare = self._allowances.get(charge.key)
            if (
                spare is not None
                and now_s < spare.until
                and (spare.limit is charge.limit or spare.limit == charge.limit)
                and (charge.cost if charge.claim is None else _most_of(charge))
                + self._taken[spare.mark]
                <= spare.left
            ):
                if spare.decision is longest.decision and spare.taken == self._taken[spare.mark]:
                    verdicts.append(spare.verdict)
                    ages_us.append(elapsed_us)
            elif not _is_shorter(charge, longest.ends - now_s):
                return None
        return CachedDecision(longest, elapsed_us, verdicts, ages_us)

    def settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        keys = list(map(_bucket_of, changes))
        return self._change(keys, lambda: self._engine.settle(changes, once=once, now_us=now_us))

    def clear(self, keys: Sequence[str]) -> int:
        return self._change(keys, lambda: self._engine.clear(keys))

    def reset(self, prefix: str) -> int:
        return self._change(None, lambda: self._engine.reset(prefix))

    def _change(self, keys: Sequence[str] | None, change: Callable[[], int]) -> int:
        """Change these buckets, or all (``None``); their denials are dropped before and after."""
        self._forget(keys)
        try:
            return change()
        finally:
            self._forget(keys)

    def _forget(self, keys: Sequence[str] | None) -> None:
        with self._lock:
            self._forgotten += 1
            if keys is None:
                self._marks = [self._forgotten] * MARKS
                self._denials.clear()
                self._allowances.clear()
                return
            for mark in map(mod, map(hash, keys), _COUNT):
                self._marks[mark] = self._forgotten
            for known in (self._denials, self._allowances):
                for key in known.keys() & keys:
                    del known[key]

    def _remember(self, decision: Decision, began: int, taken: Mapping[str, int]) -> None:
        """``began`` is the count of drops when the admission began, and ``taken`` by bucket what
        this worker had taken."""
        denials = decision.denials
        if decision.retry_after_ms is None:
            return  # it can never pass
        every = [verdict.charge.limit.traits for verdict in denials]
        if any(traits.guard or traits.ends_with_calls for traits in every):
            return  # not time alone ends it
        now_s = time.monotonic()
        with self._lock:
            for verdict in decision.verdicts:
                key, cost = verdict.charge.key, verdict.charge.cost
                mark = hash(key) % MARKS
                if self._marks[mark] > began or not verdict.enforced:
                    continue
                if verdict.allowed:
                    self._allowances.pop(key, None)
                    if len(self._allowances) >= MOST_BUCKETS:
                        del self._allowances[next(iter(self._allowances))]
                    limit, until = verdict.charge.limit, now_s + LONGEST_S
                    left = inf if limit.traits.guard else verdict.remaining + taken[key]
                    self._allowances[key] = Allowance(
                        limit, verdict, decision, until, left, mark, taken[key]
                    )
                    continue
                if not cost or verdict.others:
                    continue  # a cost of 0 is denied only if it is charged later; others may end
                by_cost = self._denials.pop(key, {})
                self._drop_old(now_s)
                self._denials[key] = by_cost  # the last now
                before, until = by_cost.get(cost), now_s
                if before is not None and before.since > now_s - LONGEST_S:
                    # A request may get in line that long before the denial ends.
                    longest_us = (verdict.retry_after_us or 0) - (verdict.charge.limit.wait or 0)
                    until += min(LONGEST_S, max(0, longest_us) / 1_000_000)
                elif before is None and len(by_cost) >= MOST_COSTS:
                    by_cost.pop(next(iter(by_cost)))
                by_cost[cost] = CachedDenial(verdict, decision, now_s, until, taken[key])

    def _drop_old(self, now_s: float) -> None:
        """Make room for one more bucket. The two that have denied longest ago are dropped if that
        was long ago, so that memory is bounded by the denials of about a second."""
        for key in tuple(islice(self._denials, 2)):
            is_old = max(denial.since for denial in self._denials[key].values()) < now_s - LONGEST_S
            if is_old or len(self._denials) >= MOST_BUCKETS:
                del self._denials[key]


_COUNT: Final = repeat(MARKS)  # `map` makes marks of it without a frame of Python
_bucket_of: Final = attrgetter("charge.key")
_NOTHING: Final[dict[int, CachedDenial]] = {}


def _most_of(charge: Charge) -> int:
    """Return the most that a charge with a claim takes. Without one that is its cost: no call."""
    return max(charge.cost, *(charge.claim or (0,)))


def _is_shorter(charge: Charge, wait_s: float) -> bool:
    """Return whether a charge of which nothing is known cannot change an answer that names this
    wait: it denies nothing, or never for longer. A guard denies for a reason of its own, and a cost
    above the capacity is never allowed."""
    limit = charge.limit
    if limit.mode != "enforce":
        return True
    if limit.traits.denial_reason != "limit" or charge.cost > limit.capacity:
        return False
    longest_us = strategy_of(limit).longest_wait_us(limit)
    return longest_us is not None and longest_us <= wait_s * 1_000_000


def _later(verdict: Verdict, elapsed_us: int) -> Verdict:
    wait, strategy = verdict.retry_after_us, strategy_of(verdict.charge.limit)
    remaining, reset_us, more_us = strategy.later(verdict, elapsed_us)
    wait = max(1, wait - elapsed_us) if wait else wait
    return verdict._replace(
        remaining=remaining, retry_after_us=wait, reset_after_us=reset_us, more_after_us=more_us
    )
