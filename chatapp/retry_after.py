"""The wait that a provider's answer asks for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from chatapp.http_date import http_date


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait that a provider's answer asks for, in seconds; None where it names none we can use.

    ``retry-after-ms`` before ``retry-after``, the order in which both SDKs read them.
    """
    for header, seconds_per_unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers.get(header, "")) * seconds_per_unit
        except ValueError:
            continue
        if 0 < wait_s < float("inf"):
            return wait_s
    date = http_date(headers.get("retry-after", ""))
    if date is None:
        return None
    wait_s = (date - datetime.now(UTC)).total_seconds()
    return wait_s if wait_s > 0 else None
