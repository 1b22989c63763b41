"""What an engine does, whatever it stores in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision

_MOST_CAUSES: Final = 8
#: Why a request is denied that only the storage could admit.
UNAVAILABLE: Final = "storage-unavailable"


@dataclass(frozen=True)
class Workers:
    """How many workers share the limits, and how many of them this host has (``None``: unknown, so
    it has the share of one); how many requests may wait at once in each."""

    count: int = 1
    on_host: int | None = None
    waiting: int = 1


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


class Substitute:
    """An engine that decides in place of a storage that is down."""


def causes(
    error: BaseException | None, *, outside: BaseException | None = None
) -> Iterator[BaseException]:
    """Yield the error and what it was raised from, or during; not what the caller was handling
    ``outside`` of the call that failed, and anything before that."""
    for _ in range(_MOST_CAUSES):  # errors may be in a circle
        if error is None or error is outside:
            return
        yield error
        error = error.__cause__ or error.__context__
