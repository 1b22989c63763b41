"""Recent calls: how long the answers of a model and of a caller were.

A worst case (max_tokens, or the whole context) would hold a budget that is never spent, and block
callers who have it; an average would be too low every other time. The estimate is the 95th
percentile of recent calls: the caller's own if there are enough of them, else the model's. The
model's calls can only raise the estimate for an unknown caller, so that one caller's short answers
do not lower what is held of the others.

Its weakness: it knows callers and models, but not the question. A caller who suddenly asks for
longer answers is underestimated until the call settles, and carries the rest as debt.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from statistics import median_low
from typing import Final

from cachetools import LRUCache

from chatapp.catalogue.usage import Usage

#: How many calls of a model are known.
MOST_CALLS: Final = 200
#: Fewer calls say nothing about a quantile of 95 %: one in twenty is its first sign.
ENOUGH_CALLS: Final = 20
QUANTILE_PERCENT: Final = 95
#: The least estimate for a caller with too few answers: two pages of English.
UNKNOWN_OUTPUT_TOKENS: Final = 1_024
#: The least estimate for any caller, however short the last answers were.
LEAST_OUTPUT_TOKENS: Final = 256

#: How much longer the answer to an unknown caller is expected to be with more effort of reasoning.
EFFORTS: Final = {"high": 4, "xhigh": 8, "max": 8}

#: The most pairs of caller and model that are remembered: about 30 MB.
MOST_CALLERS: Final = 10_000
#: How many calls a cached share is taken from; the median of two is the smaller.
FEW_CALLS: Final = 5


def quantile(outputs: Iterable[int]) -> int:
    """Return the tokens that QUANTILE_PERCENT of the answers did not exceed.

    >>> quantile([*range(1, 100), 5_000])
    95
    """
    ordered = sorted(outputs)
    return ordered[math.ceil(QUANTILE_PERCENT * len(ordered) / 100) - 1]


@dataclass(slots=True)
class _Calls:
    outputs: deque[int] = field(default_factory=lambda: deque(maxlen=2 * ENOUGH_CALLS))
    inputs: deque[Usage] = field(default_factory=lambda: deque(maxlen=FEW_CALLS))


_NO_INPUT: Final = Usage(0, 0)
_CACHE_TOKENS: Final = attrgetter("cached_input_tokens", "cache_write_tokens")


class History:
    """The last calls of each model, and of each caller and model, in this process. Safe from any
    thread.

    Another worker may know a caller differently; settling a call corrects what was held.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, deque[int]] = {}
        self._callers: LRUCache[tuple[str, str], _Calls] = LRUCache(MOST_CALLERS)

    def output_tokens(self, slug: str, caller: str | None = None, *, effort: str = "") -> int:
        """Return the estimate for one answer: by the caller's own calls if there are enough, else
        by the model's, but at least what is usual for that effort."""
        with self._lock:
            recent = None if caller is None else self._callers.get((caller, slug))
            is_known = recent is not None and len(recent.outputs) >= ENOUGH_CALLS
            calls = tuple(recent.outputs if recent and is_known else self._models.get(slug, ()))
        if is_known:
            return max(LEAST_OUTPUT_TOKENS, quantile(calls))
        least = UNKNOWN_OUTPUT_TOKENS * EFFORTS.get(effort, 1)
        return least if len(calls) < ENOUGH_CALLS else max(least, quantile(calls))

    def cached_tokens(self, caller: str, slug: str, input_tokens: int) -> int:
        """Return how many of these input tokens the provider's cache is expected to have: what the
        last call read and wrote, if it wrote any and what was written before was read; else the
        share of the last calls. At most the longest of their inputs: it knows no others."""
        with self._lock:
            calls = self._callers.get((caller, slug))
            inputs = () if calls is None else tuple(calls.inputs)
        if not any(chain.from_iterable(map(_CACHE_TOKENS, inputs))):
            return 0
        *_, before, last = (_NO_INPUT, *inputs)
        longest = max([usage.input_tokens for usage in inputs])
        kept = before.cached_input_tokens + before.cache_write_tokens
        if last.cache_write_tokens and 2 * last.cached_input_tokens >= min(kept, last.input_tokens):
            present = last.cached_input_tokens + last.cache_write_tokens
            return min(input_tokens, present, longest)
        if len(inputs) < 2:
            return 0
        shares = [min(1.0, u.cached_input_tokens / max(1, u.input_tokens)) for u in inputs]
        return min(int(input_tokens * median_low(shares)), longest)

    def learn(self, slug: str, *outputs: int) -> None:
        """Add answers of the model, in their order."""
        with self._lock:
            self._models.setdefault(slug, deque(maxlen=MOST_CALLS)).extend(outputs)

    def add(self, caller: str, slug: str, usage: Usage, *, output_tokens: int) -> None:
        """Add a call with its reported usage; ``output_tokens`` are those of one answer."""
        self.learn(slug, output_tokens)
        with self._lock:
            pair = caller, slug
            calls = self._callers.get(pair) or self._callers.setdefault(pair, _Calls())
            calls.outputs.append(output_tokens)
            calls.inputs.append(usage)
