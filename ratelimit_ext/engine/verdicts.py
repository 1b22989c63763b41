"""From readings to a decision: the part of an admission that is the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.strategies import strategy_named
from ratelimit_ext.strategies.strategy import Reading


def sent_cost(charge: Charge) -> int:
    """The cost as the strategy sees it: anything above the capacity is equally impossible."""
    return min(charge.cost, charge.limit.capacity + 1)


def verdict_of(
    charge: Charge, now_us: int, *, allowed: bool, taken: bool, reading: Reading
) -> Verdict:
    """The answer to one charge, from its bucket's reading before anything was taken."""
    limit, cost = charge.limit, charge.cost
    possible = cost <= limit.capacity
    remaining, wait, reset, receipt = strategy_named(limit.strategy).answer(
        limit, now_us, cost if possible else 0, taken, reading
    )
    wait_us = 0 if allowed else wait if possible else None
    return Verdict(charge, allowed, remaining, wait_us, reset, receipt)


def decision_of(
    charges: Sequence[Charge],
    now_us: int,
    *,
    admitted: bool,
    take: bool,
    readings: Sequence[tuple[bool, Reading]],
) -> Decision:
    """The decision over all charges; ``readings`` has one pair of fits and reading for each."""
    verdicts = [
        verdict_of(
            charge,
            now_us,
            allowed=fits,
            taken=take
            and fits
            and not charge.meta
            and (admitted or (charge.limit.mode == "shadow" and not charge.limit.held)),
            reading=reading,
        )
        for charge, (fits, reading) in zip(charges, readings, strict=True)
    ]
    return Decision(admitted, now_us, tuple(verdicts))


def merged(charges: Sequence[Charge]) -> Sequence[Charge]:
    """Charges with one per bucket: costs of the same bucket are added up, or one would be lost.

    Where their limits differ (they were changed between two definitions) the tightest decides.
    """
    if len({charge.key for charge in charges}) == len(charges):
        return charges
    by_key: dict[str, Charge] = {}
    for charge in charges:
        other = by_key.get(charge.key)
        by_key[charge.key] = charge if other is None else _together(other, charge)
    places = {key: place for place, key in enumerate(by_key)}
    return [
        charge._replace(on_denial=tuple(places[charges[i].key] for i in charge.on_denial))
        for charge in by_key.values()
    ]


def _together(one: Charge, other: Charge) -> Charge:
    """Both costs on one bucket. Enforced if either is: a shadow never weakens a limit."""
    enforced = [c for c in (one, other) if c.limit.mode == "enforce"] or [one, other]
    return Charge(
        min((c.limit for c in enforced), key=lambda limit: limit.capacity),
        one.key,
        one.cost + other.cost,
        meta=one.meta and other.meta,
        on_denial=one.on_denial + other.on_denial if one.on_denial and other.on_denial else (),
    )
