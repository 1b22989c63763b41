"""The base class of all strategies: their traits, and what an algorithm offers to the engines."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Left, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.traits import Traits

#: What a correction can raise a bucket's usage to: a thousand times the largest amount, and far
#: enough below 2**53 for every sum of two of them.
MOST_USED: Final = 2**50

#: Nothing is kept for longer: 142 years, in microseconds.
LONGEST_LIFETIME_US: Final = 2**52

#: How far the clocks of those who share a bucket may differ. Within it time never runs backwards
#: for a bucket: if it followed each clock, every change of clocks would refill the difference.
SKEW_US: Final = 1_000_000

#: Three integers of a bucket as of now, before a charge is taken. Their meaning is the strategy's
#: own. Lua and Python return the same three.
Snapshot: TypeAlias = Sequence[int]
#: Whether a cost fits; the snapshot; the state as of now.
Answer: TypeAlias = tuple[bool, Snapshot, Any]


@cache
def lua(file: Path) -> str:
    """Return the text of a file beside the code, which is read once: see engine/arguments.py."""
    return file.read_text("utf-8")


class Strategy(Traits, ABC):
    """A rate-limiting algorithm. Its state is opaque to the engines; ``None`` is a fresh bucket.

    The Lua twin lies beside the Python file, under the same name.
    """

    #: The second integer of a fresh bucket's snapshot, if it lets everything pass and keeps
    #: nothing: such a bucket is not asked.
    idle: int | None = None
    #: Which of the parameters says how much may be used, and whether members have turns in line.
    most: int = 0
    has_turns: bool = False

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """Return the limit as numbers, the same for Lua and for the methods below."""
        return limit.amount, limit.period_us

    @abstractmethod
    def check(self, state: Any, now_us: int, cost: int, parameters: Any) -> Answer:
        """Return whether ``cost`` fits at ``now_us``; the snapshot; the state as of then."""

    @abstractmethod
    def take(self, state: Any, now_us: int, cost: int, parameters: Any) -> Any:
        """Return the state after a cost that fitted; ``None`` if there is nothing to keep."""

    @abstractmethod
    def lifetime(self, state: Any, now_us: int, parameters: Any) -> int:
        """Return for how many microseconds the state matters; then it answers as a fresh bucket.

        Every time to live comes from here. 0 or less: it is not kept.
        """

    def marked_us(self, state: Any, now_us: int, parameters: Any) -> int:
        """Return for how long a charge of now matters: its window's rest."""
        return self.lifetime(state, now_us, parameters)

    def adjust(self, state: Any, now_us: int, parameters: Any, receipt: int, delta: int) -> Any:
        """Return the state after correcting the charge of ``receipt`` by ``delta`` units.

        Never denies; a positive delta may overdraw. If the window of the charge is over, a positive
        delta is charged to the current one, and a negative one changes nothing: ``None``.
        """
        return None

    @abstractmethod
    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """Return the answer to a charge that was taken, or not. Its cost is within the capacity."""

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        """Return what remains once ``cost`` is taken, without a verdict: it is all that most
        answers show."""
        charge = Charge(limit, "", cost)
        return self.verdict(charge, snapshot, now_us, allowed=True, taken=True).left

    def longest_wait_us(self, limit: Limit) -> int | None:
        """Return the longest wait for a cost within the capacity; ``None`` if unknown."""
        return None

    def usage(self, state: Any, now_us: int, parameters: Any) -> int:
        """Return what the state counts as used now, debt included: charged to a fresh bucket, it
        would leave as much or less. 0 where nothing can be carried over: guards, and calls in
        flight, whose holds are carried over."""
        return 0

    def filled(
        self, units: int, now_us: int, parameters: Any, reset_after_us: int, age_us: int
    ) -> Any:
        """Return the state of a bucket of which no more is known than the ``units`` used now, by a
        verdict of ``age_us`` ago, and, as in a verdict, when it is full again. It never frees them
        earlier than the unknown state would."""
        return self.adjust(None, now_us, parameters, 0, units)

    def credited(self, state: Any, now_us: int, parameters: Any, units: int) -> Any:
        """Return the state with ``units`` less of what it counts as used now, the oldest first, or
        as many more if negative."""
        receipt = 0 if state is None else self.receipt(state, now_us)
        return self.adjust(state, now_us, parameters, receipt, -units)

    def due(self, now_us: int, parameters: Any, missing: int, part: int, more: int) -> int:
        """Return from when on ``missing`` units more are free, with the rest of the snapshot; now
        if that is unknown."""
        return now_us

    def share(self, limit: Limit, units: int, workers: int) -> Limit:
        """Return what one of ``workers`` enforces alone: ``units`` of the limit's capacity."""
        return replace(limit, amount=units)

    def without_holds(
        self, state: Any, now_us: int, parameters: Any
    ) -> tuple[Any, Sequence[tuple[Hold, int, int]]]:
        """Return the state without the calls in flight, and these: hold, amount held, spent."""
        return state, ()

    def receipt(self, state: Any, now_us: int) -> int:
        """Return where a charge goes that is taken now from a state that was brought to now."""
        return 0

    def claimed(
        self, state: Any, now_us: int, charge: Charge, parameters: Any
    ) -> tuple[Answer, tuple[int, int]]:
        """Return the answer to a charge with a claim; what it gets, 0 if it is denied and -1 if
        only what others hold denies it; and how many others there are."""
        raise NotImplementedError(f"{self.code} reserves nothing")

    def is_stale(self, state: Any, now_us: int, parameters: Any) -> bool:
        """Return whether a decision stores the state as of now (a ``take`` of 0) even if it denies:
        it comes from a future that only a clock set back explains, or from before a change of the
        limit that it depends on.

        ``check`` brings such a state to now at each call. Otherwise a wait would restart with every
        call until the clock has caught up, or not be exact.
        """
        return False

    def reserve(self, state: Any, now_us: int, parameters: Any) -> Any:
        """Return the state with the hold of a call whose estimate is 0; ``None`` without holds."""
        return None

    def later(self, verdict: Verdict, elapsed_us: int) -> Verdict:
        """Return the verdict as of ``elapsed_us`` later, without other calls.

        A view may take half a minute, and its headers are about the moment they are sent. Where a
        verdict alone is not enough to know, it stays as it was, on the safe side.
        """
        left = max(0, verdict.reset_after_us - elapsed_us)
        remaining = verdict.remaining if left else verdict.charge.limit.capacity
        more = verdict.more_after_us
        if more is not None:
            more = more - elapsed_us if more > elapsed_us else left
        return verdict._replace(remaining=remaining, reset_after_us=left, more_after_us=more)

    def apply(self, change: Change, state: Any, now_us: int, parameters: Any) -> Any:
        """Return the state after the change; ``None``: it changes nothing."""
        return getattr(self, change.verb)(state, now_us, parameters, *change.numbers)

    def fragments(self) -> tuple[str, ...]:
        """Return the parts of a script that define it, in their order: of what it extends first."""
        own = [each for each in reversed(type(self).__mro__) if "code" in vars(each)]
        files = [sys.modules[each.__module__].__file__ or "" for each in own]
        return tuple([f"do\n{lua(Path(file).with_suffix('.lua'))}end\n" for file in files])
