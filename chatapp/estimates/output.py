"""Output tokens to expect, by what the model's last calls generated.

A worst case (max_tokens, or the whole context) would hold a budget that nobody spends, and block
those who have it; an average would overshoot every other time. So: what 95 of 100 recent calls did
not exceed. Its weakness: it knows the model, not the question. Whoever asks for longer answers than
everybody else is underestimated until his call is settled, and carries the rest as debt.
"""

from __future__ import annotations

import threading
from typing import Final, Protocol

from chatapp.estimates.histogram import Histogram

#: Which of a hundred calls may generate more than was expected: five.
QUANTILE_PERCENT: Final = 95
#: Fewer calls than that say nothing about a quantile of 95 %: one in twenty is its first sign.
ENOUGH_CALLS: Final = 20
#: Expected of a model that has not been asked so often: two pages of English.
UNKNOWN_OUTPUT_TOKENS: Final = 1_024


class Outputs(Protocol):
    """The recent outputs of each model. No method raises, whatever becomes of a storage."""

    def recent(self, slug: str) -> Histogram:
        """What is known of the model now."""
        ...

    def add(self, slug: str, output_tokens: int) -> None:
        """Another call of the model has ended, and generated that. Waits for nothing."""
        ...

    def close(self) -> None:
        """Let others know what was added, as far as that takes no time, and end. The end of the
        process does that by itself."""
        ...


class MemoryOutputs:
    """Outputs of one process. Others do not know of them, and a restart forgets them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histograms: dict[str, Histogram] = {}

    def recent(self, slug: str) -> Histogram:
        return self._histograms.get(slug, Histogram())

    def add(self, slug: str, output_tokens: int) -> None:
        with self._lock:
            self._histograms[slug] = self.recent(slug).added(output_tokens)

    def close(self) -> None:
        """There are no others."""


def expected_output_tokens(histogram: Histogram) -> int:
    """The tokens to expect of one answer."""
    if histogram.calls < ENOUGH_CALLS:
        return UNKNOWN_OUTPUT_TOKENS
    return histogram.quantile(QUANTILE_PERCENT)
