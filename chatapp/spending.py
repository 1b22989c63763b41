"""What somebody has spent, as GET /usage and `chat usage` tell it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from chatapp.ledger.records import Records
from chatapp.limits_left import MICRO

log = logging.getLogger(__name__)


def spent(records: Records, identity: str) -> dict[str, float] | None:
    """Dollars of today and of this month, by UTC and the ledger; None where that cannot be read."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        return {
            "today_usd": records.spent_micro_usd(identity, today) / MICRO,
            "month_usd": records.spent_micro_usd(identity, today.replace(day=1)) / MICRO,
        }
    except (SQLAlchemyError, OSError) as error:
        log.error("The ledger cannot be read: %s", error)
        return None
