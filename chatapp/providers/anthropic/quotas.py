"""What Anthropic's headers say of our quotas there.

https://platform.claude.com/docs/en/api/rate-limits, under “Response headers”.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from chatapp.http_date import http_date
from chatapp.providers import Quota, QuotaUnit
from chatapp.quota_headers import quota

#: All of them are by the minute. No reset tells: it is rounded to whole seconds, and up.
PERIOD_S: Final = 60
# Of RFC 3339; Python alone also reads weeks, any separator, and whatever follows a NUL.
INSTANT: Final = re.compile(r"[0-9-]{10}T[0-9:.]{8,30}(?:Z|[+-][0-9]{2}:[0-9]{2})?")


def quotas(headers: Mapping[str, str]) -> tuple[Quota, ...]:
    """The quotas that an answer's headers tell, each at most once; none for what is odd in them."""
    # A reset is an instant by their clock, and so is the date: their difference is free of ours.
    now = http_date(headers.get("date", "")) or datetime.now(UTC)

    def reset_s(text: str) -> float | None:
        return _seconds_until(text, now)

    def told(unit: QuotaUnit, name: str) -> Quota | None:
        name = f"anthropic-ratelimit-{name}-{{}}"
        return quota(unit, headers, name, reset_s=reset_s, period_s=PERIOD_S)

    parts = told("input_tokens", "input-tokens"), told("output_tokens", "output-tokens")
    # Tokens of both only where neither is told: they are made of them, by a rule that differs.
    tokens = parts if any(parts) else (told("tokens", "tokens"),)
    return tuple(quota for quota in (told("requests", "requests"), *tokens) if quota)


def _seconds_until(text: str, now: datetime) -> float | None:
    """How far an RFC 3339 instant is from now; 0 where it is past."""
    text = text.strip()
    if not INSTANT.fullmatch(text):
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:  # the 32nd of a month
        return None
    instant = instant.replace(tzinfo=instant.tzinfo or UTC)
    return max(0.0, (instant - now).total_seconds())
