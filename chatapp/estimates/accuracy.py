"""How good estimates are: what was used, as a multiple of what was expected."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["input", "output"]
#: Upper bounds of the buckets, as Prometheus has them; a last one takes what is larger.
RATIO_BOUNDS: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Ratios:
    """Actual through estimated tokens of ``count`` calls: below 1 too much was held, above 1 too
    little. ``buckets`` has one number more than RATIO_BOUNDS, each of its own bucket alone."""

    count: int = 0
    total: float = 0.0
    buckets: tuple[int, ...] = (0,) * (len(RATIO_BOUNDS) + 1)

    @property
    def mean(self) -> float:
        """0 where there was no call."""
        return self.total / self.count if self.count else 0.0

    def added(self, ratio: float) -> Ratios:
        """With one call more."""
        place = bisect_left(RATIO_BOUNDS, ratio)
        buckets = (*self.buckets[:place], self.buckets[place] + 1, *self.buckets[place + 1 :])
        return Ratios(self.count + 1, self.total + ratio, buckets)


class Accuracy:
    """The ratios of this process, by slug and kind of token. Slugs are the catalogue's: few."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ratios: dict[tuple[str, Kind], Ratios] = {}

    def observe(self, slug: str, kind: Kind, *, estimated: int, actual: int) -> float:
        """Count a call; returns its ratio. An estimate of nothing is taken for one token."""
        ratio = max(0, actual) / max(1, estimated)
        with self._lock:
            self._ratios[slug, kind] = self._ratios.get((slug, kind), Ratios()).added(ratio)
        return ratio

    def snapshot(self) -> dict[tuple[str, Kind], Ratios]:
        """All that was observed so far; counters of a process, which begin with it."""
        with self._lock:
            return dict(self._ratios)
