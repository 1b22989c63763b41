"""What is left of the limits that a chat of the present caller would meet. Nothing is taken."""

from __future__ import annotations

import time
from typing import Any, Final, cast

from flask import Flask, current_app
from limits import RateLimitItem

from ratelimit_ext import Limiter

# Where the caller's limits stand in the policy; the compatible endpoints share their buckets.
BLUEPRINT: Final = "chat"
ENDPOINT: Final = "chat.chat"
METHOD: Final = "POST"
# Whose limits are the caller's own: what one model is asked by everybody is nobody's affair.
OWN: Final = ("ip", "user", "api_key")


def limits_left(limiter: Limiter) -> list[dict[str, object]]:
    """One entry a limit, the shortest period first. Dollars are dollars, waits are seconds."""
    if not limiter.enabled:
        return []
    app = cast(Flask, cast(Any, current_app)._get_current_object())
    manager = limiter.limit_manager
    own = [limiter.identities[name] for name in OWN]
    runtimes = [*manager.application_limits, *manager.blueprint_limits(app, BLUEPRINT)]
    entries = []
    for runtime in sorted(runtimes, key=lambda runtime: runtime.limit.get_expiry()):
        if runtime.key_func not in own or runtime.method_exempt:
            continue
        scope = runtime.scope_for(ENDPOINT, METHOD)
        left = limiter.limiter.get_window_stats(runtime.limit, runtime.key_func(), scope)
        entries.append(_entry(runtime.limit, left.remaining, left.reset_time - time.time()))
    return entries


def _entry(item: RateLimitItem, remaining: int, reset_s: float) -> dict[str, object]:
    keywords = getattr(item, "keywords", None)
    unit = getattr(keywords, "unit", "requests")
    burst = getattr(keywords, "burst", None)
    scale = 1_000_000 if unit == "usd" else 1
    entry: dict[str, object] = {
        "name": getattr(keywords, "name", "") or str(item),
        "unit": unit,
        "limit": item.amount / scale if scale > 1 else item.amount,
        "remaining": remaining / scale if scale > 1 else remaining,
        "reset_after": max(0.0, round(reset_s, 3)),
    }
    if unit != "calls":
        entry["period"] = item.get_expiry()
    if burst is not None:
        entry["burst"] = burst
    return entry
