"""What a caller has spent, for GET /usage and `chat usage`."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from chatapp.ledger.reports import Reports

MICRO: Final = 1_000_000

log = logging.getLogger(__name__)


def spent_usd(reports: Reports, identity: str) -> dict[str, float] | None:
    """Dollars spent today and this month, in UTC; None if the ledger cannot be read."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        return {
            "today_usd": reports.spent_micro_usd(identity, today) / MICRO,
            "month_usd": reports.spent_micro_usd(identity, today.replace(day=1)) / MICRO,
        }
    except (SQLAlchemyError, OSError) as error:
        log.error("The ledger cannot be read: %s", error)
        return None
