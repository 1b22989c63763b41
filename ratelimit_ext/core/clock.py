"""The client's clock.

Redis decides by its own clock. This one is for the memory engine, and for a Redis that forbids
``TIME`` in scripts. It calls ``time.time`` each time, so that a test can freeze it.
"""

from __future__ import annotations

import time


def now_us() -> int:
    """Now, in microseconds since the epoch."""
    return int(time.time() * 1_000_000)
