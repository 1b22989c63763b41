"""What is left of the limits that a chat of the present caller would meet. Nothing is taken."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final, cast

from flask import Flask, current_app

from ratelimit_ext import Limiter

# Where the caller's limits stand in the policy; the compatible endpoints share their buckets.
BLUEPRINT: Final = "chat"
ENDPOINT: Final = "chat.chat"
METHOD: Final = "POST"
# Whose limits are the caller's own: what one model is asked by everybody is nobody's affair.
OWN: Final = ("ip", "user", "api_key")
MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class LimitLeft:
    """One limit as it stands. ``amount`` and ``remaining`` are in its unit (dollars as
    micro-dollars), ``reset_at`` is in seconds since 1970."""

    name: str
    unit: str
    amount: int
    period_s: int
    burst: int | None
    remaining: int
    reset_at: float

    def told(self) -> dict[str, object]:
        """For a caller: dollars are dollars, times are seconds from now."""
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
        if self.burst is not None:
            entry["burst"] = self.burst
        return entry


def limits_left(limiter: Limiter) -> list[LimitLeft]:
    """One entry a limit, the shortest period first; none where limits are off."""
    if not limiter.enabled:
        return []
    app = cast(Flask, cast(Any, current_app)._get_current_object())
    manager = limiter.limit_manager
    own = [limiter.identities[name] for name in OWN]
    runtimes = [*manager.application_limits, *manager.blueprint_limits(app, BLUEPRINT)]
    entries = []
    for runtime in sorted(runtimes, key=lambda runtime: runtime.limit.get_expiry()):
        if runtime.key_func not in own:
            continue
        scope = runtime.scope_for(ENDPOINT, METHOD)
        left = limiter.limiter.get_window_stats(runtime.limit, runtime.key_func(), scope)
        item = runtime.limit
        keywords = getattr(item, "keywords", None)
        entries.append(
            LimitLeft(
                name=getattr(keywords, "name", "") or str(item),
                unit=getattr(keywords, "unit", "requests"),
                amount=item.amount,
                period_s=item.get_expiry(),
                burst=getattr(keywords, "burst", None),
                remaining=left.remaining,
                reset_at=left.reset_time,
            )
        )
    return entries
