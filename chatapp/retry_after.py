"""The wait that a provider's answer asks for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from chatapp.http_date import http_date

#: Quotas are of a minute, a day or a month. What is longer is no wait.
LONGEST_S: Final = 31 * 86_400


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait that a provider's answer asks for, in seconds; None where it names none we can use.

    ``retry-after-ms`` before ``retry-after``, the order in which both SDKs read them.
    """
    for header, seconds_per_unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers.get(header, "")) * seconds_per_unit
        except ValueError:
            continue
        if 0 < wait_s <= LONGEST_S:
            return wait_s
    date = http_date(headers.get("retry-after", ""))
    if date is None:
        return None
    wait_s = (date - datetime.now(UTC)).total_seconds()
    return wait_s if 0 < wait_s <= LONGEST_S else None
