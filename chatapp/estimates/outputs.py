"""Output tokens to expect, by what the caller's and the model's last calls generated.

A worst case (max_tokens, or the whole context) would hold a budget that is never spent, and block
callers who have it; an average would overshoot every other time. So: what 95 of 100 recent calls
did not exceed, the caller's own if there are enough of them, else the model's. The model's can
only raise what is held of a stranger, so that one caller's short answers lower nobody else's hold.

Its weakness: it knows callers and models, not the question. A caller who suddenly asks for longer
answers is underestimated until the call settles, and carries the rest as debt.
"""

from __future__ import annotations

import threading
from typing import Final, Protocol

from chatapp.estimates.callers import ENOUGH_CALLS
from chatapp.estimates.histogram import Histogram

#: Which of a hundred calls may generate more than was expected: five.
QUANTILE_PERCENT: Final = 95
#: Expected at least of a caller whose own answers are not known: two pages of English.
UNKNOWN_OUTPUT_TOKENS: Final = 1_024
#: Expected at least of any caller, however short the last answers were.
LEAST_OUTPUT_TOKENS: Final = 256


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
    """The tokens to expect of one answer to a stranger, by the model's recent calls."""
    if histogram.calls < ENOUGH_CALLS:
        return UNKNOWN_OUTPUT_TOKENS
    return max(UNKNOWN_OUTPUT_TOKENS, histogram.quantile(QUANTILE_PERCENT))
