"""A thread that sends the results of requests, so that no request waits for a database."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

#: How much longer than `Patience.at_end_s` the end of the process waits for the thread.
JOIN_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Retries while the receiver is unavailable, in seconds.

    The first comes after ``first_s``, and each pause is twice the one before, up to ``longest_s``.
    After ``whole_s`` a batch is lost, and at the end of the process after ``at_end_s``.
    """

    first_s: float = 0.1
    longest_s: float = 5.0
    whole_s: float = 60.0
    at_end_s: float = 5.0


class BackgroundSender(Generic[K, V]):
    """Values on their way to a receiver, by key. Safe from any thread; starts its own at once.

    ``send`` takes at most ``batch`` of them and returns whether they have arrived; if not, they are
    sent again, after the others. ``merge`` joins the value of a key that waits with a later one.
    Values wait ``linger_s`` for others. At most ``most`` keys wait. ``lose`` gets every value that
    does not arrive: for lack of room, after the patience, at the end of the process, or because
    ``send`` raised an exception.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Mapping[K, V]], bool],
        *,
        merge: Callable[[V, V], V],
        lose: Callable[[K, V], None],
        batch: int,
        most: int,
        linger_s: float,
        patience: Patience,
    ) -> None:
        self._send = send
        self._merge = merge
        self._lose = lose
        self._batch = batch
        self._most = most
        self._linger_s = linger_s
        self._patience = patience
        self._waiting: dict[K, V] = {}
        self._in_hand: dict[K, V] = {}
        # The thread sleeps on `_arrived` or on `_hurry`: a value that comes while it lingers or
        # sends must not wake it, which would cost a request more than everything else here.
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._hurry = threading.Condition(self._lock)
        self._sent = threading.Condition(self._lock)
        self._is_hurried = False
        self._closed_at: float | None = None
        # Since when, and how long to wait after the last failure.
        self._failing_since: float | None = None
        self._pause_s = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, key: K, value: V) -> None:
        """Have a value sent soon. Never waits, never raises."""
        with self._lock:
            waits = key in self._waiting
            if self._closed_at is None and (waits or len(self._waiting) < self._most):
                if not self._waiting:
                    self._arrived.notify_all()
                self._waiting[key] = self._merge(self._waiting[key], value) if waits else value
                return
        self._lose(key, value)

    def unsent(self, key: K) -> V | None:
        """Return the value of the key that has not arrived, as far as is known."""
        with self._lock:
            values = [held[key] for held in (self._in_hand, self._waiting) if key in held]
        return self._merge(*values) if len(values) == 2 else next(iter(values), None)

    def flush(self, timeout_s: float) -> bool:
        """Send at once, and wait until nothing waits any more; returns whether that is so."""
        with self._lock:
            self._is_hurried = bool(self._waiting)
            self._hurry.notify_all()
            return self._sent.wait_for(lambda: not (self._in_hand or self._waiting), timeout_s)

    def close(self) -> None:
        """Send what waits, as far as the patience allows, and end. May be called again."""
        with self._lock:
            self._closed_at = self._closed_at or time.monotonic()
            self._is_hurried = bool(self._waiting)
            self._arrived.notify_all()
            self._hurry.notify_all()
        self._thread.join(self._patience.at_end_s + JOIN_S)
        with self._lock:
            # A batch in hand may arrive yet. Then it was reported lost, which is the safer error.
            lost = [*self._in_hand.items(), *self._waiting.items()]
            self._waiting.clear()
        for key, value in lost:
            self._lose(key, value)

    def _run(self) -> None:
        while self._has_work():
            with self._lock:
                keys = list(self._waiting)
            for start in range(0, len(keys), self._batch):
                if not self._deliver(keys[start : start + self._batch]):
                    break  # the receiver is probably unavailable

    def _has_work(self) -> bool:
        """Wait until values are to be sent; False at the end."""
        with self._lock:
            self._arrived.wait_for(lambda: self._waiting or self._closed_at)
            if self._failing_since is not None:
                self._hurry.wait_for(lambda: self._is_hurried or self._is_late(), self._pause_s)
            else:
                self._hurry.wait_for(lambda: self._is_hurried or self._closed_at, self._linger_s)
            self._is_hurried = False
            return bool(self._waiting) and not (self._failing_since and self._is_late())

    def _deliver(self, keys: list[K]) -> bool:
        """Send one batch; returns whether it has arrived."""
        with self._lock:
            # `close` takes what waits if this thread does not end in time.
            batch = {key: self._waiting.pop(key) for key in keys if key in self._waiting}
            self._in_hand = batch
        if not batch:
            return False
        try:
            has_arrived = self._send(batch)
            is_lost = not has_arrived and self._gives_up()
        except Exception:  # a thread that ends would lose everything after it
            log.exception("The thread %r could not send %d values", self._thread.name, len(batch))
            has_arrived, is_lost = True, True
        if has_arrived:
            self._failing_since = None
        if is_lost:
            for key, value in batch.items():
                self._lose(key, value)
        with self._lock:
            self._in_hand = {}
            if not (has_arrived or is_lost):
                for key, value in batch.items():
                    later = self._waiting.pop(key, None)
                    self._waiting[key] = value if later is None else self._merge(value, later)
            self._sent.notify_all()
        return has_arrived

    def _gives_up(self) -> bool:
        """Note a failure; returns whether the batch is lost."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since, self._pause_s = now, self._patience.first_s
        else:
            self._pause_s = min(2 * self._pause_s, self._patience.longest_s)
        if now - self._failing_since < self._patience.whole_s:
            return self._is_late()
        self._failing_since = None  # the next batch has a patience of its own
        return True

    def _is_late(self) -> bool:
        closed_at = self._closed_at
        return closed_at is not None and time.monotonic() - closed_at >= self._patience.at_end_s
