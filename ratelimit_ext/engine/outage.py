"""The engine that decides while the storage is down, by the ``on_failure`` of each limit.

``open`` passes, and ``closed`` denies. ``local`` enforces this worker's share of the limit in its
memory: the shares of all workers add up to the limit at most, so together they never admit more.

What was decided so is charged to the storage once it is back (:meth:`OutageEngine.hand_back`): what
is used, and the holds of calls in flight, which are settled there. Until a bucket expires it is
also kept here, so that the next outage gives no second allowance.

A bucket begins with this worker's share of what the storage last left
(:mod:`~ratelimit_ext.engine.last_verdicts`), or full if that is unknown. So an outage admits the
limit once more at most, and nothing of a bucket that every worker knows to be exhausted. If a call
that the storage has admitted is settled meanwhile, the share is corrected (:meth:`credit`).

Time is the storage's, as its last decision said, and since then as the monotonic clock counts. So
no window ends earlier if the clock of this machine is set.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple
from zlib import crc32

from ratelimit_ext.core import clock
from ratelimit_ext.core.charge import NO_HOLD, Change, Charge, Hold, new_hold
from ratelimit_ext.core.decision import Decision, Degradation, Verdict
from ratelimit_ext.core.errors import ShardUnavailable, StorageUnavailable
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import ONCE_US, Correction, Engine, Release, Resumption
from ratelimit_ext.engine.last_verdicts import LastVerdicts
from ratelimit_ext.engine.memory import Buckets, MemoryEngine
from ratelimit_ext.engine.verdicts import merged
from ratelimit_ext.strategies import strategy_of

#: Why a request is denied that only the storage could admit, and the wait that its denial states.
UNAVAILABLE: Final = "storage-unavailable"
WAIT_US: Final = 5_000_000
#: A denial by a share states no longer wait: by then the storage may be back.
LONGEST_WAIT_US: Final = 30_000_000
#: How many buckets, and calls in flight, are kept at most; then the oldest are forgotten.
MOST_BUCKETS: Final = 100_000
#: How many changes are sent together, at most.
BATCH: Final = 100
#: For how long the storage knows what was handed back after it was last sent, in case a reply was
#: lost. Under a storage that is always slow, each worker leaves such a marker a few times a second.
HANDED_ONCE_US: Final = 600_000_000
#: How long a process that ends waits for what it is sending.
LEAVE_S: Final = 1.0
#: How many buckets that were handed back are kept before those that no longer matter are dropped.
LEAST_HANDED: Final = 1000
#: What the storage's clock has to differ by until it is set again here.
STEP_US: Final = 1_000_000
_STRICTNESS: Final[tuple[Degradation, ...]] = ("", "open", "local", "closed")
#: How long an admission waits at most for the moment in which all workers return to the storage.
PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers share the limits, and which of them this one is, counted from 0 (``None``:
    unknown). If each knows its number, no unit of an amount is lost by rounding."""

    count: int = 1
    number: int | None = None

    def share(self, capacity: int, key: str) -> int:
        """This worker's units of a bucket. Which workers get one more than others depends on the
        bucket, so that no worker is always the one with less."""
        units, rest = divmod(capacity, self.count)
        if not rest or self.number is None:
            return units
        return units + ((self.number + crc32(key.encode())) % self.count < rest)


class OutageDecision(Decision):
    """A decision without the storage."""

    __slots__ = ("degraded",)

    def __init__(
        self,
        *,
        admitted: bool,
        now_us: int,
        verdicts: tuple[Verdict, ...],
        degraded: Degradation,
    ) -> None:
        super().__init__(admitted=admitted, now_us=now_us, verdicts=verdicts)
        self.degraded = degraded


class _Change(NamedTuple):
    """A change of this worker's share."""

    charge: Charge
    hold: Hold
    verb: str
    numbers: tuple[int, ...]


class _Batch(NamedTuple):
    changes: Sequence[Change]
    marker: str


