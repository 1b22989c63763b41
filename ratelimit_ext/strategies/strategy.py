"""The base class of all strategies: their traits, and what an algorithm offers to the engines."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias, cast

from ratelimit_ext.core.charge import Charge
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
#: own.
Snapshot: TypeAlias = Sequence[int]


@cache
def lua(file: Path) -> str:
    """Return the text of a file beside the code, which is read once: see engine/arguments.py."""
    return file.read_text("utf-8")


class Strategy(Traits, ABC):
    """A rate-limiting algorithm: what it needs to know of a limit, and what its answers mean.

    It runs as the Lua file beside the Python file, under the same name. That puts functions into
    ``strategies``, under the code: ``check`` says whether a cost fits and takes a snapshot;
    ``take`` returns what is stored after a cost that fitted; ``lifetime`` says for how long that
    matters, after which it answers as a fresh bucket; ``adjust`` corrects an earlier charge, never
    denies and may overdraw; ``receipt`` says where a charge of now goes. ``is_stale`` says whether
    a decision stores the state as of now even if it denies: after a clock was set back a wait would
    else begin again with each call. Changes of its own have their names.
    """

    #: Whether all that a call used is free a period after it, but for windows of the calendar.
    frees_after_period: ClassVar[bool] = False

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """Return the limit as numbers, the arguments of the Lua."""
        return limit.amount, limit.period_us

    @abstractmethod
    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        """Return what remains once ``cost`` is taken: it is all that most answers show."""

    def wait_us(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> int:
        """Return how long to wait until a cost fits that does not fit now: mostly until the bucket
        is full again."""
        return self.left(limit, snapshot, now_us, 0)[1]

    def receipt(self, snapshot: Snapshot, now_us: int) -> int | None:
        """Return where a charge of now goes, for a later correction; ``None``: nowhere."""
        return 0

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """Return the answer to a charge that was taken, or not. Its cost is within the capacity."""
        limit, cost = charge.limit, charge.cost
        remaining, reset, more = self.left(limit, snapshot, now_us, cost if taken else 0)
        wait = 0 if allowed else self.wait_us(limit, snapshot, now_us, cost)
        times = wait, reset, self.receipt(snapshot, now_us)
        reason = self.denial_reason if allowed else self.reason(snapshot)
        return tuple.__new__(
            Verdict, (charge, allowed, remaining, *times, reason, more, None, None)
        )

    def reason(self, snapshot: Snapshot) -> str:
        """Return why it denies."""
        return self.denial_reason

    def used(self, limit: Limit, snapshot: Snapshot, now_us: int) -> int:
        """Return the units that a bucket counts as used now, debt included."""
        # What is left is never below 0, so it is computed with a credit.
        return limit.capacity + MOST_USED - self.left(limit, snapshot, now_us, -MOST_USED)[0]

    def calls(
        self, limit: Limit, units: int, now_us: int, reset_after_us: int
    ) -> Sequence[tuple[int, int]]:
        """Return calls, by their instants and costs, after which a fresh bucket counts ``units`` as
        used and is full again after ``reset_after_us``. They never free the units earlier than the
        calls that were made."""
        is_whole = self.frees_after_period and limit.anchor is None
        return [(now_us + reset_after_us - limit.period_us if is_whole else now_us, units)]

    def credit(self, limit: Limit, snapshot: Snapshot, now_us: int, units: int) -> tuple[int, int]:
        """Return the receipt and the correction by which a bucket counts ``units`` less as used,
        the oldest first, or as many more if negative."""
        return self.receipt(snapshot, now_us) or 0, -units

    def longest_wait_us(self, limit: Limit) -> int | None:
        """Return the longest wait for a cost within the capacity; ``None`` if unknown."""
        return None

    def share(self, limit: Limit, units: int, workers: int) -> Limit:
        """Return what one of ``workers`` enforces alone: ``units`` of the limit's capacity."""
        return replace(limit, amount=units)

    def later(self, verdict: Verdict, elapsed_us: int) -> Left:
        """Return what is left ``elapsed_us`` later, without other calls.

        A view may take half a minute, and its headers are about the moment they are sent. Where a
        verdict alone is not enough to know, it stays as it was, on the safe side.
        """
        remaining, reset_us, more = verdict.left
        if reset_us <= elapsed_us:
            return verdict.charge.limit.capacity, 0, 0
        reset_us -= elapsed_us
        return remaining, reset_us, more - elapsed_us if more > elapsed_us else reset_us

    def fragments(self) -> tuple[str, ...]:
        """Return the parts of a script that define it, in their order: of what it extends first."""
        classes = [cls for cls in reversed(type(self).__mro__) if "code" in vars(cls)]
        files = [sys.modules[cls.__module__].__file__ or "" for cls in classes]
        return tuple([f"do\n{lua(Path(file).with_suffix('.lua'))}end\n" for file in files])


class Layer(Strategy):
    """A strategy over another one. It shares the methods in :attr:`SAME`. In Lua it is a function,
    named like its file, which takes the entry of the other one."""

    SAME: ClassVar[Sequence[str]] = ("left", "verdict", "later", "share", "used", "calls", "credit")
    left = cast(Any, None)
    #: The beginning of its code.
    letter: str
    #: The changes that it takes beside those of the other.
    verbs: tuple[str, ...]

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        for same in self.SAME:
            setattr(self, same, getattr(strategy, same))
        self.name = strategy.name
        self.code = f"{self.letter}{strategy.code}"
        self.changes = (*strategy.changes, *self.verbs)

    def fragments(self) -> tuple[str, ...]:
        file = Path(sys.modules[type(self).__module__].__file__ or "").with_suffix(".lua")
        entry = f"strategies.{self.code} = strategies.{file.stem}(strategies.{self._strategy.code})"
        return (*self._strategy.fragments(), f"do\n{lua(file)}end\n", entry)
