"""What the response of a limited request says: refunds by its status, and rate limit headers.

``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-10) name every enforced
limit, and when it has more; the ``X-RateLimit-*`` of Flask-Limiter show the one nearest to
exhaustion, and when it is full. ``Retry-After`` is only sent with refusals.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import flask
from flask_limiter import HeaderNames
from werkzeug.datastructures import Headers
from werkzeug.http import http_date, parse_date

from ratelimit_ext.core.charge import Guess
from ratelimit_ext.core.decision import ENDLESS_MS
from ratelimit_ext.web.request.cached_denial import CachedAnswer, ReadyHeaders, name_of
from ratelimit_ext.web.request.request_state import WAITED, RequestState

#: A client should not wait longer in a retry loop, in milliseconds (docs/extension/answers.md).
LONGEST_RETRY_MS: Final = 60_000

DEGRADED: Final = "X-RateLimit-Degraded"
EXPOSED: Final = (
    *("RateLimit", "RateLimit-Policy", "retry-after-ms", "x-should-retry", DEGRADED, WAITED),
)

#: Headers of a response that are not copied to the refusal that replaces it.
OF_ONE_RESPONSE: Final = frozenset(
    [
        *("allow", "content-disposition", "content-encoding", "content-language", "content-length"),
        *("content-location", "content-range", "content-type", "etag", "last-modified", "location"),
        *("www-authenticate", "x-should-retry"),
    ]
)


@dataclass(kw_only=True, eq=False)
class ResponseWriter:
    """Finishes responses, for one extension. ``names`` are those of Flask-Limiter's headers."""

    names: Mapping[HeaderNames, str]
    headers_enabled: bool
    retry_after_as_date: bool
    swallow_errors: bool
    logger: logging.Logger

    def __post_init__(self) -> None:
        order = ("LIMIT", "REMAINING", "RESET", "RETRY_AFTER")
        headers = map(HeaderNames.__getitem__, order)
        #: The names of the limit, what remains, its reset and the wait: an enum is slow as a key.
        self._in_order = tuple([self.names.get(header, header.value) for header in headers])
        wait = self._in_order[3].lower()
        #: The names of the headers that only refusals have, in lower case.
        self._of_refusals = frozenset({"cache-control", wait, "retry-after-ms", "x-should-retry"})

    def finish(
        self,
        response: flask.Response,
        state: RequestState,
        others: Collection[RequestState],
        *,
        has_origin: bool = False,
    ) -> None:
        """Charge or refund by ``deduct_when``, and write the headers. ``others`` are the
        states of all extensions: a denial by one of them refunds what the others took.
        ``has_origin``: a script may have sent the request."""
        for other in others:
            if other.refusal and other.is_refused(response):
                for one in others:
                    one.refuse()
                break
        if state.conditional:
            self._deduct(state, response)
        headers = response.headers
        present = [*map(str.lower, map(name_of, headers))]
        if state.retry_ms is not None and response.status_code in (429, 503, 529):
            self._write_refusal(headers, present, state, state.retry_ms)
        if self.headers_enabled:
            if state.cached_answer is not None:
                self._write_cached_answer(headers, state, state.cached_answer)
            else:
                self._write_limits(headers, state)
        if state.reservation is not None:
            state.outlast(response)
        if (has_origin or "access-control-allow-origin" in present) and state.statuses():
            # Lets scripts of other origins read them, if a later hook allows the origin, too.
            names = ", ".join([*EXPOSED, *self.names.values()])
            exposed = headers.get("Access-Control-Expose-Headers")
            headers["Access-Control-Expose-Headers"] = f"{exposed}, {names}" if exposed else names

    def replace(self, response: flask.Response, refusal: flask.Response) -> flask.Response:
        """Return the refusal in place of a response, with the headers that others set."""
        refusal.call_on_close(response.close)
        replaced = OF_ONE_RESPONSE.union(name.lower() for name, _ in refusal.headers)
        refusal.headers.extend(
            [(name, value) for name, value in response.headers if name.lower() not in replaced]
        )
        return refusal

    def _deduct(self, state: RequestState, response: flask.Response) -> None:
        """Charge what ``deduct_when`` deducts, at the cost that is known by now, or refund what it
        does not deduct if that was reserved."""
        conditional, state.conditional = state.conditional, []
        refunds, late = [], []
        costs: dict[tuple[int, bool], int | Guess] = {}
        try:
            for record in conditional:
                deducted = cast(Any, record.bound.runtime.deduct_when)(response)
                if not record.bound.is_late:
                    refunds += [] if deducted else [record]
                elif deducted:
                    late.append(record._replace(cost=record.bound.priced(costs)[0]))
        except Exception:
            if not self.swallow_errors:
                raise
            self.logger.exception("Failed to deduct rate limit. Swallowing error")
        reservation = state.reserved()
        changed = [(record, record.cost) for record in reservation.give_back(refunds)]
        reservation.charge_late(late)
        state.add_to_remaining(changed + [(record, -record.cost) for record in late])

    def _write_limits(self, headers: Headers, state: RequestState) -> None:
        if state.degraded:
            headers[DEGRADED] = state.degraded
        statuses = state.statuses()
        if not statuses:
            return
        nearest, left, _, reset_at_us = statuses[state.nearest_of(statuses)]
        limit = nearest.limit
        outside = limit.outside if limit.unit == "usd" else int
        capacity, remaining, reset, _ = self._in_order
        items = [
            f"{bound.header};r={left};t={-(-more_us // 1_000_000)}"
            if bound.limit.capacity
            else f"{bound.header};r=0"  # no time brings more
            for bound, left, more_us, _ in statuses
        ]
        _append(
            headers,
            [
                ("RateLimit-Policy", ", ".join([status[0].policy for status in statuses])),
                ("RateLimit", ", ".join(items)),
                (capacity, str(outside(limit.capacity))),
                (remaining, str(outside(left))),
                # Flask-Limiter's rounding: the first whole second at which it is surely reset.
                (reset, str(int(reset_at_us / 1_000_000 + 1))),
            ],
        )

    def _write_cached_answer(
        self, headers: Headers, state: RequestState, cached_answer: CachedAnswer
    ) -> None:
        """The same for a denial that is repeated: only the time to each reset changes."""
        ready = cached_answer.answer.headers
        if ready is None:
            written = Headers()
            self._write_limits(written, state)
            ready = cached_answer.answer.headers = ReadyHeaders(
                [(name, value) for name, value in written if name != "RateLimit"],
                [(bound.header, left, more_us) for bound, left, more_us, _ in state.statuses()],
                cached_answer.passed_us,
            )
        if ready.items:
            text = ready.rate_limit(cached_answer.passed_us)
            _append(headers, [*ready.static, ("RateLimit", text)])

    def _write_refusal(
        self, headers: Headers, present: list[str], state: RequestState, wait_ms: int
    ) -> None:
        written = [("Cache-Control", "no-store")]
        if self._in_order[3].lower() in present:
            own_s = _seconds(headers[self._in_order[3]])
            wait_ms = int(own_s * 1000) if own_s > -(-wait_ms // 1000) else wait_ms
        if wait_ms < ENDLESS_MS:
            wait = str(max(1, -(-wait_ms // 1000)))
            if self.retry_after_as_date:  # whole seconds too, and never before the wait is over
                wait = http_date(math.ceil(time.time() + wait_ms / 1000))
            written.append((self._in_order[3], wait))
            written.append(("retry-after-ms", str(max(1, wait_ms))))
        if _is_budget(state) or wait_ms > LONGEST_RETRY_MS:
            # SDKs would sleep that long, or retry at once: have them raise the error instead.
            written.append(("x-should-retry", "false"))
        if not self._of_refusals.isdisjoint(present):
            for name, _ in written:
                headers.remove(name)
        _append(headers, written)


def _seconds(retry_after: str) -> float:
    """Return the wait of an application's ``Retry-After``; 0 if it is invalid."""
    if retry_after.isdecimal():
        return int(retry_after)
    at = parse_date(retry_after)
    return at.timestamp() - time.time() if at else 0


def _append(headers: Headers, written: list[tuple[str, str]]) -> None:
    """Add headers whose values are known to be valid, without the checks, which take longer."""
    headers._list += written  # noqa: SLF001


def _is_budget(state: RequestState) -> bool:
    if state.cached_answer is not None:
        return state.cached_answer.answer.is_budget
    if state.degraded:
        return False
    denied = [r for r in state.records if not r.verdict.allowed and r.verdict.reason == "limit"]
    return any(record.bound.limit.is_budget for record in denied)
