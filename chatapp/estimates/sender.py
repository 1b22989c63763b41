"""The thread that tells a server of calls that ended, so that no request waits for it."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Final

from chatapp.estimates.histogram import MOST_CALLS

log = logging.getLogger(__name__)

#: How long a call waits for others: no model is sent for more often than four times a second.
EVERY_S: Final = 0.25
#: How much longer the end of a process may take for it.
AT_END_S: Final = 1.0

#: Takes a slug, and how many calls of that model fell into each bucket; whether they have arrived.
Send = Callable[[str, Mapping[int, int]], bool]


class Sender:
    """Calls of one process on their way to a server.

    A model's calls are sent together, ``every_s`` after the first of them. While none arrive they
    wait, but of each model only the last MOST_CALLS: in a histogram that had them all, the older
    ones would weigh half or less. So nothing grows, as slugs are the catalogue's.
    """

    def __init__(self, send: Send, *, every_s: float = EVERY_S, at_end_s: float = AT_END_S) -> None:
        self._send = send
        self._every_s = every_s
        self._at_end_s = at_end_s
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[int]] = {}
        self._in_hand: tuple[str, deque[int]] | None = None
        self._hurries = False
        self._closes = False
        self._thread = threading.Thread(target=self._run, name="recent outputs", daemon=True)
        self._thread.start()

    def note(self, slug: str, bucket: int) -> None:
        """Have a call sent soon. Never waits, never raises."""
        with self._changed:
            if not self._waiting:  # else the thread knows that there is something
                self._changed.notify_all()
            self._waiting.setdefault(slug, _last(())).append(bucket)

    def unsent(self, slug: str) -> Mapping[int, int]:
        """The model's calls by bucket that were noted, and of which no arrival is known."""
        with self._changed:
            in_hand = self._in_hand[1] if self._in_hand and self._in_hand[0] == slug else ()
            return Counter(_last(in_hand, self._waiting.get(slug, ())))

    def flush(self, timeout_s: float) -> bool:
        """Send at once, and wait until everything has arrived; whether that came to pass."""
        with self._changed:
            self._hurries = bool(self._waiting)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (self._in_hand or self._waiting), timeout_s)

    def close(self) -> None:
        """Send what waits, once and as far as that takes no time, and end. Harmless again."""
        if os.getpid() != self._process:
            return  # a fork has the memory of its parent's sender, and not its thread
        with self._changed:
            self._closes = True
            self._changed.notify_all()
        self._thread.join(self._at_end_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closes)
                self._changed.wait_for(lambda: self._hurries or self._closes, self._every_s)
                self._hurries = False
                slugs, closes = list(self._waiting), self._closes
            for slug in slugs:
                if not self._bring(slug):
                    break  # the others would fare no better
            if closes:
                return

    def _bring(self, slug: str) -> bool:
        """Send the model's calls; whether they are on nobody's mind any more."""
        with self._changed:
            calls = self._waiting.pop(slug)
            self._in_hand = slug, calls
        try:
            is_done = self._send(slug, Counter(calls))
        except Exception:  # a thread that dies would share nothing that follows
            log.exception("%d calls of %s are not in its recent outputs", len(calls), slug)
            is_done = True
        with self._changed:
            self._in_hand = None
            if not is_done:
                # At the end of the row, so that one model's trouble is not all others'.
                self._waiting[slug] = _last(calls, self._waiting.pop(slug, ()))
            self._changed.notify_all()
        return is_done


def _last(*calls: Iterable[int]) -> deque[int]:
    """Those of them that are worth remembering."""
    return deque(chain(*calls), maxlen=MOST_CALLS)
