"""What is left of the limits of the present request, for the vendors' own headers."""

from __future__ import annotations

from dataclasses import dataclass

from ratelimit_ext import Limiter


@dataclass(frozen=True, slots=True)
class Allowance:
    """Of all limits in one unit, the one that is nearest to exhaustion or denied."""

    unit: str
    limit: int
    remaining: int
    reset_after_us: int
    denied: bool


def present_allowances(limiter: Limiter) -> list[Allowance]:
    """One allowance a unit; none where no limit was decided."""
    scarcest: dict[str, Allowance] = {}
    for decided in limiter.current_limits:
        verdict = decided.verdict
        limit = verdict.charge.limit
        allowance = Allowance(
            unit=limit.unit,
            limit=limit.capacity,
            remaining=verdict.remaining,
            reset_after_us=verdict.reset_after_us,
            denied=not verdict.allowed,
        )
        known = scarcest.get(limit.unit)
        if known is None or _scarcity(allowance) < _scarcity(known):
            scarcest[limit.unit] = allowance
    return list(scarcest.values())


def _scarcity(allowance: Allowance) -> tuple[bool, float, int]:
    """What denied comes first, then what has least left of its whole, then the later reset."""
    left = allowance.remaining / max(1, allowance.limit)
    return not allowance.denied, left, -allowance.reset_after_us
