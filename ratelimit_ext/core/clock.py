"""The client's clock, in whole microseconds since 1970.

Redis decides by its own clock; this one serves the memory engine, and a Redis whose operator
forbids ``TIME`` in scripts. It reads ``time.time`` at every call, so that a test that freezes
time freezes this as well.
"""

from __future__ import annotations

import time


def now_us() -> int:
    """The present instant in microseconds since the epoch."""
    return int(time.time() * 1_000_000)
