"""An instant as HTTP's headers name one."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def http_date(text: str) -> datetime | None:
    """The instant that a header's value names, as UTC where it names no zone; None where it names
    none, whatever else it says."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a year of twenty digits overflows
        return None
    return date.replace(tzinfo=date.tzinfo or UTC)
