"""What a limit had counted before its storage lost it, from the application's own record.

The record is replayed with the strategy's own arithmetic. A bucket that counts nothing gets the
same charges at the same instants, so that it frees them when it would have. One that has counted
since cannot take charges of the past: it gets what is missing now, and may free it later, but never
admits too much.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.scratch import scratch

#: A bucket gets at most about so many charges. More are joined, each at the latest instant.
MOST_CHARGES: Final = 256

#: When something was used, in microseconds from now (below 0: earlier), whatever the clock of the
#: record is, and how many units.
Use: TypeAlias = tuple[int, int]


class RestoredUsage(NamedTuple):
    """What a limit counts, what it should, and what it was or would be charged; in its units."""

    held: int
    recorded: int
    missing: int


def restore(engine: Engine, charge: Charge, uses: Iterable[Use], *, apply: bool) -> RestoredUsage:
    """Charge what the bucket should count after these uses and does not; with ``apply`` False, only
    say how much that is. A use below 0 was given back. A bucket that counts more is left alone, and
    a second time changes nothing. Raises ``StorageUnavailable``."""
    decision = engine.admit([charge._replace(cost=0)], take=False)
    (verdict,) = decision.verdicts
    limit, now_us = charge.limit, decision.now_us
    recorded, charges = _replayed(charge, uses, now_us)
    held = limit.capacity - verdict.remaining
    # An exhausted limit does not show by how much.
    missing = max(0, recorded - held) if verdict.remaining else 0
    if apply and missing:
        late = verdict._replace(charge=charge, receipt=0)
        if held:
            engine.settle([Change.adjust(late, missing)])
        else:
            for at_us, units in _joined(charges, now_us):
                engine.settle([Change.adjust(late, units)], now_us=at_us)
    return RestoredUsage(held, recorded, missing)


def _replayed(charge: Charge, uses: Iterable[Use], now_us: int) -> tuple[int, list[Use]]:
    """Return what is counted now after these uses, and those since the bucket last started over."""
    limit, state, charges = charge.limit, None, list[Use]()
    moved = ((now_us + min(0, from_now_us), units) for from_now_us, units in uses if units)
    for at_us, units in sorted(moved, key=itemgetter(0)):
        if units < 0:
            state, _ = scratch.credited(limit, state, at_us, -units)
            charges = _less(charges, -units)
            continue
        state = scratch.adjusted(limit, state, at_us, 0, units)
        if state == scratch.adjusted(limit, None, at_us, 0, units):
            charges = []
        charges.append((at_us, units))
    if not charges:  # none, or all was given back
        return 0, []
    return scratch.used(limit, state, now_us), charges


def _less(charges: list[Use], units: int) -> list[Use]:
    """Return the charges without so many units of the oldest."""
    left = list[Use]()
    for at_us, charged in charges:
        taken = min(units, charged)
        units -= taken
        if charged > taken:
            left.append((at_us, charged - taken))
    return left


def _joined(charges: list[Use], now_us: int) -> list[Use]:
    """Neighbours joined. The first stays alone: it opens the window."""
    (first_us, units), *others = charges
    step = (now_us - first_us) // MOST_CHARGES + 1
    joined: dict[int, Use] = {}
    for at_us, more in others:
        place = (at_us - first_us) // step
        joined[place] = at_us, more + joined.get(place, (0, 0))[1]
    return [(first_us, units), *joined.values()]
