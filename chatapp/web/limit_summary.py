"""The limits of the current request, summed up for the vendors' own headers."""

from __future__ import annotations

from dataclasses import dataclass

from ratelimit_ext import Limiter


@dataclass(frozen=True, slots=True)
class LimitSummary:
    """Of all limits in one unit, the one that is nearest to exhaustion or denied."""

    unit: str
    limit: int
    remaining: int
    reset_after_us: int
    denied: bool


def limit_summaries(limiter: Limiter) -> list[LimitSummary]:
    """One summary per unit of the limits that were decided."""
    scarcest: dict[str, LimitSummary] = {}
    for decided in limiter.current_limits:
        verdict = decided.verdict
        limit = verdict.charge.limit
        summary = LimitSummary(
            unit=limit.unit,
            limit=limit.capacity,
            remaining=verdict.remaining,
            reset_after_us=verdict.reset_after_us,
            denied=not verdict.allowed,
        )
        known = scarcest.get(limit.unit)
        if known is None or _scarcity(summary) < _scarcity(known):
            scarcest[limit.unit] = summary
    return list(scarcest.values())


def _scarcity(summary: LimitSummary) -> tuple[bool, float, int]:
    """Denied limits first, then the smallest remaining share, then the latest reset."""
    left = summary.remaining / max(1, summary.limit)
    return not summary.denied, left, -summary.reset_after_us
