"""Whether the limits in dollars hold what the ledger says was spent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from limits.storage import MemoryStorage

from chatapp.cli import users
from chatapp.ledger.reports import Reports
from chatapp.web.call_limits import RemainingLimit, remaining_limits
from ratelimit_ext import Limiter

# A window that follows no calendar opens when its first call is admitted, a moment before that
# call's own time.
BEFORE: Final = timedelta(milliseconds=5)
OUT_OF_REACH: Final = (
    "they are in each worker's own memory, where no command reaches them. Run it beside gunicorn, "
    "whose embedded server it finds, or set RATELIMIT_STORAGE_URI to the storage of the workers."
)


def can_be_read(limiter: Limiter) -> bool:
    """Whether this process sees the workers' limits: those in memory are each worker's own."""
    return bool(limiter.enabled) and not isinstance(limiter.storage, MemoryStorage)


def differences(
    limiter: Limiter, reports: Reports, *, identity: str, plan: str, lease: timedelta
) -> list[str]:
    """A sentence for each limit of that user's plan that does not hold what the user spent.

    Not for users with calls under way: of those the limits hold the estimates. A call that began in
    the window before, within a ``lease`` of its end, may have left an excess in this one.
    """
    found = []
    for limit in _limits(limiter, identity, plan):
        since = datetime.fromtimestamp(limit.reset_at - limit.period_s, UTC)
        if limit.anchor is None:
            since -= BEFORE
        spent = reports.settled_micro_usd(identity, since)
        most = reports.settled_micro_usd(identity, since - lease)
        held = limit.amount - limit.remaining
        # What is over the amount is held, and shows as nothing left.
        if not min(spent, limit.amount) <= held <= min(most, limit.amount):
            found.append(
                f"{identity} spent {spent} micro-dollars in the window of {limit.name!r} since "
                f"{since:%Y-%m-%d %H:%M:%S}, and the limit holds {held}"
            )
    return found


def _limits(limiter: Limiter, identity: str, plan: str) -> list[RemainingLimit]:
    """The limits in dollars as that user's next request would meet them."""
    with users.request_of(identity, plan):
        return [limit for limit in remaining_limits(limiter) if limit.unit == "usd"]
