"""Recent outputs in Redis or Valkey, shared by all workers.

One hash a model, with at most as many fields as there are buckets (1 kB). A thread adds the calls
that have ended with one script, which returns the whole histogram: so a busy worker knows the calls
of all others without a read, and an idle one reads once in half a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, Final

from chatapp.background import BackgroundSender, Patience
from chatapp.estimates.outputs import (
    BOUNDS,
    CALL_WEIGHT,
    MOST_CALLS,
    MOST_WEIGHT,
    Histogram,
    bucket_of,
)
from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

#: Slugs come from the catalogue, so that callers cannot create keys.
KEY_PREFIX: Final = "chatapp:outputs:"
KEEP_MS: Final = 30 * 24 * 3600 * 1000
#: How long a call waits for others: at most four commands a second and model.
EVERY_S: Final = 0.25
#: A model without calls in this worker for this time is read again.
FRESH_S: Final = 30.0
#: No command is sent for this time after a failure, so that requests do not wait for the same
#: outage twice.
PAUSE_S: Final = 5.0
MOST_MODELS: Final = 10_000
SCRIPT: Final = Path(__file__).with_name("observe.lua")

#: The buckets of the calls of a model, by slug.
Sender = BackgroundSender[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Known:
    histogram: Histogram
    since_s: float


class RedisOutputs:
    """Outputs on a server. While it is unavailable, the worker uses what it knows.

    ``client`` is redis-py's or valkey-py's, and ``errors`` are its exceptions for a server that is
    unavailable; ``is_down``: it is known to be, so no command is sent. ``clock`` is monotonic, in
    seconds; calls wait ``every_s`` for others to be sent
    with. Calls whose arrival was not confirmed are sent again: they may weigh twice, for a time.
    """

    def __init__(
        self,
        client: Any,
        errors: type[Exception] | tuple[type[Exception], ...],
        *,
        is_down: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
    ) -> None:
        self._client = client
        # ValueError: another program wrote to the key. OSError: no file descriptor is left.
        named = errors if isinstance(errors, tuple) else (errors,)
        self._errors: tuple[type[Exception], ...] = (*named, ValueError, OSError)
        self._is_down = is_down
        self._clock = clock
        self._sender = PerProcess(partial(new_sender, self._send, every_s), close=Sender.close)
        self._observe = client.register_script(SCRIPT.read_text("utf-8"))
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._paused_until_s = float("-inf")
        self._is_away = False

    def recent(self, slug: str) -> Histogram:
        """One HGETALL if this worker knows nothing newer than FRESH_S; no command otherwise."""
        unsent = self._sender.get().unsent(slug)
        return self._shared(slug).with_calls(Counter(unsent))

    def add(self, slug: str, output_tokens: int) -> None:
        """The thread sends it."""
        self._sender.get().put(slug, (bucket_of(output_tokens),))

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until the server has all calls of this process; returns whether it has."""
        return self._sender.get().flush(timeout_s)

    def close(self) -> None:
        """Send what waits, once, and end this process's thread."""
        self._sender.get().close()

    def _shared(self, slug: str) -> Histogram:
        """The histogram of the server's last answer, or of one now."""
        now = self._clock()
        with self._lock:
            known = self._known.get(slug, _Known(Histogram(), float("-inf")))
            if now - known.since_s < FRESH_S or self._is_paused():
                return known.histogram
            # Requests that come meanwhile use the known histogram, so that one read is enough.
            self._known[slug] = _Known(known.histogram, now)
        try:
            histogram = _histogram(self._client.hgetall(KEY_PREFIX + slug))
        except self._errors as error:
            self._pause(error)
            return known.histogram
        self._remember(slug, histogram)
        return histogram

    def _send(self, slug: str, buckets: tuple[int, ...]) -> bool:
        """One EVALSHA; returns whether the server has added the calls."""
        if self._is_paused():
            return False
        calls = Counter(buckets)
        arguments = (CALL_WEIGHT, MOST_WEIGHT, KEEP_MS, *chain.from_iterable(calls.items()))
        try:
            reply = self._observe(keys=[KEY_PREFIX + slug], args=arguments)
            self._remember(slug, _histogram(dict(zip(reply[::2], reply[1::2], strict=True))))
        except self._errors as error:
            self._pause(error)
            return False
        return True

    def _remember(self, slug: str, histogram: Histogram) -> None:
        self._is_away = False
        with self._lock:
            self._known[slug] = _Known(histogram, self._clock())

    def _is_paused(self) -> bool:
        return self._clock() < self._paused_until_s or self._is_down()

    def _pause(self, error: Exception) -> None:
        self._paused_until_s = self._clock() + PAUSE_S
        if not self._is_away:  # once an outage
            log.warning(
                "Recent outputs are unavailable; estimates use this worker's calls: %s", error
            )
        self._is_away = True


def new_sender(
    send: Callable[[str, tuple[int, ...]], bool], every_s: float, *, at_end_s: float = 0
) -> Sender:
    """The thread that sends calls with that function, one model at a time.

    Of each model the last MOST_CALLS wait: in a histogram, older ones would weigh half or less. So
    memory is bounded, as slugs come from the catalogue.
    """
    return BackgroundSender(
        "recent outputs",
        lambda batch: all(send(slug, buckets) for slug, buckets in batch.items()),
        merge=lambda earlier, later: (earlier + later)[-MOST_CALLS:],
        lose=_lose,
        batch=1,
        most=MOST_MODELS,
        linger_s=every_s,
        patience=Patience(first_s=every_s, longest_s=every_s, whole_s=inf, at_end_s=at_end_s),
    )


def _lose(slug: str, buckets: tuple[int, ...]) -> None:
    log.warning("%d calls of %s are not in the recent outputs", len(buckets), slug)


def _histogram(fields: Mapping[Any, Any]) -> Histogram:
    """ValueError if another program wrote the fields."""
    weights = {int(bucket): int(weight) for bucket, weight in fields.items()}
    if any(not 0 <= bucket < len(BOUNDS) or weights[bucket] < 0 for bucket in weights):
        raise ValueError("the hash of recent outputs has other fields")
    return Histogram(weights)
