"""A provider's quota, from its headers, as an amount per period and its used part.

Both providers report what is left and when all of it is back, but not the period. OpenAI counts
requests by the minute or by the day, depending on the tier; everything else is by the minute
(the providers' pages on rate limits, as of October 2026).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chatapp.upstreams import Quota, QuotaUnit

MINUTE_S: Final = 60
DAY_S: Final = 86_400
#: The geometric mean of both: a quota that refills more slowly than this is a daily one.
BETWEEN_S: Final = 2277
#: A day, plus rounding. A quota that would take longer does not refill evenly.
LONGEST_S: Final = 1.05 * DAY_S


@dataclass(frozen=True, slots=True)
class QuotaLevel:
    """``used`` of ``amount`` per ``period_s`` seconds."""

    amount: int
    used: int
    period_s: int


def quota_level(quota: Quota) -> QuotaLevel:
    """Return the level of a quota.

    An unreported period follows from the time in which the used part comes back: evenly, or all at
    once at the end of a minute.

    >>> quota_level(Quota("requests", limit=10_000, remaining=9_999, reset_after_s=8.64)).period_s
    86400
    >>> quota_level(Quota("tokens", limit=30_000, remaining=24_000, reset_after_s=12.0)).period_s
    60
    """
    used = quota.limit - quota.remaining
    if quota.period_s is not None:
        return QuotaLevel(quota.limit, used, quota.period_s)
    whole_s = 0.0
    if used and quota.reset_after_s is not None:
        whole_s = quota.reset_after_s * quota.limit / used
    by_the_day = quota.unit == "requests" and BETWEEN_S < whole_s <= LONGEST_S
    return QuotaLevel(quota.limit, used, DAY_S if by_the_day else MINUTE_S)


def exceeds(use: Mapping[QuotaUnit, int], quotas: Sequence[Quota]) -> bool:
    """Return whether a call alone uses more than one of these quotas ever holds."""
    return any(use.get(quota.unit, 0) > quota.limit for quota in quotas)
