"""What has been decided about one request, for one extension."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any, Final

import flask_limiter
from limits import WindowStats
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response
from werkzeug.wsgi import ClosingIterator

from ratelimit_ext.core.decision import Degradation, Verdict
from ratelimit_ext.web.bound_limit import ChargeRecord, LimitStatus, Records, statuses_of
from ratelimit_ext.web.request.cached_denial import CachedAnswer
from ratelimit_ext.web.request.reservation import Reservation

#: The header that says how long the request has waited for its turn, in milliseconds.
WAITED: Final = "RateLimit-Wait-Ms"
#: After a longer view, headers show what is left at its end.
NOTICEABLE_S: Final = 0.05


class RequestLimit(flask_limiter.RequestLimit):
    """Flask-Limiter's view of one record. Amounts of a limit in ``usd`` are dollars; ``verdict``
    has the exact answer, in micro-dollars."""

    verdict: Verdict
    #: The application's keywords of the limit, with their values.
    keywords: Mapping[str, Any]

    @property
    def amount(self) -> int | Decimal:
        """The most that can be left of the limit."""
        limit = self.verdict.charge.limit
        return limit.outside(limit.capacity)

    @property
    def remaining(self) -> int | Decimal:  # type: ignore[override]
        return self.verdict.charge.limit.outside(self.verdict.remaining)

    @classmethod
    def of(cls, record: ChargeRecord, extension: flask_limiter.Limiter) -> RequestLimit:
        """Return the record as callbacks and ``current_limits`` show it."""
        bound = record.bound
        arguments = [str(record.identity), bound.scope]
        if extension._key_prefix:
            arguments.insert(0, extension._key_prefix)
        item, is_breached = bound.runtime.limit, not record.verdict.allowed
        shown = cls(extension, item, arguments, is_breached, bound.runtime.shared)
        shown.verdict, shown.keywords = record.verdict, dict(bound.keywords)
        reset_at = (record.now_us + record.verdict.reset_after_us) / 1_000_000
        shown._window = WindowStats(reset_at, record.verdict.remaining)
        return shown


class RequestState:
    """The state of a request. ``reserve`` makes the reservation of what it takes, if needed."""

    #: How long it has waited for its turn.
    waited_us = 0
    is_denied = False
    #: How it was decided while the storage was down; empty if the storage decided.
    degraded: Degradation = ""
    #: A denial that is repeated from memory.
    cached_answer: CachedAnswer | None = None
    #: Ids of the definitions that are charged once in a request; ``None``: nothing decided.
    charged: frozenset[int] | None = None
    #: The caller's plan; ``None``: not asked yet.
    plan_name: str | None = None
    #: What is settled when the call is over; ``None``: nothing.
    reservation: Reservation | None = None
    #: The exception of the last denial; True: it was answered without being raised.
    refusal: HTTPException | bool = False
    #: The answer of the request filters; ``None``: not asked yet.
    exempt: bool | None = None
    #: The wait of the refusal in milliseconds; ``None``: not refused.
    retry_ms: int | None = None
    #: Whether the response is a stream, which outlives the request.
    streams = False
    finished = False

    def __init__(self, reserve: Callable[[list[ChargeRecord]], Reservation]) -> None:
        self._reserve = reserve
        self._decided: list[ChargeRecord] = []
        self._records: list[ChargeRecord] = []
        self._taken: list[ChargeRecord] = []
        #: Records that are made and added to these lists when one of them is read.
        self._unread: list[Records] = []
        #: Records that the response decides: it may charge those that are late, refund the others.
        self.conditional: list[ChargeRecord] = []

    @property
    def decided(self) -> list[ChargeRecord]:
        """Every record of the request, guards and shadows included."""
        if self._unread:
            self._read()
        return self._decided

    @property
    def records(self) -> list[ChargeRecord]:
        """What callers see: enforced limits that are not guards, in the order of decision."""
        if self._unread:
            self._read()
        return self._records

    @records.setter
    def records(self, records: list[ChargeRecord]) -> None:
        self._read()
        self._records = records

    @property
    def taken(self) -> list[ChargeRecord]:
        """The records whose charges were taken and not refunded, shadows included."""
        if self._unread:
            self._read()
        return self._taken

    def close(self) -> None:
        """Settle what is left to settle: the request is over."""
        if self.conditional:  # it ended without a response to judge by
            self.reserved().give_back(self.conditional)
        if self.reservation is not None:
            # A stream goes on, and closes the reservation with its response.
            if self.streams or self.reservation.detached:
                self.reservation.send_corrections()
            else:
                self.reservation.close()

    def admit(self, records: Records) -> None:
        """Add a decision: what it decided, and if it admitted, what it charged."""
        decision = records.decision
        self._unread.append(records)
        if decision.degraded:
            self.degraded = decision.degraded
        if not decision.admitted:
            self.is_denied = True
        elif records.may_change or self.reservation is not None:
            self._read()

    def _read(self) -> None:
        """Read the records that were added: the response needs them only to correct charges."""
        unread, self._unread = self._unread, []
        for records in unread:
            made = list(records)
            self._decided += made
            self._records += [record for record in made if record.bound.is_shown]
            if records.decision.admitted:
                charged = [record for record in made if record.verdict.allowed]
                if records.charges.is_conditional:
                    self.conditional += [r for r in charged if r.bound.is_conditional]
                    charged = [record for record in charged if not record.bound.is_late]
                self._taken += charged
                if any(record.bound.limit.held for record in charged):
                    self.reserved()

    def reserved(self) -> Reservation:
        if self.reservation is None:
            self.reservation = self._reserve(self.taken)
        return self.reservation

    def outlast(self, response: Response) -> None:
        """Let the response close the reservation. Corrections do not wait for the end of a stream,
        or of code that has detached the reservation."""
        reservation = self.reserved()
        if not reservation.detached:
            self.streams = _is_stream(response) and not self.is_refused(response)
            if response.direct_passthrough and response.is_streamed:
                file: Any = response.response  # which the server closes, and not the response
                response.response = ClosingIterator(file, reservation.close)
            else:
                response.call_on_close(reservation.close)
        if self.streams or reservation.detached:
            reservation.send_corrections()

    def is_refused(self, response: Response) -> bool:
        """Return whether the response is a denial of this extension.

        A view may catch the exception and answer: that is no denial, unless it has the denial's
        status. A traceback begins where the exception was caught.
        """
        refusal = self.refusal
        if isinstance(refusal, bool):
            return refusal
        caught = refusal.__traceback__
        return response.status_code == refusal.code or (
            caught is not None and caught.tb_frame.f_globals.get("__name__") == "flask.app"
        )

    def refuse(self) -> None:
        """Refund what was taken: a denied request costs nothing, and is charged nothing later."""
        if self.conditional:
            self.conditional = [record for record in self.conditional if not record.bound.is_late]
        if self.reservation is not None and self.reservation.detached:
            return
        if self._taken or any(records.decision.admitted for records in self._unread):
            self.add_to_remaining((r, r.cost) for r in self.reserved().refuse())

    def add_to_remaining(self, amounts: Iterable[tuple[ChargeRecord, int]]) -> None:
        """Update what is left after charges of these records were corrected."""
        given: dict[int, int] = {}
        for record, amount in amounts:
            verdict = id(record.verdict)
            given[verdict] = given.get(verdict, 0) + amount
        if given:
            self.records = [_with_more(r, given.get(id(r.verdict), 0)) for r in self.records]

    def statuses(self) -> list[LimitStatus]:
        """Return what headers show of each limit of :attr:`records`, as of now if the view was
        slow. Refusals are sent at once, and stay exact."""
        unread = self._unread
        if unread and not self._decided and not self._is_outdated(unread[0]):
            return list(chain.from_iterable(map(Records.statuses, unread)))
        records = self.records
        is_outdated = bool(records) and self._is_outdated(records[0])
        return statuses_of(records, time.monotonic() if is_outdated else None)

    def _is_outdated(self, decided: Records | ChargeRecord) -> bool:
        return self.retry_ms is None and time.monotonic() - decided.decided_at > NOTICEABLE_S

    def nearest(self) -> ChargeRecord | None:
        """Return the record nearest to exhaustion; of those that denied, the longest wait."""
        statuses = statuses_of(self.records)
        return self.records[self.nearest_of(statuses)] if statuses else None

    def nearest_of(self, statuses: Sequence[LimitStatus]) -> int:
        """Return the position of the status that is nearest to exhaustion, as :meth:`nearest`.

        Calls in flight count only without another limit: the call that is answered frees its slot.
        """
        if self.is_denied:
            denied = [at for at, record in enumerate(self.records) if not record.verdict.allowed]
            if denied:
                return max(denied, key=lambda at: wait_us(self.records[at]))
        parts = [
            remaining / (bound.limit.capacity or 1) + (bound.limit.unit == "calls")
            for bound, remaining, _, _ in statuses
        ]
        least = min(parts)
        if parts.count(least) == 1:
            return parts.index(least)
        equal = [at for at, part in enumerate(parts) if part == least]
        # A route's own limits before shared ones, short periods before long ones.
        bounds = [status[0] for status in statuses]
        return min(equal, key=lambda at: (bounds[at].runtime.shared, bounds[at].rank))


def _is_stream(response: Response) -> bool:
    """Return whether the response outlives the request. An error is complete, though a stream."""
    if response.direct_passthrough:  # a file
        return response.is_streamed
    is_error = isinstance(response.response, ClosingIterator) and response.content_length
    return response.is_streamed and not is_error


def wait_us(record: ChargeRecord) -> float:
    """Return the wait, for comparison: infinite if no wait is enough."""
    return math.inf if record.verdict.retry_after_us is None else record.verdict.retry_after_us


def _with_more(record: ChargeRecord, amount: int) -> ChargeRecord:
    if amount <= 0:
        return record.charged(-amount) if amount else record
    verdict = record.verdict
    remaining = max(0, verdict.remaining + amount)
    return record._replace(verdict=verdict._replace(remaining=remaining))
