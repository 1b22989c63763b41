"""What an engine does, whatever it stores in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision


class Marker(NamedTuple):
    """Makes it safe to send the same changes again after a lost reply: the name of a key of its own
    for them (on a cluster, in the slot of their buckets), and for how long it exists. The first
    call stores the key, and each further one for as long again; while it exists, a call changes
    nothing."""

    key: str
    for_us: int


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
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        """Change buckets, mostly earlier charges; never denies. Returns how many of the changes
        still mattered. Raises ``ValueError`` for a change that its strategy does not take."""
        ...

    def clear(self, keys: Sequence[str]) -> int:
        """Forget the buckets of these names; returns how many there were."""
        ...

    def reset(self, prefix: str) -> int:
        """Forget every bucket whose name begins with the prefix; returns how many there were."""
        ...
