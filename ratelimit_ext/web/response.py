"""Responding: what the response of a limited request says, and what it changes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final, cast

import flask
from flask.globals import request_ctx
from flask_limiter import HeaderNames
from werkzeug.exceptions import HTTPException

from ratelimit_ext.web import headers
from ratelimit_ext.web.deciding import DecidingLimiter
from ratelimit_ext.web.request_state import LimitedRequest
from ratelimit_ext.web.resolver import EDGE

#: Headers that belong to the answer they came with, and not to one that replaces it.
OF_ONE_ANSWER: Final = frozenset(
    [
        "allow",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "etag",
        "last-modified",
        "location",
        "www-authenticate",
    ]
)


class RespondingLimiter(DecidingLimiter):
    """Charges requests that reached no view, gives back, settles, and writes the headers."""

    def _take_over_response_hook(self, app: flask.Flask) -> None:
        """The stock header hook is a partial over a function of the base class: no override can
        reach it, and it would tell the stock's story."""
        hooks = app.after_request_funcs[None]
        hooks[:] = [
            hook
            for hook in hooks
            if not (isinstance(hook, partial) and hook.args and hook.args[0] is self)
        ]
        app.after_request(self._finish)

    def _finish(self, response: flask.Response) -> flask.Response:
        """Charge a request that reached no view, give back, write headers. Runs at most once."""
        state = self.context
        if state.finished or not (self.enabled and self.initialized):
            return response
        state.finished = True
        if state.charged is None and not _is_refused(response):
            response = self._decide_late(state, response)
        if _is_refused(response):
            for each in _states():
                each.refuse()
        if state.conditional:
            self._judge(state, response)
        if self._headers_enabled:
            state.bring_to_present()
            headers.write_limits(response.headers, state, self._header_mapping)
        if state.retry_ms is not None and response.status_code in (429, 503):
            headers.write_refusal(
                response.headers,
                state.retry_ms,
                budget=any(e.spent_budget for e in state.entries),
                name=self._header_mapping[HeaderNames.RETRY_AFTER],
                as_date=self._retry_after == "http-date",
            )
        if state.reservation is not None:
            state.outlast(response)
        if state.entries:
            headers.expose(response.headers, self._header_mapping)
        return response

    def _decide_late(self, state: LimitedRequest, response: flask.Response) -> flask.Response:
        """A request that was answered before its view is charged to the edge limits.

        Raising here would be a 500: the refusal is made into a response, with the headers that
        others have set on the first one.
        """
        endpoint = self.identify_request()
        if self._exempt(state, endpoint):
            return response
        place = self._place(endpoint, EDGE)
        try:
            self._decide(state, place, lambda: self._resolver.resolve(place), lenient=True)
        except HTTPException as refusal:
            state.refusal = True
            app = flask.current_app
            refused = app.make_response(app.handle_http_exception(refusal))
            refused.call_on_close(response.close)
            own = OF_ONE_ANSWER.union(name.lower() for name, _ in refused.headers)
            refused.headers.extend(
                [(name, value) for name, value in response.headers if name.lower() not in own]
            )
            return refused
        return response

    def _judge(self, state: LimitedRequest, response: flask.Response) -> None:
        """Refund what ``deduct_when`` does not deduct.

        An engine that cannot refund has only looked, and takes now what is deducted.
        """
        conditional, state.conditional = state.conditional, []
        refunds, late = [], []
        try:
            for entry in conditional:
                deducted = cast(Any, entry.claim.runtime.deduct_when)(response)
                if entry.admission.engine.gives_back:
                    refunds += [] if deducted else [entry]
                elif deducted:
                    late.append(entry)
        except Exception:
            if not self._swallow_errors:
                raise
            self.logger.exception("Failed to deduct rate limit. Swallowing error")
        reservation = state.reserved()
        changed = [(entry, entry.cost) for entry in reservation.give_back(refunds)]
        reservation.charge_late(late)
        state.add_to_remaining(changed + [(entry, -entry.cost) for entry in late])


def _states() -> Iterable[LimitedRequest]:
    """What each extension of the application remembers of the present request."""
    states: Iterable[LimitedRequest] = cast(Any, request_ctx)._ratelimit_ext.values()
    return states


def _is_refused(response: flask.Response) -> bool:
    """Whether the response is a denial, of whichever extension."""
    return any(state.is_refused(response) for state in _states())
