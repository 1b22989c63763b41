"""The client's clock, for the memory engine and for windows of the calendar.

It calls ``time.time`` each time, so that a test can freeze it.
"""

from __future__ import annotations

import time


def now_us() -> int:
    """Now, in microseconds since the epoch."""
    return int(time.time() * 1_000_000)
