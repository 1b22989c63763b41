"""The refusal of a request: a denial becomes the exception that answers it, or its ready answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeAlias

import flask
from werkzeug.exceptions import HTTPException

from ratelimit_ext.core.charge import NO_HOLD
from ratelimit_ext.core.decision import (
    ENDLESS_MS,
    Decision,
    SpreadDecision,
    is_endless,
    known_wait_ms,
)
from ratelimit_ext.core.errors import not_allowed
from ratelimit_ext.engine.denial_cache import CachedDecision
from ratelimit_ext.engine.engine import UNAVAILABLE, Engine
from ratelimit_ext.web.bound_limit import BoundCharges, BoundLimit, ChargeRecord, Records
from ratelimit_ext.web.declarations.callbacks import AdmissionSettings, Callbacks
from ratelimit_ext.web.errors import (
    Blocked,
    Cause,
    RateLimitExceeded,
    Refusal,
    RequestTooLarge,
    TemporarilyUnavailable,
    is_temporary,
    precedence,
)
from ratelimit_ext.web.identities import client_ip
from ratelimit_ext.web.request.cached_denial import (
    MOST_ANSWERS,
    CachedAnswer,
    ReadyAnswer,
    answer_key,
)
from ratelimit_ext.web.request.request_state import RequestLimit, RequestState, wait_us


class Denial(NamedTuple):
    """The records of a denial, its exception, and what callbacks and the log are given of them."""

    records: Records
    error: Refusal
    breached: list[ChargeRecord]


#: The records of what is admitted; a denial; one answered from memory; ``None`` without a limit.
AdmissionOutcome: TypeAlias = Records | Denial | CachedAnswer | None
#: Whether an exception's default response is the answer, and the application need not see it.
IsFinal: TypeAlias = Callable[[RateLimitExceeded], bool]


class Refusals(NamedTuple):
    """Refuses requests, for one extension. ``show`` makes the argument of breach callbacks."""

    callbacks: Callbacks
    settings: AdmissionSettings
    show: Callable[[ChargeRecord], RequestLimit]
    logger: logging.Logger

    def denial(self, records: Records) -> Denial:
        """Return which exception answers a denied decision."""
        decision = records.decision
        if any(verdict.charge.limit.spread for verdict in decision.denials):
            address = client_ip() if flask.has_request_context() else ""
            caller = "\n".join([address, *(identity for _, identity, _ in records.charges)])
            decision = SpreadDecision(decision, caller)
            records = Records(records.charges, decision, records.engine, records.hold)
        regular = records.without_metas()
        for record in records[len(regular) :]:
            if record.verdict.reason == UNAVAILABLE:
                wait_ms = decision.retry_after_ms
                closed = TemporarilyUnavailable(record.bound, UNAVAILABLE, wait_ms)
                return Denial(regular, closed, [])
            if not record.verdict.allowed:
                return Denial(regular, _exceeded(record, decision, "limit"), [record])
        denied = [r for r in regular if not r.verdict.allowed and r.verdict.enforced]
        if len(denied) > 1:
            denied.sort(key=lambda record: record.bound.rank)
        for record in denied:
            if record.verdict.retry_after_us is None and record.bound.limit.amount:
                return Denial(regular, RequestTooLarge(record.bound, record.verdict), [])
        cause = min((record.verdict.reason for record in denied), key=precedence)
        denied = [record for record in denied if record.verdict.reason == cause]
        longest = max(denied, key=wait_us)
        breached = [longest] if self.settings.fail_on_first_breach else denied
        wait_ms = known_wait_ms(decision)
        error: Refusal
        if is_temporary(cause):
            error = TemporarilyUnavailable(longest.bound, cause, wait_ms)
        elif cause == "blocked" and is_endless(longest.verdict):
            error = Blocked(longest.bound)
        else:
            error = _exceeded(longest, decision, cause)
        return Denial(regular, error, breached)

    def repeated(
        self,
        cached: CachedDecision,
        engine: Engine,
        route_limits: object,
        charges: BoundCharges,
        is_final: IsFinal | None,
    ) -> Denial | CachedAnswer:
        """Return the denial that is repeated from memory: the ready answer, or the denial where
        code of the application takes part, and at first."""
        records = Records(charges, cached, engine, NO_HOLD)
        has_handler = self.callbacks.refusal_handler is not None
        if is_final is None or has_handler or cached.denial.limit.spread:
            return self.denial(records)
        key, answers = answer_key(route_limits, cached), cached.denial.answers
        answer: ReadyAnswer | None = answers.get(key)
        if answer is not None:
            return CachedAnswer(answer, records, cached.elapsed_us - answer.made_us)
        denial = self.denial(records)
        error, runtimes = denial.error, [record.bound.runtime for record in denial.breached]
        if (
            key is not None
            and len(answers) < MOST_ANSWERS
            and isinstance(error, RateLimitExceeded)
            and self.settings.on_breach is None
            and not any(r.on_breach or callable(r.error_message) for r in runtimes)
            and is_final(error)
        ):
            answers[key] = ReadyAnswer(route_limits, cached, error, denial.breached)
        return denial

    def repeat(self, state: RequestState, cached_answer: CachedAnswer) -> flask.Response:
        """Record a denial that is repeated from memory, and answer it."""
        answer, records, passed_us = cached_answer
        state.cached_answer = cached_answer
        state.admit(records)
        if self.logger.isEnabledFor(logging.INFO):
            identities = {charge.key: identity for _, identity, charge in records.charges}
            for bound, key in answer.breached:
                self._log_breach(bound, identities[key])
        state.retry_ms = wait_ms = answer.wait_ms(passed_us)
        state.refusal = True
        return answer.response(wait_ms)

    def _log_breach(self, bound: BoundLimit, identity: str) -> None:
        self.logger.info(
            "ratelimit %s (%s) exceeded at endpoint: %s", bound.runtime.limit, identity, bound.scope
        )

    def reconsidered(
        self,
        denial: Denial,
        state: RequestState,
        charged: frozenset[int] | None,
        decide_again: Callable[[], AdmissionOutcome],
    ) -> AdmissionOutcome:
        """Return what the application's refusal handler makes of a denial. If the handler fails,
        that is logged, and the denial remains."""
        outcomes: dict[HTTPException | None, AdmissionOutcome] = {denial.error: denial}

        def again() -> HTTPException | None:
            state.charged = charged  # a denial charges nothing
            outcome = decide_again()
            error = outcome.error if isinstance(outcome, Denial) else None
            outcomes[error] = outcome
            return error

        assert self.callbacks.refusal_handler is not None
        try:
            answer: Any = self.callbacks.refusal_handler(denial.error, again)
        except HTTPException:
            raise
        except Exception:
            flask.current_app.logger.exception("The refusal handler failed; the request is denied")
            return denial
        if not isinstance(answer, HTTPException | None):
            _log_unfit("refusal_handler", answer, "None, or an exception of HTTP")
            return denial
        if answer is not None and answer not in outcomes:
            raise answer
        return outcomes.get(answer, denial)

    def refuse(self, state: RequestState, denial: Denial) -> NoReturn:
        """Record the denial, call the callbacks, and raise its exception."""
        records, error, breached = denial
        state.admit(records)
        is_ban = bool(breached) and breached[0].bound.is_meta
        if is_ban:
            state.records = list(breached)
        else:
            for record in breached:
                self._log_breach(record.bound, record.identity)
        if not isinstance(error, RequestTooLarge):
            state.retry_ms = (
                ENDLESS_MS if error.wait_ms is None else records.decision.retry_after_ms
            )
        if isinstance(error, RateLimitExceeded):
            error.response = self._call_back(breached, is_ban=is_ban)
        state.refusal = error
        raise error

    def _call_back(self, breached: list[ChargeRecord], *, is_ban: bool) -> flask.Response | None:
        """Call the callbacks on a breach; returns the last response that one of them made."""
        settings = self.settings
        answer: flask.Response | None = None
        for record in breached:
            hook = record.bound.runtime.on_breach
            callbacks = [hook or settings.on_meta_breach] if is_ban else [settings.on_breach, hook]
            for callback in dict.fromkeys(filter(None, callbacks)):
                kind = "on_meta_breach" if is_ban else "on_breach"
                try:
                    response: Any = callback(self.show(record))
                except HTTPException:
                    raise
                except Exception as error:
                    text = "%s callback failed with error %s"  # Flask-Limiter's words
                    flask.current_app.logger.exception(text, kind, error)  # noqa: TRY401
                    continue
                if isinstance(response, flask.Response):
                    answer = response
                elif response is not None:
                    _log_unfit(kind, response, "None, or a flask.Response")
        return answer


def _log_unfit(function: str, answer: object, allowed: str) -> None:
    """Log that a function of the application returned what has no effect."""
    refused = not_allowed(answer, allowed)
    flask.current_app.logger.error("%s returned what has no effect: %s", function, refused)


def _exceeded(record: ChargeRecord, decision: Decision, cause: Cause) -> RateLimitExceeded:
    bound = record.bound
    return RateLimitExceeded(bound.runtime, bound_limit=bound, decision=decision, cause=cause)
