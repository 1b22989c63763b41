"""Concluding: what becomes of a decision. A denial tells the callbacks, and raises."""

from __future__ import annotations

from collections.abc import Iterable

import flask
from werkzeug.exceptions import HTTPException

from ratelimit_ext.web.admission import Outcome
from ratelimit_ext.web.asking import AskingLimiter
from ratelimit_ext.web.cause import ENDLESS_MS, Cause, cause_of, precedence
from ratelimit_ext.web.entry import Entry
from ratelimit_ext.web.limited_request import LimitedRequest, RequestLimit
from ratelimit_ext.web.limits_adapter import rank
from ratelimit_ext.web.refusal import (
    Blocked,
    RateLimitExceeded,
    RequestTooLarge,
    TemporarilyUnavailable,
)


class ConcludingLimiter(AskingLimiter):
    """Flask-Limiter's extension, with its callbacks told of our decisions."""

    def _conclude(self, state: LimitedRequest, outcome: Outcome) -> None:
        """Remember the answers; raise the refusal where the request was denied."""
        state.decided = outcome.entries
        enforced = [entry for entry in outcome.entries if entry.verdict.enforced]
        state.entries += [entry for entry in enforced if entry.claim.limit.visible]
        if outcome.decision.admitted:
            _remember_taken(state, outcome)
            return
        state.refusal = refusal = self._refused(state, outcome)
        raise refusal

    def _refused(self, state: LimitedRequest, outcome: Outcome) -> HTTPException:
        """What the denial is raised as; callbacks on a breach are called."""
        banned = [entry for entry in outcome.metas if not entry.verdict.allowed]
        if banned:
            state.entries = [banned[0]]
            state.retry_ms = outcome.decision.retry_after_ms
            response = self._told(banned[:1], meta=True)
            return self._refusal(banned[0], outcome, "limit", response)
        denied = outcome.denied
        if len(denied) > 1:
            denied.sort(key=lambda entry: rank(entry.claim.runtime.limit))
        for entry in denied:
            if entry.verdict.retry_after_us is None:
                return RequestTooLarge(entry.claim, entry.verdict)
        state.retry_ms = outcome.decision.retry_after_ms
        first = min((cause_of(entry.verdict) for entry in denied), key=precedence)
        denied = [entry for entry in denied if cause_of(entry.verdict) == first]
        lasting = max(denied, key=lambda entry: entry.verdict.retry_after_us or 0)
        told = [lasting] if self._fail_on_first_breach else denied
        for entry in told:
            self.logger.info(
                "ratelimit %s (%s) exceeded at endpoint: %s",
                entry.claim.runtime.limit,
                entry.identity,
                entry.claim.scope,
            )
        wait_ms = None if (state.retry_ms or 0) > ENDLESS_MS else state.retry_ms
        if first in ("closed", "overloaded"):
            return TemporarilyUnavailable(lasting.claim, first, wait_ms)
        if first == "blocked" and wait_ms is None:
            return Blocked(lasting.claim)
        return self._refusal(lasting, outcome, first, self._told(told, meta=False))

    def _refusal(
        self, entry: Entry, outcome: Outcome, cause: Cause, response: flask.Response | None
    ) -> RateLimitExceeded:
        claim = entry.claim
        return RateLimitExceeded(
            claim.runtime, response, claim=claim, decision=outcome.decision, cause=cause
        )

    def _told(self, denied: Iterable[Entry], *, meta: bool) -> flask.Response | None:
        """Call the callbacks on a breach; the last response that one of them made."""
        answer: flask.Response | None = None
        for entry in denied:
            own = entry.claim.runtime.on_breach
            callbacks = [own or self._on_meta_breach] if meta else [self._on_breach, own]
            for callback in dict.fromkeys(filter(None, callbacks)):
                try:
                    response = callback(RequestLimit.of(entry, self))
                except Exception as error:
                    if not self._swallow_errors:
                        raise
                    kind = "on_meta_breach" if meta else "on_breach"
                    self.logger.exception(  # Flask-Limiter's words
                        "%s callback failed with error %s",
                        kind,
                        error,  # noqa: TRY401
                    )
                    continue
                if isinstance(response, flask.Response):
                    answer = response
        return answer


def _remember_taken(state: LimitedRequest, outcome: Outcome) -> None:
    """Note what was charged, and what depends on the response."""
    taken = [entry for entry in outcome.entries if entry.verdict.allowed]
    conditional = [entry for entry in taken if entry.claim.runtime.deduct_when]
    if conditional:
        state.conditional += conditional
        if not conditional[0].admission.engine.gives_back:
            taken = [entry for entry in taken if not entry.claim.runtime.deduct_when]
    state.taken += taken
    if any(entry.claim.limit.held for entry in taken):
        state.reserved()
