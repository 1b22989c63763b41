"""What each caller's own calls were lately: how long the answers, and how much of the input cached.

In the memory of one worker, for the callers that it served last. Nothing is read or sent for it, so
another worker may know a caller differently; what is held by it is corrected when a call settles.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from statistics import median_low
from typing import Final

from chatapp.providers import Usage

#: How many pairs of caller and model are known at most: about 20 MB.
MOST_CALLERS: Final = 10_000
#: Fewer calls than that say nothing about a quantile of 95 %: one in twenty is its first sign.
ENOUGH_CALLS: Final = 20
QUANTILE: Final = 0.95
#: How many calls a cached share is taken from; the median of two is the smaller.
FEW_CALLS: Final = 5


@dataclass(slots=True)
class _Known:
    outputs: deque[int] = field(default_factory=lambda: deque(maxlen=2 * ENOUGH_CALLS))
    inputs: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=FEW_CALLS))


class Callers:
    """By caller and slug; both are identities of limits. Safe from any thread."""

    def __init__(self, most: int = MOST_CALLERS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    def output_tokens(self, caller: str, slug: str) -> int | None:
        """What 95 of 100 of the caller's own answers did not exceed; None for too few of them."""
        with self._lock:
            known = self._known.get((caller, slug))
            if known is None or len(known.outputs) < ENOUGH_CALLS:
                return None
            outputs = sorted(known.outputs)
        return outputs[math.ceil(QUANTILE * len(outputs)) - 1]

    def cached_tokens(self, caller: str, slug: str, input_tokens: int) -> int:
        """How many of these input tokens the provider's cache is expected to have: the share that
        it lately had, and not more than the longest of those inputs, as it knows no others."""
        with self._lock:
            known = self._known.get((caller, slug))
            if known is None or len(known.inputs) < 2:
                return 0
            share = median_low(share for share, _ in known.inputs)
            longest = max(tokens for _, tokens in known.inputs)
        return min(int(input_tokens * share), longest)

    def billed(self, caller: str, slug: str, usage: Usage, *, output_tokens: int) -> None:
        """A call is over, and its provider has reported the usage, with so many output tokens for
        each answer."""
        share = min(1.0, usage.cached_input_tokens / max(1, usage.input_tokens))
        with self._lock:
            known = self._known.setdefault((caller, slug), _Known())
            self._known.move_to_end((caller, slug))
            if len(self._known) > self._most:
                self._known.popitem(last=False)
            known.outputs.append(output_tokens)
            known.inputs.append((share, usage.input_tokens))
