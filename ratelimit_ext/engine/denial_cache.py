"""A cache of recent denials in the worker: a client that hammers costs no round trip.

A client hammers if the same charges are denied twice within a second. From then on the denial is
repeated from memory until its wait is over, for at most a second. Changes by this worker drop the
cached denials of their buckets; a refund by another worker is seen after at most a second.

A denial may be decided before a refund and arrive after it. So each refund leaves a mark, before
and after it is sent, and a denial whose admission began before the mark is not cached. The order
makes that safe without a lock in an admission: a denial is stored first and then checked against
the marks; a refund sets its mark first and then drops what is stored.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from ratelimit_ext.core.charge import NO_HOLD, Change, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.engine.engine import ONCE_US, Engine

LONGEST_S: Final = 1.0
MOST_DENIALS: Final = 4096
#: Buckets share marks by hash; that only drops more denials than necessary.
MARKS: Final = 1024


class DenialCache:
    """An engine in front of another: repeats recent denials, and asks the other otherwise."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Charges denied once, with the instant; and denied again, with what repeats the denial.
        self._denied_once: dict[tuple[Charge, ...], float] = {}
        self._denials: dict[tuple[Charge, ...], tuple[float, float, Decision]] = {}
        #: Which of them a bucket has denied.
        self._by_bucket: dict[str, set[tuple[Charge, ...]]] = {}
        #: How often denials were dropped, and that count at the last drop of a bucket, by hash.
        self._forgotten = 0
        self._marks = [0] * MARKS
        self._marking = threading.Lock()

    @property
    def gives_back(self) -> bool:
        """See :class:`Engine`."""
        return self._engine.gives_back

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        """See :meth:`Engine.admit`."""
        if not take or now_us is not None:
            return self._engine.admit(charges, take=take, hold=hold, now_us=now_us)
        claimed = tuple(charges)
        if self._denials:
            recalled = self._recalled(claimed)
            if recalled is not None:
                return recalled
        began = self._forgotten
        decision = self._engine.admit(charges, hold=hold)
        if not decision.admitted and _can_be_repeated(decision, claimed):
            self._remember(claimed, decision, began)
        return decision

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

    def reachable(self) -> bool:
        """See :class:`Engine`."""
        return self._engine.reachable()

    def _forget(self) -> None:
        self._denied_once.clear()
        self._denials.clear()
        self._by_bucket.clear()

    @contextmanager
    def _changing(self, keys: Sequence[str] | None) -> Iterator[None]:
        """Drop the denials of these buckets, or all (``None``), before and after they change."""
        self._mark_and_forget(keys)
        try:
            yield
        finally:
            self._mark_and_forget(keys)

    def _mark_and_forget(self, keys: Sequence[str] | None) -> None:
        with self._marking:
            self._forgotten += 1
            if keys is None:
                self._marks = [self._forgotten] * MARKS
            else:
                for key in keys:
                    self._marks[hash(key) % MARKS] = self._forgotten
        if keys is None:
            self._forget()
        else:
            self._forget_of(keys)

    def _forget_of(self, keys: Iterable[str]) -> None:
        """Drop the denials of these buckets."""
        if self._by_bucket:
            for key in keys:
                # A copy: another thread may be adding to the set that it has just looked up.
                for claimed in tuple(self._by_bucket.pop(key, ())):
                    self._denials.pop(claimed, None)

    def _remember(self, claimed: tuple[Charge, ...], decision: Decision, began: int) -> None:
        wait_ms = decision.retry_after_ms
        if wait_ms is None:
            return  # it can never pass
        here = time.monotonic()
        # A cached denial was denied once before, so this bounds both.
        if len(self._denials) + len(self._denied_once) >= MOST_DENIALS:
            self._forget()
        if here - self._denied_once.get(claimed, -LONGEST_S) >= LONGEST_S:
            self._denied_once[claimed] = here
            return
        denied = [denial.charge.key for denial in decision.denials]
        for key in denied:
            self._by_bucket.setdefault(key, set()).add(claimed)
        self._denials[claimed] = (here, here + min(LONGEST_S, wait_ms / 1000), decision)
        if any(self._marks[hash(key) % MARKS] > began for key in denied):
            self._denials.pop(claimed, None)

    def _recalled(self, claimed: tuple[Charge, ...]) -> Decision | None:
        known = self._denials.get(claimed)
        if known is None:
            return None
        since, until, decision = known
        here = time.monotonic()
        if here >= until:
            self._denials.pop(claimed, None)
            return None
        elapsed_us = int((here - since) * 1_000_000)
        return decision._replace(
            now_us=decision.now_us + elapsed_us,
            verdicts=tuple(_later(verdict, elapsed_us) for verdict in decision.verdicts),
        )


def _can_be_repeated(decision: Decision, charges: tuple[Charge, ...]) -> bool:
    """Whether a denial changed nothing (shadows and bans count every request), and only time ends
    it."""
    leave_no_trace = all(not c.meta and c.limit.mode == "enforce" for c in charges)
    limits = [denial.charge.limit for denial in decision.denials]
    return leave_no_trace and all(limit.traits.cacheable for limit in limits)


def _later(verdict: Verdict, elapsed_us: int) -> Verdict:
    wait = verdict.retry_after_us
    return verdict._replace(
        retry_after_us=max(1, wait - elapsed_us) if wait else wait,
        reset_after_us=max(0, verdict.reset_after_us - elapsed_us),
    )
