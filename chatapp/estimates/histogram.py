"""How long a model's answers lately were: a histogram that forgets.

Buckets grow by a fourth root of two, so that a quantile, told as its bucket's upper bound, is at
most 19 % too high and never too low. When a histogram holds MOST_CALLS, all of it is halved: the
last calls weigh most, and what was a thousand calls ago weighs half, two thousand a quarter.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

#: The largest number of tokens in each bucket; the last one takes whatever is larger.
BOUNDS: Final = tuple(sorted({math.ceil(2 ** (step / 4)) for step in range(81)}))
#: What a call adds. More than one, so that halving does not lose the single calls of the tail,
#: which are what a high quantile is made of.
CALL_WEIGHT: Final = 16
MOST_CALLS: Final = 1_000
MOST_WEIGHT: Final = MOST_CALLS * CALL_WEIGHT


def bucket_of(tokens: int) -> int:
    """The bucket that a number of tokens falls into."""
    return min(bisect_left(BOUNDS, tokens), len(BOUNDS) - 1)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Weights by bucket. Immutable: threads may share one."""

    weights: Mapping[int, int] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """About how many calls it remembers."""
        return sum(self.weights.values()) // CALL_WEIGHT

    def quantile(self, percent: int) -> int:
        """The tokens that so many of a hundred calls did not exceed; 0 where there are none.

        >>> Histogram().added(100).added(5_000).quantile(95)
        5793
        """
        wanted = sum(self.weights.values()) * percent
        reached = 0
        for bucket in sorted(self.weights):
            reached += self.weights[bucket] * 100
            if reached >= wanted:
                return BOUNDS[bucket]
        return 0

    def added(self, tokens: int) -> Histogram:
        """With one call more."""
        return self.with_calls({bucket_of(tokens): 1})

    def with_calls(self, calls: Mapping[int, int]) -> Histogram:
        """With so many calls more in each bucket. observe.lua does the same on the server."""
        if not calls:
            return self
        weights = dict(self.weights)
        for bucket, count in calls.items():
            weights[bucket] = weights.get(bucket, 0) + CALL_WEIGHT * count
        if sum(weights.values()) > MOST_WEIGHT:
            weights = {bucket: half for bucket, whole in weights.items() if (half := whole // 2)}
        return Histogram(weights)
