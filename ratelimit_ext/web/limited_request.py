"""What has been decided about the present request, for one extension."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import flask_limiter
from limits import WindowStats

from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.engine.protocol import Correction
from ratelimit_ext.web.entry import Entry
from ratelimit_ext.web.item import rank
from ratelimit_ext.web.reservation import Reservation

#: A view that takes longer than this is told what is left at its end, not at its beginning.
NOTICEABLE_S: Final = 0.05


class RequestLimit(flask_limiter.RequestLimit):
    """Flask-Limiter's view of one entry; ``verdict`` has the exact answer."""

    verdict: Verdict

    @classmethod
    def of(cls, entry: Entry, extension: flask_limiter.Limiter) -> RequestLimit:
        """The entry as callbacks and ``current_limits`` show it."""
        claim = entry.claim
        arguments = [str(entry.identity), claim.scope]
        if extension._key_prefix:
            arguments.insert(0, extension._key_prefix)
        shown = cls(
            extension,
            claim.runtime.limit,
            arguments,
            not entry.verdict.allowed,
            claim.runtime.shared,
        )
        shown.verdict = entry.verdict
        shown._window = WindowStats(entry.reset_at, entry.verdict.remaining)
        return shown


class LimitedRequest:
    """The state of a request. Nothing is rendered before somebody asks.

    ``abandon`` gives back what is conditional, where no response decides about it.
    """

    __slots__ = (
        "_abandon",
        "charged",
        "conditional",
        "entries",
        "exempt",
        "extension",
        "finished",
        "plan",
        "reservation",
        "retry_ms",
        "streams",
        "taken",
    )

    def __init__(
        self, extension: flask_limiter.Limiter, abandon: Callable[[list[Entry]], None]
    ) -> None:
        self.extension = extension
        self._abandon = abandon
        self._begin()

    def reset(self) -> None:
        """Forget everything: the request is over. What is reserved until now goes back."""
        if self.conditional:
            self._abandon(self.conditional)
        # A whole answer is over with its request; a stream goes on, and closes with its response.
        if self.reservation is not None and not (self.streams or self.reservation.detached):
            self.reservation.close()
        self._begin()

    def _begin(self) -> None:
        #: Enforced entries, in the order of decision.
        self.entries: list[Entry] = []
        #: Entries to give back, unless the response says otherwise.
        self.conditional: list[Entry] = []
        #: Definitions that are charged once in a request, by identity; ``None``: nothing decided.
        self.charged: set[int] | None = None
        #: The caller's plan; ``None``: not asked yet.
        self.plan: str | None = None
        #: Entries whose charges were taken, those in shadow included.
        self.taken: list[Entry] = []
        #: What is to be settled when the call is over; ``None``: nothing is.
        self.reservation: Reservation | None = None
        #: What the request filters said; ``None``: not asked yet.
        self.exempt: bool | None = None
        #: The wait of the refusal in milliseconds; ``None``: not refused.
        self.retry_ms: int | None = None
        #: Whether the response is a stream, which outlives the request.
        self.streams = False
        #: Whether the response has been dealt with.
        self.finished = False

    @property
    def view_rate_limits(self) -> list[RequestLimit]:
        """All limits that were decided, the shortest period first."""
        shown = sorted(self.entries, key=lambda entry: rank(entry.claim.runtime.limit))
        if self.extension._fail_on_first_breach:
            first = next((i for i, e in enumerate(shown) if not e.verdict.allowed), len(shown))
            shown = shown[: first + 1]
        return [RequestLimit.of(entry, self.extension) for entry in shown]

    @property
    def view_rate_limit(self) -> RequestLimit | None:
        """The limit nearest to exhaustion; one that denied, where there is one."""
        entry = self.nearest()
        return None if entry is None else RequestLimit.of(entry, self.extension)

    def correct(self, corrections: list[Correction]) -> None:
        """Let the answers say what is left after their charges were corrected."""
        deltas = {id(verdict): delta for verdict, delta in corrections}
        self.entries = [
            entry._replace(
                verdict=entry.verdict._replace(
                    remaining=max(0, entry.verdict.remaining - deltas[id(entry.verdict)]),
                )
            )
            if id(entry.verdict) in deltas
            else entry
            for entry in self.entries
        ]

    def bring_to_present(self) -> None:
        """Let the answers say what is left now. Refusals are sent at once, and stay exact."""
        if not self.entries or self.retry_ms is not None:
            return
        here = time.monotonic()
        if here - self.entries[0].decided_at > NOTICEABLE_S:
            self.entries = [
                entry.later(int((here - entry.decided_at) * 1_000_000)) for entry in self.entries
            ]

    def nearest(self) -> Entry | None:
        """The entry nearest to exhaustion; of those that denied, the longest wait.

        Calls in flight are not exhausted by the one that is answered: it gives its place back. They
        are shown where there is nothing else.
        """
        nearest, least = None, 2.0
        lasting = [entry for entry in self.entries if entry.claim.limit.unit != "calls"]
        for entry in self.entries:
            if not entry.verdict.allowed:
                return max((e for e in self.entries if not e.verdict.allowed), key=_wait)
        for entry in lasting or self.entries:
            left = entry.verdict.remaining / entry.claim.limit.capacity
            if left < least or (
                left == least and nearest is not None and entry.claim.order < nearest.claim.order
            ):
                nearest, least = entry, left
        return nearest


def _wait(entry: Entry) -> Any:
    wait = entry.verdict.retry_after_us
    return (wait is None, wait or 0)
