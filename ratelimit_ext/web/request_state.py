"""What has been decided about the present request, for one extension."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Final

import flask_limiter
from limits import WindowStats
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.web.entry import Entry
from ratelimit_ext.web.limits_adapter import rank
from ratelimit_ext.web.reservation import Reservation

#: A view that takes longer than this is told what is left at its end, not at its beginning.
NOTICEABLE_S: Final = 0.05


class RequestLimit(flask_limiter.RequestLimit):
    """Flask-Limiter's view of one entry. Its amounts are for people: those of a limit in ``usd``
    are dollars. ``verdict`` has the exact answer, in micro-dollars."""

    verdict: Verdict

    @property
    def amount(self) -> int | Decimal:
        """The most that can be left of the limit."""
        limit = self.verdict.charge.limit
        return limit.outside(limit.capacity)

    @property
    def remaining(self) -> int | Decimal:  # type: ignore[override]
        """What is left of the limit."""
        return self.verdict.charge.limit.outside(self.verdict.remaining)

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
    """The state of a request. Nothing is rendered before it is needed.

    ``reserves`` makes the reservation of its entries, where there is something to settle.
    """

    __slots__ = (
        "_reserves",
        "charged",
        "conditional",
        "decided",
        "entries",
        "exempt",
        "extension",
        "finished",
        "plan",
        "refusal",
        "reservation",
        "retry_ms",
        "streams",
        "taken",
    )

    def __init__(
        self, extension: flask_limiter.Limiter, reserves: Callable[[list[Entry]], Reservation]
    ) -> None:
        self.extension = extension
        self._reserves = reserves
        self._begin()

    def reset(self) -> None:
        """Forget everything: the request is over."""
        if self.conditional:  # it ended without a response to judge by
            self.reserved().give_back(self.conditional)
        if self.reservation is not None:
            # A whole answer is over with its request; a stream goes on, and closes with its
            # response.
            if self.streams or self.reservation.detached:
                self.reservation.send_corrections()
            else:
                self.reservation.close()
        self._begin()

    def _begin(self) -> None:
        #: All entries of the last admission, guards and shadows included.
        self.decided: list[Entry] = []
        #: Enforced entries, in the order of decision.
        self.entries: list[Entry] = []
        #: Entries whose charge depends on the response: refunded, unless it says otherwise. Where
        #: the engine cannot refund, they are not taken yet.
        self.conditional: list[Entry] = []
        #: Definitions that are charged once in a request, by identity; ``None``: nothing decided.
        self.charged: set[int] | None = None
        #: The caller's plan; ``None``: not asked yet.
        self.plan: str | None = None
        #: Entries whose charges were taken and not refunded, those in shadow included.
        self.taken: list[Entry] = []
        #: What is to be settled when the call is over; ``None``: nothing is.
        self.reservation: Reservation | None = None
        #: What the last denial was raised as; True: it is the response, and no view could catch it.
        self.refusal: HTTPException | bool = False
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

    def reserved(self) -> Reservation:
        """The reservation of what the request has taken and will take."""
        if self.reservation is None:
            self.reservation = self._reserves(self.taken)
        return self.reservation

    def outlast(self, response: Response) -> None:
        """Let the response close the reservation. What is corrected already does not wait for the
        end of a stream, or of code that has detached it."""
        reservation = self.reserved()
        if not reservation.detached:
            response.call_on_close(reservation.close)
            # Flask makes an iterator of a refusal, which is whole all the same.
            self.streams = response.is_streamed and not self.is_refused(response)
        if self.streams or reservation.detached:
            reservation.send_corrections()

    def is_refused(self, response: Response) -> bool:
        """Whether the response is a denial of this extension.

        A view may catch the exception and answer all the same: then it is none, unless it has the
        denial's status. A traceback begins where the exception was caught.
        """
        refusal = self.refusal
        if isinstance(refusal, bool):
            return refusal
        caught = refusal.__traceback__
        return response.status_code == refusal.code or (
            caught is not None and caught.tb_frame.f_globals.get("__name__") == "flask.app"
        )

    def refuse(self) -> None:
        """Give back what was taken, as the request is refused. A denied request costs nothing."""
        if self.taken and not (self.reservation is not None and self.reservation.detached):
            self.add_to_remaining((e, e.cost) for e in self.reserved().refuse())

    def add_to_remaining(self, amounts: Iterable[tuple[Entry, int]]) -> None:
        """Let the answers say what is left after charges of these entries were corrected."""
        given: dict[int, int] = {}
        for entry, amount in amounts:
            verdict = id(entry.verdict)
            given[verdict] = given.get(verdict, 0) + amount
        if given:
            self.entries = [_with_more(e, given.get(id(e.verdict), 0)) for e in self.entries]

    def bring_to_present(self) -> None:
        """Let the answers say what is left now. Refusals are sent at once, and stay exact."""
        if not self.entries or self.retry_ms is not None:
            return
        here = time.monotonic()
        if here - self.entries[0].admission.decided_at > NOTICEABLE_S:
            self.entries = [
                entry.later(int((here - entry.admission.decided_at) * 1_000_000))
                for entry in self.entries
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


def _with_more(entry: Entry, amount: int) -> Entry:
    verdict = entry.verdict
    remaining = max(0, verdict.remaining + amount)
    return entry._replace(verdict=verdict._replace(remaining=remaining)) if amount else entry


def _wait(entry: Entry) -> Any:
    wait = entry.verdict.retry_after_us
    return (wait is None, wait or 0)
