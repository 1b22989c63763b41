"""The period of a provider's quota.

Both providers report what is left and when all of it is back, but not the period. OpenAI counts
requests by the minute or by the day, depending on the tier; everything else is by the minute
(the providers' pages on rate limits, as of October 2026).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from chatapp.upstreams import Quota, QuotaUnit

MINUTE_S: Final = 60
DAY_S: Final = 86_400
#: The geometric mean of both: a quota that refills more slowly than this is a daily one.
BETWEEN_S: Final = 2277
#: A day, plus rounding. A quota that would take longer does not refill evenly.
LONGEST_S: Final = 1.05 * DAY_S


def period_s_of(quota: Quota) -> int:
    """Return the period of a quota.

    An unreported one follows from the time in which the used part comes back: evenly, or all at
    once at the end of a minute.

    >>> period_s_of(Quota("requests", limit=10_000, remaining=9_999, reset_after_s=8.64))
    86400
    >>> period_s_of(Quota("tokens", limit=30_000, remaining=24_000, reset_after_s=12.0))
    60
    """
    if quota.period_s is not None:
        return quota.period_s
    whole_s, used = 0.0, quota.limit - quota.remaining
    if used and quota.reset_after_s is not None:
        whole_s = quota.reset_after_s * quota.limit / used
    by_the_day = quota.unit == "requests" and BETWEEN_S < whole_s <= LONGEST_S
    return DAY_S if by_the_day else MINUTE_S


def exceeds(use: Mapping[QuotaUnit, int], quotas: Sequence[Quota]) -> bool:
    """Return whether a call alone uses more than one of these quotas ever holds."""
    return any(use.get(quota.unit, 0) > quota.limit for quota in quotas)
