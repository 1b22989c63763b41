"""The engine that decides while the storage is down, by the ``on_failure`` of each limit.

``open`` passes, and ``closed`` denies. ``local`` enforces this host's share of the limit, which its
workers have in common (:mod:`~ratelimit_ext.engine.outage_store`), or without a file this worker's.
The shares add up to the limit at most, so together they never admit more.

What was decided so is charged to the storage once it is back (:meth:`OutageEngine.hand_back`): what
is used, and the holds of calls in flight, which are settled there. Until a bucket expires it is
also kept here, so that the next outage gives no second allowance.

A bucket begins with the share of what the storage last left, as far as the workers know
(:mod:`~ratelimit_ext.engine.last_verdicts`), or full if that is unknown. So an outage admits the
limit once more at most, and nothing of a bucket that is known to be exhausted. If a call that the
storage has admitted is settled meanwhile, the share is corrected (:meth:`credit`).

Time is the storage's, as its last decision said, and since then as the monotonic clock counts. So
no window ends earlier if the clock of this machine is set.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Final

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import KEPT_AFTER_LEASE_S, NO_HOLD, Charge, Hold, new_hold
from ratelimit_ext.core.decision import Decision, Degradation, Verdict
from ratelimit_ext.core.errors import ShardUnavailable, StorageUnavailable
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import UNAVAILABLE, Engine, Marker, Substitute, Workers
from ratelimit_ext.engine.entry import MOST_LIMITS, Entry, text_of_limit
from ratelimit_ext.engine.last_verdicts import LastVerdicts, Remainder
from ratelimit_ext.engine.memory import MemoryEngine, load_lua
from ratelimit_ext.engine.outage_store import Batch, OutageStore
from ratelimit_ext.engine.scratch import scratch
from ratelimit_ext.engine.verdicts import merged
from ratelimit_ext.strategies import strategy_of

#: The wait that a denial states if only the storage could admit the request.
WAIT_US: Final = 5_000_000
#: A denial by a share states no longer wait: by then the storage may be back.
LONGEST_WAIT_US: Final = 30_000_000
#: How many changes are sent together, at most.
BATCH: Final = 100
#: For how long the storage knows what was handed back after it was last sent, in case a reply was
#: lost. Under a storage that is always slow, each worker leaves such a marker a few times a second.
HANDED_ONCE_US: Final = 600_000_000
#: How long a process that ends waits for the storage.
LEAVE_S: Final = 1.0
_STRICTNESS: Final[tuple[Degradation, ...]] = ("", "open", "local", "closed")
#: How long an admission waits at most for the moment in which all workers return to the storage.
PAUSE_S: Final = 0.1

LOST: Final = (
    "Decisions made during the outage are lost because the process is exiting. "
    "Set RATELIMIT_SETTLEMENTS_DIR to keep them."
)

_logger = logging.getLogger("ratelimit_ext")


class OutageDecision(Decision):
    """A decision without the storage."""

    __slots__ = ("degraded",)


@dataclass(eq=False)
class OutageEngine(Substitute):
    """An :class:`~ratelimit_ext.engine.engine.Engine` in this process, in place of ``primary``.

    ``policy`` is the ``on_failure`` of a limit. ``wake`` is called after an admission if there is
    something to hand back.
    """

    primary: Engine
    policy: Callable[[Limit], Degradation]
    workers: Workers
    wake: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        load_lua()
        #: Whether it decides every request, because the storage is down.
        self.is_deciding = False
        #: How many requests were decided, by their degradation.
        self.decided: Counter[Degradation] = Counter()
        self._store = OutageStore()
        self.forget()

    def share(self, path: Path) -> None:
        """Share with the other workers of this host, in this file."""
        self._store = OutageStore(path)
        self._store.take, self._store.note = self._take, self._note_taken
        if not self.is_handed_back:
            self.wake()

    def forget(self) -> None:
        """Forget everything: in a forked child, whose parent hands it back."""
        #: What the storage last left of each bucket.
        self.last = LastVerdicts()
        self._store.forget()
        self._memory = MemoryEngine(lambda: self._store, now_us=lambda: self._store.now_us())  # noqa: PLW0108 - it is replaced
        self._shares: dict[tuple[int, int], tuple[Limit, Limit]] = {}
        self._sending = threading.Lock()
        #: Not set while admissions wait: what they take would come too late to be handed back.
        self.goes_on = threading.Event()
        self.goes_on.set()

    # -- deciding ------------------------------------------------------------------------------

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        """See :meth:`Engine.admit`. Raises ``StorageUnavailable`` only to a request that waits, if
        the storage comes back and may have admitted it without a reply."""
        charges = merged(charges)
        if not self.goes_on.is_set():
            self.goes_on.wait(PAUSE_S)
            try:
                return self.primary.admit(charges, take=take, hold=hold, now_us=now_us)
            except StorageUnavailable as error:
                if error.may_have_charged and hold.id:
                    if hold.waited_us is not None:
                        raise  # it asks the storage again, and needs another hold for that
                    self._store.run(partial(self._release, charges, hold))
        decide = partial(self._decide, charges, take=take, hold=hold, now_us=now_us)
        decision = self._store.run(decide)
        if take:
            self.decided[decision.degraded] += 1
        if self.is_deciding or not self.is_handed_back:
            self.wake()
        return decision

    def _release(self, charges: Sequence[Charge], hold: Hold) -> None:
        """Let the storage give back what it may hold for a call without a reply."""
        kept_us = hold.lease_us + int(KEPT_AFTER_LEASE_S * 1_000_000)
        releases = [Change.release(each, hold, undone=True) for each in charges if each.limit.held]
        until_us = self._store.now_us() + kept_us
        self._send([release._replace(expiry_us=until_us) for release in releases])

    def _decide(
        self, charges: Sequence[Charge], *, take: bool, hold: Hold, now_us: int | None
    ) -> OutageDecision:
        policies = [self.policy(charge.limit) for charge in charges]
        verdicts: dict[int, Verdict] = {}
        local: dict[int, Charge] = {}
        for place, (charge, policy) in enumerate(zip(charges, policies, strict=True)):
            share = self._share(charge.limit)
            verdict = _without_count(charge, policy, share, take=take)
            if verdict is not None:
                verdicts[place] = verdict
            elif share is not None:
                self._start(charge, share)
                local[place] = charge._replace(limit=share)
        refused = any(not each.allowed and each.enforced for each in verdicts.values())
        decision = self._memory.admit(
            _with_triggers(local), take=take and not refused, hold=hold, now_us=now_us
        )
        admitted = decision.admitted and not refused
        for place, verdict in zip(local, decision.verdicts, strict=True):
            charge, wait_us = charges[place], verdict.retry_after_us
            if wait_us and not verdict.allowed:
                wait_us = min(wait_us, LONGEST_WAIT_US)
            verdicts[place] = verdict._replace(charge=charge, retry_after_us=wait_us)
            if take and (admitted or charge.meta) and not charge.limit.traits.guard:
                self._store.changing(charge.key).changed = text_of_limit(charge.limit)
        result = OutageDecision(
            admitted=admitted,
            now_us=decision.now_us,
            verdicts=tuple([verdicts[place] for place in range(len(charges))]),
        )
        result.degraded = max(policies, key=_STRICTNESS.index, default="open")
        return result

    def _start(self, charge: Charge, share: Limit) -> None:
        """Let a bucket begin with the share of what the storage has left, by the latest of the
        verdicts that workers had. Slots of calls in flight begin free: calls that the storage has
        admitted are released there, which is not seen here."""
        limit, key = charge.limit, charge.key
        if limit.traits.guard or limit.traits.ends_with_calls or limit.is_share:
            return
        remainder = self.last.take(limit, key)
        bucket = self._store.bucket(key)
        if self.last.ahead is not None:
            self._store.set_clock(*self.last.ahead)
        if remainder is None or (bucket is not None and remainder.asked_at < bucket.known_at):
            return
        left = self._units(remainder.remaining)
        if bucket is not None and bucket.changed is not None:
            # Another worker's verdict was earlier, or unknown.
            used = scratch.used(share, bucket.as_handed, self._store.now_us())
            self._give_back(share, key, min(0, left + used - share.capacity))
            self._store.changing(key).known_at = remainder.asked_at
            return
        if remainder.asked_at > self._store.handed_at and not self._store.batches():
            # The storage knew by then what was decided here, and has seen what came since.
            self._memory.clear([key])
        self._fill(share, key, left, remainder)

    def _fill(self, share: Limit, key: str, left: int, remainder: Remainder) -> None:
        """Let a bucket have no more than ``left`` units."""
        now_us, units = self._store.now_us(), share.capacity - left
        if scratch.used(share, self._store.state(key, now_us), now_us) >= units:
            return
        state = scratch.filled(share, units, now_us, remainder.reset_after_us)
        self._store.keep(key, state)
        bucket = self._store.changing(key)
        bucket.handed, bucket.known_at = bucket.state, remainder.asked_at  # as the storage has it

    def publish(self) -> None:
        """Share what this worker knows of buckets with the others."""
        charges = self.last.untaken()
        for start in range(0, len(charges), BATCH):
            self._store.run(partial(self._publish, charges[start : start + BATCH]))

    def _publish(self, charges: Iterable[Charge]) -> None:
        for charge in charges:
            share = self._share(charge.limit)
            if share is not None and self.policy(charge.limit) == "local":
                self._start(charge, share)

    def _units(self, capacity: int) -> int:
        """Return the share of this host, or without a file of this worker, rounded down."""
        count = self.workers.count
        on_host = (self.workers.on_host or 1) if self._store.is_shared else 1
        return capacity * min(on_host, count) // count

    def _share(self, limit: Limit) -> Limit | None:
        """Return what is enforced of a limit here, if anything. A guard has no amount to divide."""
        count = self.workers.count
        if self._store.is_shared:
            count = -(-count // (self.workers.on_host or 1))
        if limit.traits.guard or count == 1:
            return limit
        units = self._units(limit.capacity)
        if not units:
            return None
        cached = self._shares.get((id(limit), units))
        if cached is None:
            if len(self._shares) >= MOST_LIMITS:
                self._shares.clear()
            share = strategy_of(limit).share(limit, units, count)
            cached = self._shares[id(limit), units] = limit, share
        return cached[1]

    # -- changes -------------------------------------------------------------------------------

    def settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        """See :meth:`Engine.settle`. What was handed back is settled in the storage."""

        def settle_here() -> tuple[int, list[Change]]:
            is_here = [self._is_here(change) for change in changes]
            local = [*compress(changes, is_here)]
            return self._settle(local, once=once, now_us=now_us), [
                change._replace(receipt=None)  # that is one of the bucket here
                for change, is_local in zip(changes, is_here, strict=True)
                if not is_local
            ]

        applied, remote = self._store.run(settle_here)
        if remote:
            applied += self.primary.settle(remote, once=once, now_us=now_us)
        return applied

    def _settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        by_share = [self._by_share(change) for change in changes]
        applied = self._memory.settle(by_share, once=once, now_us=now_us)
        for change in changes:
            limit, key, *_ = change.charge
            if not limit.traits.guard:
                self._store.changing(key).changed = text_of_limit(limit)
        return applied

    def _is_here(self, change: Change) -> bool:
        """Return whether the charge is still here. Guards are changed where they decide."""
        key, bucket = change.charge.key, self._store.bucket(change.charge.key)
        if change.verb == "leave":
            return True
        if change.hold.id:
            if self._store.moves(key, change.hold):
                raise StorageUnavailable("the call is being handed back to the storage")
            return bucket is not None and bucket.has(change.hold)
        if change.charge.limit.traits.guard:
            return self.is_deciding
        return bucket is not None and bucket.changed is not None

    def _by_share(self, change: Change) -> Change:
        charge = change.charge
        limit = self._share(charge.limit) or charge.limit
        return change._replace(charge=charge._replace(limit=limit))

    def credit(self, began: float, changes: Sequence[Change]) -> None:
        """Note changes of charges that the storage has taken, when they are queued for it: of what
        they give back, the share is free here. ``began`` is when they were sent, by the monotonic
        clock."""
        self._store.run(partial(self._credit, began, changes))

    def _credit(self, began: float, changes: Sequence[Change]) -> None:
        for change in changes:
            limit, key = change.charge.limit, change.charge.key
            share, left = self._share(limit), self.last.change(began, change)
            bucket = self._store.bucket(key)
            if share is None or left is None or bucket is None:
                continue
            before, after = map(self._units, left)
            self._give_back(share, key, after - before)

    def _give_back(self, share: Limit, key: str, units: int) -> None:
        """Give back up to ``units`` of what a bucket counted as used when it was handed back; take
        as many more if negative. So the storage has it, or will have. Both states stay as they are
        if they cannot be changed alike."""
        now_us, before = self._store.now_us(), self._store.changing(key).as_handed
        units = min(units, scratch.used(share, before, now_us))
        if not units:
            return
        state, less = scratch.credited(share, self._store.state(key, now_us), now_us, units)
        earlier, same = scratch.credited(share, before, now_us, units)
        if less == same:
            self._store.keep(key, state)
            self._store.changing(key).handed = earlier and earlier[0]

    def clear(self, keys: Sequence[str]) -> int:
        """See :meth:`Engine.clear`: here only."""
        return self._store.run(lambda: self._memory.clear(keys))

    def reset(self, prefix: str) -> int:
        """See :meth:`Engine.reset`: here only."""
        return self._store.run(lambda: self._memory.reset(prefix))

    # -- the way back --------------------------------------------------------------------------

    @property
    def is_handed_back(self) -> bool:
        return self._store.is_empty

    def hand_back(self, engine: Engine, *, within_s: float) -> bool:
        """Charge to an engine what was decided here; False if something is left after
        ``within_s``, or for shards that do not serve. Raises ``StorageUnavailable``. What is left
        is sent again next time. If several workers do so at once, the storage is charged once."""
        ends, after = time.monotonic() + within_s, 0
        with self._sending:
            while time.monotonic() < ends:
                if (batch := self._store.run(partial(self._next_batch, after))) is None:
                    break
                try:
                    batch.entry.send(engine)
                except ShardUnavailable:
                    after = batch.number
                else:
                    self._store.run(partial(self._sent, batch))
        return self.is_handed_back

    def leave(self, engine: Engine, *, is_down: bool) -> None:
        """The process ends: charge to an engine that is not down what was decided here, for a
        second at most. What is left is the other workers', or lost without them."""
        if is_down:
            self.publish()
        if self.is_handed_back:
            return
        try:
            if not is_down and self.hand_back(engine, within_s=LEAVE_S):
                return
        except StorageUnavailable as error:
            _logger.debug("%s", error)
        if not self._store.is_shared:
            _logger.error(LOST)

    def _next_batch(self, after: int) -> Batch | None:
        """Return the batch to be sent after this one. If all are sent, what has changed in some
        buckets becomes one: admissions wait meanwhile. The holds are moved."""
        while not (batch := self._store.next_batch(after)) and self._store.changed(1):
            self._send(self._changes(BATCH))
        return batch

    def _changes(self, most: int) -> list[Change]:
        """Return what has changed in at most so many buckets (-1: in all)."""
        changed = self._store.changed(most)
        return [change for key, limit in changed for change in self._moved(limit, key)]

    def _moved(self, limit: Limit, key: str) -> list[Change]:
        """Return what has changed in a bucket since it was handed back, with its holds."""
        share, bucket = self._share(limit), self._store.bucket(key)
        self._store.changing(key).changed = None
        if share is None or bucket is None:
            return []
        until_us, handed, now_us = bucket.expiry_us, bucket.as_handed, self._store.now_us()
        holds = self._memory.hand_over(share, key)
        held = [Change.resume(Charge(limit, key, each[1]), *each) for each in holds]
        # They count here, too, until the storage has them.
        self._memory.settle([self._by_share(change) for change in held])
        state = self._store.state(key, now_us)
        self._store.changing(key).handed = state and state[0]
        changes = [change for change in held if not self._store.moves(key, change.hold)]
        used = scratch.used(share, state, now_us) - scratch.used(share, handed, now_us)
        used -= sum([change.charge.cost for change in changes])
        if used > 0:
            changes.append(Change.adjust(_verdict(Charge(limit, key, 0)), used))
        return [change._replace(expiry_us=until_us) for change in changes]

    def _sent(self, batch: Batch) -> None:
        """Note that the storage has a batch: its calls end there, and what they take stays used."""
        self._store.sent(batch)
        for change in batch.entry.changes:
            if change.verb == "resume":
                verdict = _verdict(self._by_share(change).charge)
                spent = 0 if verdict.charge.limit.traits.ends_with_calls else change.numbers[0]
                self._memory.settle([Change.settle(verdict, change.hold, spent)])

    def _take(self) -> tuple[list[Change], list[Batch]]:
        """Return what this worker has decided alone, and what is on its way to the storage."""
        batches: list[Batch] = []
        while batch := self._store.next_batch(batches[-1].number if batches else 0):
            batches.append(batch)
        return self._changes(-1), batches

    def _note_taken(self, taken: tuple[list[Change], list[Batch]]) -> None:
        """Note that in the file of the host, as if it had been decided there."""
        changes, batches = taken
        self._settle(changes)
        for batch in batches:
            self._store.add(batch.entry)

    def _send(self, changes: Sequence[Change]) -> None:
        """Put changes on their way to the storage."""
        for start in range(0, len(changes), BATCH):
            some = changes[start : start + BATCH]
            marker = f"{some[0].charge.key}:once:{new_hold(0).id:x}"
            self._store.add(Entry(some, marker, HANDED_ONCE_US))


def _without_count(
    charge: Charge, policy: Degradation, share: Limit | None, *, take: bool
) -> Verdict | None:
    """Return the verdict on a charge that is not counted; ``None`` if its share decides. A look at
    what is left is not denied."""
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


def _with_triggers(charges: Mapping[int, Charge]) -> list[Charge]:
    """Return the charges, which are by their places, with the present positions of triggers."""
    now = {place: position for position, place in enumerate(charges)}
    return [
        charge._replace(on_denial=tuple([now.get(place, len(now)) for place in charge.on_denial]))
        if charge.on_denial
        else charge
        for charge in charges.values()
    ]
