"""How many calls a worker sends to an upstream that refuses nearly all of them for its load.

An upstream that names no wait is never closed. As in "Handling Overload" of Google's SRE book, each
worker judges by what it has seen: calls pass in proportion to the share of the last second's calls
that were not refused. Time opens it, and not an answer, which may take half a minute: a second
after the last refusal, every call passes.

>>> throttle, seconds = Throttle(clock=lambda: 0.0), 1.0
>>> def refused() -> bool:
...     is_sent = throttle.admits("model")
...     if is_sent:
...         throttle.note_refusal("model")
...     return is_sent
>>> sum(refused() for _ in range(10)), sum(refused() for _ in range(90))
(10, 33)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cachetools import LRUCache

#: What counts as recent, in seconds, and so how long after a recovery calls are still held back.
RECENT_S: Final = 1.0
#: If one of so many calls is answered, all pass: a caller that tries three times without us must
#: not be answered less often here. With fewer recent calls all pass, too.
LEAST_ANSWERED: Final = 10
#: Callers choose the names of models.
MOST_UPSTREAMS: Final = 1000


@dataclass(slots=True)
class _Recent:
    """The calls of the last second: when they were sent, and when they were refused. ``credit``:
    what part of the next call may pass."""

    sent: deque[float] = field(default_factory=deque)
    refused: deque[float] = field(default_factory=deque)
    credit: float = 0.0

    def forget(self, before: float) -> None:
        for times in (self.sent, self.refused):
            while times and times[0] <= before:
                times.popleft()


class Throttle:
    """The recent calls of this process by upstream: a model and a key. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: LRUCache[str, _Recent] = LRUCache(MOST_UPSTREAMS)

    def admits(self, upstream: str) -> bool:
        """Return whether to send a call now; if so, it counts as sent."""
        with self._lock:
            now = self._clock()
            recent = self._recent.get(upstream) or self._recent.setdefault(upstream, _Recent())
            recent.forget(now - RECENT_S)
            sent, refused = len(recent.sent), len(recent.refused)
            share = LEAST_ANSWERED * (max(0, sent - refused) + 1) / (sent + 1)
            recent.credit += min(1.0, share)
            if refused and recent.credit < 1.0:
                return False
            recent.credit = max(0.0, recent.credit - 1.0)
            recent.sent.append(now)
            return True

    def note_refusal(self, upstream: str) -> None:
        with self._lock:
            if recent := self._recent.get(upstream):
                recent.refused.append(self._clock())
