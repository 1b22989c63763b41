"""What an engine does, whatever it stores in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from ratelimit_ext.core.charge import NO_HOLD, Change, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict

#: For how long an engine remembers that changes were applied: longer than they are sent again,
#: which is the longest lease (a day) and ten minutes.
ONCE_US: Final = 90_000_000_000


class Correction(NamedTuple):
    """An earlier verdict, and by how many units its charge was wrong (negative: give back)."""

    verdict: Verdict
    delta: int

    @property
    def verb(self) -> str:
        return "adjust"

    @property
    def hold(self) -> Hold:
        return NO_HOLD

    @property
    def charge(self) -> Charge:
        return self.verdict.charge

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.verdict.receipt or 0, self.delta


class Settlement(NamedTuple):
    """An earlier verdict whose call is over and has really cost ``actual`` units. Once is enough:
    the hold is gone then, and a second settlement changes nothing."""

    verdict: Verdict
    hold: Hold
    actual: int

    @property
    def verb(self) -> str:
        return "settle"

    @property
    def charge(self) -> Charge:
        return self.verdict.charge

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.hold.id, self.actual


class Release(NamedTuple):
    """A call that is over, or never was: its reply was lost, or its worker died. What it is not
    known to have spent goes back, and an admission that arrives later holds nothing."""

    charge: Charge
    hold: Hold

    @property
    def verb(self) -> str:
        return "release"

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.hold.id,)


class Renewal(NamedTuple):
    """An earlier verdict whose call goes on and has cost ``spent`` units so far."""

    verdict: Verdict
    hold: Hold
    spent: int

    @property
    def verb(self) -> str:
        return "renew"

    @property
    def charge(self) -> Charge:
        return self.verdict.charge

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.verdict.charge.cost, self.spent


class Resumption(NamedTuple):
    """A call in flight that another engine has admitted. The hold takes ``amount`` here, of which
    ``spent`` is known to be real. Once is enough: a hold that is known is not changed."""

    charge: Charge
    hold: Hold
    amount: int
    spent: int

    @property
    def verb(self) -> str:
        return "resume"

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.amount, self.spent


class Engine(Protocol):
    """Decides and corrects charges atomically. Every method may raise ``StorageUnavailable``."""

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        """Decide all charges; take all of them, or none if one is denied.

        Costs of limits that are held are noted under ``hold``, to be settled by its id.
        ``take=False`` only looks. ``now_us`` replaces the engine's clock (tests, simulation).
        """
        ...

    def settle(
        self,
        changes: Sequence[Change],
        *,
        once: str | None = None,
        once_for_us: int = ONCE_US,
        now_us: int | None = None,
    ) -> int:
        """Change buckets, mostly earlier charges; never denies. Returns how many of the changes
        still mattered. Raises ``ValueError`` for a change that its strategy does not take.

        ``once`` makes it safe to send the same changes again after a lost reply: it names a key of
        its own for them (on a cluster, in the slot of their buckets). The first call stores that
        key for ``once_for_us``, and each further one for as long again; while it exists, a call
        changes nothing and returns 0.
        """
        ...

    def clear(self, keys: Sequence[str]) -> int:
        """Forget the buckets of these names; returns how many there were."""
        ...

    def reset(self, prefix: str) -> int:
        """Forget every bucket whose name begins with the prefix; returns how many there were."""
        ...
