"""A change of a bucket, mostly of an earlier charge."""

from __future__ import annotations

from typing import NamedTuple

from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Verdict


class Change(NamedTuple):
    """``verb`` names the function of the strategy that applies it, in Lua;
    ``numbers`` are its arguments. ``receipt`` is the charge's, if it is known. A change that is
    kept for a storage that is down no longer matters from ``expiry_us`` on. Changes of
    guards have other verbs."""

    charge: Charge
    hold: Hold
    verb: str
    numbers: tuple[int, ...]
    receipt: int | None = None
    expiry_us: int = 0

    @property
    def is_sent_again(self) -> bool:
        """Whether it is sent again if it fails: others would be out of date or reported again."""
        verbs = "adjust", "settle", "release"
        return self.verb in verbs and not self.charge.limit.traits.external

    @property
    def lost_units(self) -> int:
        """What is lost if it is never applied, in the limit's unit: a cost, a refund or a slot. A
        change that would soon be out of date is no loss."""
        if not self.is_sent_again:
            return 0
        is_slot = self.verb == "settle" and self.charge.limit.traits.one_per_call
        return self.charge.cost if is_slot or self.verb == "release" else abs(self.numbers[1])

    @classmethod
    def adjust(cls, verdict: Verdict, delta: int) -> Change:
        """Correct an earlier charge by so many units (negative: give back)."""
        receipt = verdict.receipt
        return cls(verdict.charge, NO_HOLD, "adjust", (receipt or 0, delta), receipt)

    @classmethod
    def settle(cls, verdict: Verdict, hold: Hold, actual: int, *, unseen: bool = False) -> Change:
        """End a call that has really cost ``actual`` units. A second settlement finds no hold.
        ``unseen``: more may be billed, so no call may spend the budget alone in this window."""
        numbers = (hold.id, actual, 1) if unseen else (hold.id, actual)
        return tuple.__new__(cls, (verdict.charge, hold, "settle", numbers, verdict.receipt, 0))

    @classmethod
    def release(cls, charge: Charge, hold: Hold, *, undone: bool = False) -> Change:
        """End a call whose worker died, as the end of its lease would; ``undone``: one that never
        was, as its reply was lost, so that all of it goes back. An admission that arrives later
        holds nothing."""
        return cls(charge, hold, "release", (hold.id, 1) if undone else (hold.id,))

    @classmethod
    def renew(cls, verdict: Verdict, hold: Hold, spent: int | None) -> Change:
        """Extend the lease of a call that has cost ``spent`` units so far; ``None``: unknown."""
        cost = verdict.charge.cost
        return cls(verdict.charge, hold, "renew", (cost,) if spent is None else (cost, spent))

    @classmethod
    def leave(cls, charge: Charge, hold: Hold) -> Change:
        """End the wait of a request that does not start."""
        return cls(charge, hold, "leave", (hold.id,))

    @classmethod
    def resume(cls, charge: Charge, hold: Hold, amount: int, spent: int) -> Change:
        """Hold ``amount`` for a call in flight that another engine has admitted, of which ``spent``
        is known to be real. A known hold is not changed."""
        return cls(charge, hold, "resume", (amount, spent))
