"""Recent outputs that all workers share and no restart forgets, in Redis or Valkey.

One hash a model, with at most as many fields as there are buckets (1 kB). Calls that end are noted,
and a thread adds them to it with one script, whose answer is the whole histogram: so a worker that
is busy knows of all others' calls without ever reading, and one that was idle for half a minute
reads once.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from chatapp.estimates.histogram import BOUNDS, CALL_WEIGHT, MOST_WEIGHT, Histogram, bucket_of
from chatapp.estimates.sender import EVERY_S, Sender
from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

#: A slug is the catalogue's, so that nobody invents keys.
KEY_PREFIX: Final = "chatapp:outputs:"
KEEP_MS: Final = 30 * 24 * 3600 * 1000
#: A model that no call of this worker ended of for so long is read again.
FRESH_S: Final = 30.0
#: A storage that failed is left alone for so long, so that no request waits for it twice.
PAUSE_S: Final = 5.0
SCRIPT: Final = Path(__file__).with_name("observe.lua")


@dataclass(frozen=True, slots=True)
class _Known:
    histogram: Histogram
    since_s: float


class RedisOutputs:
    """Outputs in a server. While it is away, the worker goes on with what it knows and sees itself.

    ``client`` is redis-py's or valkey-py's, ``errors`` what it raises where the server cannot
    serve; ``clock`` is monotonic, in seconds; ``every_s`` is how long a call waits for others to be
    sent with. Calls whose arrival was not confirmed are sent again: they may weigh twice, for a
    time.
    """

    def __init__(
        self,
        client: Any,
        errors: type[Exception] | tuple[type[Exception], ...],
        *,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
    ) -> None:
        self._client = client
        # A key that somebody else wrote to is no better than a server that is away.
        named = errors if isinstance(errors, tuple) else (errors,)
        self._errors: tuple[type[Exception], ...] = (*named, ValueError)
        self._clock = clock
        self._every_s = every_s
        self._sender = PerProcess(self._started)
        self._observe = client.register_script(SCRIPT.read_text("utf-8"))
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._paused_until_s = float("-inf")
        self._is_away = False

    def recent(self, slug: str) -> Histogram:
        """One HGETALL where this worker has heard nothing for FRESH_S; nothing otherwise."""
        return self._told(slug).with_calls(self._sender.get().unsent(slug))

    def add(self, slug: str, output_tokens: int) -> None:
        """Notes it; the server is told by the thread."""
        self._sender.get().note(slug, bucket_of(output_tokens))

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until the server has all calls of this process; whether it has."""
        return self._sender.get().flush(timeout_s)

    def close(self) -> None:
        """Send what is left, once, and end this process's thread."""
        self._sender.get().close()

    def _started(self) -> Sender:
        sender = Sender(self._send, every_s=self._every_s)
        atexit.register(sender.close)
        return sender

    def _told(self, slug: str) -> Histogram:
        """What the server said last, or says now."""
        now = self._clock()
        with self._lock:
            known = self._known.get(slug, _Known(Histogram(), float("-inf")))
            if now - known.since_s < FRESH_S or now < self._paused_until_s:
                return known.histogram
            # Whoever comes meanwhile takes what is known, and does not read as well.
            self._known[slug] = _Known(known.histogram, now)
        try:
            histogram = _histogram(self._client.hgetall(KEY_PREFIX + slug))
        except self._errors as error:
            self._pause(error)
            return known.histogram
        self._remember(slug, histogram)
        return histogram

    def _send(self, slug: str, calls: Mapping[int, int]) -> bool:
        """One EVALSHA; whether the server has taken the calls, and its answer is known."""
        if self._clock() < self._paused_until_s:
            return False
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

    def _pause(self, error: Exception) -> None:
        self._paused_until_s = self._clock() + PAUSE_S
        if not self._is_away:  # once an outage
            log.warning("no recent outputs, estimates go on with what this worker saw: %s", error)
        self._is_away = True


def _histogram(fields: Mapping[Any, Any]) -> Histogram:
    """ValueError where the fields are none of ours."""
    weights = {int(bucket): int(weight) for bucket, weight in fields.items()}
    if any(not 0 <= bucket < len(BOUNDS) or weights[bucket] < 0 for bucket in weights):
        raise ValueError("a hash of recent outputs holds something else")
    return Histogram(weights)
