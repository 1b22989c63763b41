"""What the current caller has left of the limits of a chat. Nothing is charged."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from ratelimit_ext import Limiter, RequestLimit

# The endpoint with the caller's limits in the policy; the vendors' endpoints share their buckets.
ENDPOINT: Final = "chat.chat"
METHOD: Final = "POST"
MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class RemainingLimit:
    """The state of one limit. ``amount`` and ``remaining`` are in its unit (dollars as
    micro-dollars), ``reset_at`` is in seconds since 1970, ``identity`` is whom it counts.

    ``anchor`` is the unit of the calendar that a window follows, and ``period_s`` the length of the
    current one: a month has 28 to 31 days.
    """

    name: str
    unit: str
    amount: int
    period_s: int
    burst: int | None
    remaining: int
    reset_at: float
    identity: str
    anchor: str | None = None

    def as_json(self) -> dict[str, object]:
        """For a client: amounts in dollars, times in seconds from now."""
        money = self.unit == "usd"
        entry: dict[str, object] = {
            "name": self.name,
            "unit": self.unit,
            "limit": self.amount / MICRO if money else self.amount,
            "remaining": self.remaining / MICRO if money else self.remaining,
            "reset_after": max(0.0, round(self.reset_at - time.time(), 3)),
        }
        if self.unit != "calls":  # calls at once have no period
            entry["period"] = self.period_s
        if self.anchor is not None:
            entry["anchor"] = self.anchor
        if self.burst is not None:
            entry["burst"] = self.burst
        return entry


def remaining_limits(limiter: Limiter) -> list[RemainingLimit]:
    """One entry per limit, the shortest period first; none if limits are disabled.

    The limits of models are left out, because the current request names no model.
    """
    if not limiter.enabled:
        return []
    return [_left(shown) for shown in limiter.peek(ENDPOINT, method=METHOD)]


def _left(shown: RequestLimit) -> RemainingLimit:
    limit = shown.verdict.charge.limit
    return RemainingLimit(
        name=limit.name or str(shown.limit),
        unit=limit.unit,
        amount=limit.amount,
        period_s=_period_s(shown),
        burst=limit.burst,
        remaining=shown.verdict.remaining,
        reset_at=shown.window.reset_time,
        identity=shown.request_args[-2],  # before the scope, and after the prefix if there is one
        anchor=limit.anchor,
    )


def _period_s(shown: RequestLimit) -> int:
    """The length of the current window, in seconds."""
    limit, reset_at = shown.verdict.charge.limit, shown.window.reset_time
    if limit.anchor is None:
        return limit.period_us // MICRO
    zone = ZoneInfo(limit.timezone)
    start = datetime.fromtimestamp(reset_at - 1, zone).replace(hour=0, minute=0, second=0)
    if limit.anchor == "month":
        start = start.replace(day=1)
    return round(reset_at - start.replace(microsecond=0).timestamp())
