"""What a provider's headers say of its quotas, as an amount per period of which so much is used.

Both vendors say how much is left and when all of it is back; neither says of which period. OpenAI
counts requests by the minute or by the day, whatever the tier has; everything else is by the minute
(the vendors' pages on rate limits, as of October 2026).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chatapp.providers import Quota

MINUTE_S: Final = 60
DAY_S: Final = 86_400
#: The geometric mean of both: a rate that is slower than an amount in so long is one by the day.
BETWEEN_S: Final = 2277
#: A day, and what rounding may add. An amount that would take longer does not come back evenly.
LONGEST_S: Final = 1.05 * DAY_S


@dataclass(frozen=True, slots=True)
class Allowance:
    """Of ``amount`` per ``period_s`` seconds ``used`` are used."""

    amount: int
    used: int
    period_s: int


def allowance_of(quota: Quota) -> Allowance:
    """The quota as an allowance.

    Where its period is not told, it follows from how long what is used takes to come back: evenly,
    or, at the end of a minute, all at once.

    >>> allowance_of(Quota("requests", limit=10_000, remaining=9_999, reset_after_s=8.64)).period_s
    86400
    >>> allowance_of(Quota("tokens", limit=30_000, remaining=24_000, reset_after_s=12.0)).period_s
    60
    """
    used = quota.limit - quota.remaining
    if quota.period_s is not None:
        return Allowance(quota.limit, used, quota.period_s)
    whole_s = 0.0
    if used and quota.reset_after_s is not None:
        whole_s = quota.reset_after_s * quota.limit / used
    by_the_day = quota.unit == "requests" and BETWEEN_S < whole_s <= LONGEST_S
    return Allowance(quota.limit, used, DAY_S if by_the_day else MINUTE_S)