class OutageEngine:
    """An :class:`~ratelimit_ext.engine.engine.Engine` in this process, in place of ``primary``.

    ``policy`` is the ``on_failure`` of a limit. ``wake`` is called after an admission if there is
    something to hand back.
    """

    def __init__(
        self,
        primary: Engine,
        policy: Callable[[Limit], Degradation],
        workers: Workers,
        *,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        self._primary = primary
        self._policy = policy
        self._workers = workers
        self._wake = wake
        #: Whether it decides every request, as the storage is down.
        self.is_deciding = False
        #: How many requests were decided, by their degradation.
        self.decided: Counter[Degradation] = Counter()
        self.forget()

    def forget(self) -> None:
        """Forget everything: in a forked child, whose parent hands it back."""
        #: What the storage last left of each bucket.
        self.last = LastVerdicts()
        self._buckets = Buckets(most=MOST_BUCKETS)
        self._memory = MemoryEngine(lambda: self._buckets, now_us=self._now_us)
        #: How far the clock here is ahead of the monotonic one.
        self._ahead_us = clock.now_us() - _monotonic_us()
        self._shares: dict[tuple[int, int], tuple[Limit, Limit]] = {}
        #: The limits of the buckets that have changed since they were handed back.
        self._changed: dict[str, Limit] = {}
        #: The buckets as they were handed back, and how many there may be before old ones are
        #: looked for.
        self._handed: dict[str, Any] = {}
        self._most_handed = LEAST_HANDED
        #: When something was last handed back, by the monotonic clock.
        self._handed_at = -math.inf
        #: The holds that are here, with their buckets, and those on their way.
        self._holds: dict[tuple[int, str], None] = {}
        self._moving: set[tuple[int, str]] = set()
        #: The holds here that the storage may have, too. They are released there first.
        self._releases: list[Change] = []
        self._unsent: deque[_Batch] = deque()
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._goes_on = threading.Event()
        self._goes_on.set()

    # -- deciding ------------------------------------------------------------------------------

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        """See :meth:`Engine.admit`. Never raises ``StorageUnavailable``."""
        releases: list[Change] = []
        charges = merged(charges)
        if not self._goes_on.is_set():
            self._goes_on.wait(PAUSE_S)
            try:
                return self._primary.admit(charges, take=take, hold=hold, now_us=now_us)
            except StorageUnavailable as error:
                if error.may_have_charged and hold.id:
                    held = [charge for charge in charges if charge.limit.held]
                    releases = [Release(charge, hold) for charge in held]
        with self._lock:
            self._releases += releases
            decision = self._decide(charges, take=take, hold=hold, now_us=now_us)
            if take:
                self.decided[decision.degraded] += 1
                self._note(charges, decision, hold)
        if self.is_deciding or not self.is_handed_back:
            self._wake()
        return decision

    def _decide(
        self, charges: Sequence[Charge], *, take: bool, hold: Hold, now_us: int | None
    ) -> OutageDecision:
        policies = [self._policy(charge.limit) for charge in charges]
        verdicts: list[Verdict | None] = []
        own: list[Charge] = []
        places: list[int] = []
        for place, (charge, policy) in enumerate(zip(charges, policies, strict=True)):
            share = self._share(charge.limit, charge.key)
            verdict = _without_count(charge, policy, share, take=take)
            verdicts.append(verdict)
            if verdict is None and share is not None:
                self._start(charge, share)
                own.append(charge._replace(limit=share))
                places.append(place)
        refused = any(each and not each.allowed and each.enforced for each in verdicts)
        decision = self._memory.admit(
            _with_triggers(own, places), take=take and not refused, hold=hold, now_us=now_us
        )
        for place, each in zip(places, decision.verdicts, strict=True):
            wait_us = each.retry_after_us
            verdicts[place] = each._replace(
                charge=charges[place],
                retry_after_us=wait_us and min(wait_us, LONGEST_WAIT_US),
            )
        return OutageDecision(
            admitted=decision.admitted and not refused,
            now_us=decision.now_us,
            verdicts=tuple([each for each in verdicts if each is not None]),
            degraded=max(policies, key=_STRICTNESS.index, default="open"),
        )

    def _start(self, charge: Charge, share: Limit) -> None:
        """Let this worker's share of a bucket begin with its share of what the storage has left.
        Slots of calls in flight begin free: calls that the storage has admitted are released there,
        which is not seen here."""
        limit, key = charge.limit, charge.key
        if limit.traits.guard or limit.traits.ends_with_calls or key in self._changed:
            return
        rest = self.last.take(limit, key)
        ahead_us = self.last.ahead_us
        if ahead_us is not None and abs(ahead_us - self._ahead_us) > STEP_US:
            self._ahead_us = ahead_us
        if rest is None:
            return
        if rest.asked_at > self._handed_at and not self._unsent:
            # The storage knew by then what was decided here, and has seen what came since.
            self._handed.pop(key, None)
            self._memory.clear([key])
        left = self._workers.share(rest.remaining, key)
        state = self._memory.fill(share, key, left, rest.reset_after_us, rest.age_us)
        if state is not None:
            self._handed[key] = state  # as the storage has it

    def _now_us(self) -> int:
        return _monotonic_us() + self._ahead_us

    def _share(self, limit: Limit, key: str) -> Limit | None:
        """What this worker enforces of a limit; ``None``: nothing. A guard has no amount to
        divide."""
        if limit.traits.guard or self._workers.count == 1:
            return limit
        units = self._workers.share(limit.capacity, key)
        if not units:
            return None
        known = self._shares.get((id(limit), units))
        if known is None:
            if len(self._shares) >= MOST_BUCKETS:
                self._shares.clear()
            share = strategy_of(limit).share(limit, units, self._workers.count)
            known = self._shares[id(limit), units] = limit, share
        return known[1]

    def _note(self, charges: Sequence[Charge], decision: OutageDecision, hold: Hold) -> None:
        """Remember what is to be handed back."""
        for charge in charges:
            limit = charge.limit
            if limit.traits.guard or self._policy(limit) != "local":
                continue
            if decision.admitted or charge.meta:
                self._changed[charge.key] = limit
        _bound(self._changed)
        if decision.admitted and hold.id:
            self._holds.update({(hold.id, c.key): None for c in charges if c.limit.held})
            _bound(self._holds)

    # -- changes -------------------------------------------------------------------------------

    def settle(
        self,
        changes: Sequence[Change],
        *,
        once: str | None = None,
        once_for_us: int = ONCE_US,
        now_us: int | None = None,
    ) -> int:
        """See :meth:`Engine.settle`. What was handed back is settled in the storage."""
        here: list[Change] = []
        there: list[Change] = []
        with self._lock:
            for change in changes:
                if (change.hold.id, change.charge.key) in self._moving:
                    raise StorageUnavailable("the call is being handed back to the storage")
                (here if self._is_here(change) else there).append(change)
            applied = self._memory.settle(
                [self._own(change) for change in here], once=once, now_us=now_us
            )
            for change in here:
                if not change.charge.limit.traits.guard:
                    self._changed[change.charge.key] = change.charge.limit
        if there:
            applied += self._primary.settle(
                there, once=once, once_for_us=once_for_us, now_us=now_us
            )
        return applied

    def _is_here(self, change: Change) -> bool:
        """Whether the charge was not handed back yet. Guards are changed where they decide."""
        if change.hold.id:
            return (change.hold.id, change.charge.key) in self._holds
        return (
            self.is_deciding
            if change.charge.limit.traits.guard
            else (change.charge.key in self._changed)
        )

    def _own(self, change: Change) -> Change:
        charge = change.charge
        limit = self._share(charge.limit, charge.key) or charge.limit
        own = charge._replace(limit=limit)
        return _Change(own, change.hold, change.verb, change.numbers)

    def credit(self, began: float, changes: Sequence[Change]) -> None:
        """Note changes of charges that the storage has taken, when they are queued for it: of what
        they give back, this worker has its share. ``began`` is when they were sent, by the
        monotonic clock."""
        with self._lock:
            for change in changes:
                limit, key = change.charge.limit, change.charge.key
                share, left = self._share(limit, key), self.last.change(began, change)
                if share is None or left is None:
                    continue
                before, after = (self._workers.share(each, key) for each in left)
                handed = self._memory.credit(share, key, after - before, self._handed.get(key))
                if handed is not None:
                    self._handed[key] = handed  # as the storage will have it

    def clear(self, keys: Sequence[str]) -> int:
        """See :meth:`Engine.clear`: here only."""
        with self._lock:
            for key in keys:
                self._changed.pop(key, None)
                self._handed.pop(key, None)
            return self._memory.clear(keys)

    def reset(self, prefix: str) -> int:
        """See :meth:`Engine.reset`: here only."""
        return self.clear(self._buckets.named(prefix))

    # -- the way back --------------------------------------------------------------------------

    def pause(self) -> None:
        """Let admissions wait: what they take now would come too late to be handed back."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Let them go on."""
        self._goes_on.set()

    @property
    def is_handed_back(self) -> bool:
        return not (self._changed or self._releases or self._unsent)

    def hand_back(self, engine: Engine, *, within_s: float) -> bool:
        """Charge to an engine what was decided here; False if something is left after
        ``within_s``, or for shards that do not serve. Raises ``StorageUnavailable``. What is left
        is sent again next time."""
        ends = time.monotonic() + within_s
        later: list[_Batch] = []
        with self._sending:
            try:
                while not self.is_handed_back:
                    if time.monotonic() >= ends:
                        return False
                    if not self._unsent:
                        with self._lock:
                            self._unsent.extend(self._collected(BATCH))
                        continue
                    batch = self._unsent[0]
                    try:
                        engine.settle(batch.changes, once=batch.marker, once_for_us=HANDED_ONCE_US)
                    except ShardUnavailable:
                        later.append(batch)
                    self._handed_at = time.monotonic()
                    self._unsent.popleft()
            finally:
                self._unsent.extend(later)
                self._moving = {
                    (change.hold.id, change.charge.key)
                    for batch in self._unsent
                    for change in batch.changes
                    if change.hold.id
                }
        return not later

    def withdraw(self) -> list[Change]:
        """Take out what was not handed back, to be sent otherwise: the process ends, and with it
        its calls in flight."""
        is_mine = self._sending.acquire(timeout=LEAVE_S)  # else what is being sent is sent twice
        try:
            with self._lock:
                batches = [*self._unsent, *self._collected(MOST_BUCKETS)]
                self._unsent.clear()
        finally:
            if is_mine:
                self._sending.release()
        changes = [_final(change) for batch in batches for change in batch.changes]
        return [change for change in changes if any(change.numbers)]

    def _collected(self, most: int) -> list[_Batch]:
        """What has changed since it was handed back, of ``most`` buckets: admissions wait
        meanwhile. The holds are moved."""
        changes: list[Change] = []
        for key in list(islice(self._changed, most)):
            limit = self._changed.pop(key)
            own = self._share(limit, key)
            if own is None:
                continue
            taken = self._memory.take_over(own, key, self._handed.get(key))
            self._handed[key] = taken.state
            for hold, amount, spent in taken.holds:
                changes.append(Resumption(Charge(limit, key, amount), hold, amount, spent))
                self._holds.pop((hold.id, key), None)
                self._moving.add((hold.id, key))
            if taken.used > 0:
                changes.append(Correction(_verdict(Charge(limit, key, 0)), taken.used))
        if not self._changed:
            self._holds.clear()
        if len(self._handed) > self._most_handed:
            now_us = self._now_us()
            for key in [key for key in self._handed if self._buckets.get(key, now_us) is None]:
                del self._handed[key]
            self._most_handed = max(LEAST_HANDED, 2 * len(self._handed))
        releases, self._releases = self._releases, []
        return [*_batches(releases), *_batches(changes)]


def _without_count(
    charge: Charge, policy: Degradation, share: Limit | None, *, take: bool
) -> Verdict | None:
    """The verdict on a charge that is not counted; ``None`` if its share decides. A look at what is
    left is not denied."""
    limit, cost = charge.limit, charge.cost
    if policy == "open" and limit.amount:
        return _verdict(charge, remaining=limit.capacity)
    if cost > limit.capacity:
        return _verdict(charge, wait_us=None)
    if policy == "closed" and (take or cost):
        return _verdict(charge, wait_us=WAIT_US)
    if policy == "local" and share is not None and cost <= share.capacity:
        return None
    if policy == "local" and charge.meta:
        return _verdict(charge)  # no denial is counted here, so none is too many
    return _verdict(charge, wait_us=WAIT_US if cost else 0)


def _final(change: Change) -> Change:
    """The change without its hold, as when the lease ends: what is known to be spent is charged."""
    if not isinstance(change, Resumption):
        return change
    return Correction(_verdict(change.charge), change.spent)


def _verdict(charge: Charge, *, remaining: int = 0, wait_us: int | None = 0) -> Verdict:
    return Verdict(
        charge,
        allowed=wait_us == 0,
        remaining=remaining,
        retry_after_us=wait_us,
        reset_after_us=wait_us or 0,
        receipt=None,
        reason=UNAVAILABLE if wait_us else charge.limit.traits.denial_reason,
    )


def _with_triggers(charges: Sequence[Charge], places: Sequence[int]) -> list[Charge]:
    """The charges with the positions that their triggers have now; ``places`` are those before."""
    now = {place: position for position, place in enumerate(places)}
    return [
        charge._replace(
            on_denial=tuple([now.get(place, len(places)) for place in charge.on_denial])
        )
        if charge.on_denial
        else charge
        for charge in charges
    ]


def _monotonic_us() -> int:
    return int(time.monotonic() * 1_000_000)


def _bound(entries: dict[Any, Any]) -> None:
    while len(entries) > MOST_BUCKETS:
        del entries[next(iter(entries))]


def _batches(changes: Sequence[Change]) -> Iterable[_Batch]:
    for start in range(0, len(changes), BATCH):
        some = changes[start : start + BATCH]
        yield _Batch(some, f"{some[0].charge.key}:once:{new_hold(0).id:x}")
