"""Answers that are kept for a while, in a bounded number."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """At most ``most`` values, each with the time that it was put there, in seconds.

    When it is full the oldest goes. Safe from any thread.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def get(self, key: K, *, within_s: float) -> V | None:
        """The value, if it was put there that lately."""
        kept = self._kept.get(key)
        if kept is None or self._clock() - kept[1] >= within_s:
            return None
        return kept[0]

    def put(self, key: K, value: V) -> None:
        """Keep a value, as of now."""
        with self._lock:
            self._kept[key] = (value, self._clock())
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def forget(self, key: K) -> None:
        """Keep no value for it."""
        with self._lock:
            self._kept.pop(key, None)
