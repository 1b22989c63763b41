"""The admission of a request: bound limits become charges, one call of the engine decides them, and
a denial becomes the exception that answers it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Final, NamedTuple, NoReturn, TypeAlias

import flask
from flask_limiter import Limit
from werkzeug.exceptions import HTTPException

from ratelimit_ext.core.charge import NO_HOLD, Charge, Guess, Hold, new_hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import ConfigurationError, StorageFull, StorageUnavailable
from ratelimit_ext.core.events import DecisionEvent, Events
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.engine.denial_cache import DenialCache, Recollection
from ratelimit_ext.engine.engine import Engine, Release
from ratelimit_ext.engine.outage import UNAVAILABLE
from ratelimit_ext.web.bound_limit import BoundCharge, BoundLimit, ChargeRecord, Records
from ratelimit_ext.web.declarations.callbacks import Breach, Callbacks
from ratelimit_ext.web.errors import (
    ENDLESS_MS,
    STORAGE_FULL_WAIT_MS,
    Blocked,
    Cause,
    LimitUnavailable,
    RateLimitExceeded,
    Refusal,
    RequestTooLarge,
    TemporarilyUnavailable,
    is_endless,
    known_wait_ms,
    precedence,
)
from ratelimit_ext.web.request.ready_answer import MOST_ANSWERS, ReadyAnswer, Repetition, answer_key
from ratelimit_ext.web.request.request_state import RequestLimit, RequestState
from ratelimit_ext.web.resolver import EDGE, SWALLOWED, Resolver, Route, RouteLimits
from ratelimit_ext.web.settlements.queue import SettlementQueue
from ratelimit_ext.web.settlements.reservation import DEFAULT_LEASE_S
from ratelimit_ext.web.storage import Engines

#: Makes a named tuple of its items, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__
_NO_LIMITS: Final = RouteLimits()
#: No limit was asked.
_UNDECIDED: Final = Decision(admitted=False, now_us=0, verdicts=())
SKIPPED: Final = "The limit %s does not count this caller: its key function returned no identity."


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """What an application configures of its admissions; the names are Flask-Limiter's."""

    lease_s: float = DEFAULT_LEASE_S
    swallow_errors: bool = False
    fail_on_first_breach: bool = True
    #: The limits that replace all others while the storage is down.
    in_memory_fallback: Sequence[Limit] = ()
    on_breach: Breach | None = None
    on_meta_breach: Breach | None = None


class Denial(NamedTuple):
    """A denied decision, its exception, and the records that callbacks and the log are given."""

    decision: Decision
    records: Records
    error: Refusal
    breached: list[ChargeRecord]


#: What is admitted, with its records; a denial, or one that is answered from memory; or ``None`` if
#: no limit applies.
AdmissionOutcome: TypeAlias = tuple[Decision, Records] | Denial | Repetition | None
#: What listeners learn of.
_Emitted: TypeAlias = (
    tuple[Decision, Records] | Denial | Repetition | LimitUnavailable | TemporarilyUnavailable
)
#: Whether the default response of an exception is the answer, and no code of the application has to
#: see the exception.
IsFinal: TypeAlias = Callable[[RateLimitExceeded], bool]


class Admission:
    """Decides requests, for one extension. ``show`` makes the argument of breach callbacks."""

    def __init__(
        self,
        resolver: Resolver,
        engines: Engines,
        callbacks: Callbacks,
        settings: AdmissionSettings,
        *,
        events: Events,
        settlements: SettlementQueue,
        show: Callable[[ChargeRecord], RequestLimit],
        logger: logging.Logger,
    ) -> None:
        self._events = events
        self._settlements = settlements
        self._resolver = resolver
        self._overrides = resolver.overrides
        self._engines = engines
        self._callbacks = callbacks
        self._settings = settings
        self._show = show
        self._logger = logger

    # -- the current request -------------------------------------------------------------------

    def admit(
        self,
        state: RequestState,
        route: Route,
        definitions: Sequence[Limit] | None = None,
        *,
        lenient: bool = False,
        is_final: IsFinal | None = None,
    ) -> flask.Response | None:
        """Decide the limits of a route, or those of ``definitions``. Raises the refusal, or returns
        its response if it is repeated from memory and ``is_final``.

        ``lenient``: a limit whose functions fail is left out, as a request that was aborted before
        its view may lack what they read.
        """
        began = time.perf_counter() if self._events.listeners else None
        charged = state.charged
        try:
            outcome = self._decide(state, route, definitions, lenient=lenient, is_final=is_final)
            if isinstance(outcome, Denial) and self._callbacks.refusal_handler is not None:
                again = partial(self._decide, state, route, definitions, lenient=lenient)
                outcome = self._reconsidered(outcome, state, charged, again)
        except Exception as error:
            self._note_failure(error, state, route, began)
            is_refusal = isinstance(error, LimitUnavailable | TemporarilyUnavailable)
            if is_refusal or not self._settings.swallow_errors:
                raise
            self._logger.error(SWALLOWED, exc_info=error)
            return None
        finally:
            state.charged = state.charged or frozenset()
        if outcome is None:
            return None
        if began is not None:
            self._emit(route.endpoint, outcome, began)
        if isinstance(outcome, Repetition):
            return self._repeat(state, outcome)
        if isinstance(outcome, Denial):
            self._refuse(state, outcome)
        state.admit(*outcome)
        return None

    def _note_failure(
        self, error: Exception, state: RequestState, route: Route, began: float | None
    ) -> None:
        """Note that a request could not be decided. The application's limits are decided alone:
        otherwise a client could skip them by a request whose functions fail, such as a body that
        cannot be read. Raises their refusal."""
        if isinstance(error, LimitUnavailable):
            state.retry_ms, state.refusal = error.wait_ms, error
        elif state.charged is None and route.name != EDGE:
            self.admit_edge(state, route)
        if began is not None and isinstance(error, LimitUnavailable | TemporarilyUnavailable):
            self._emit(route.endpoint, error, began)

    def admit_edge(self, state: RequestState, route: Route) -> None:
        """Decide the application's own limits alone. Raises the refusal."""
        self.admit(state, route._replace(name=EDGE), lenient=True)

    def look(self, route: Route) -> Records:
        """What the current caller has left of each limit of a route; nothing is charged. Limits
        whose functions fail are left out."""
        limits = [
            replace(bound, estimate=None, fixed_cost=0, is_late=False)
            for bound in self._resolver.limits(route).limits
        ]
        charges = self.charges(limits, lenient=True)
        return self.decided(charges, take=False)[1]

    def decide_again(
        self, endpoint: str, charges: Sequence[BoundCharge]
    ) -> tuple[Decision, Records]:
        """Decide another attempt of an admitted request."""
        began = time.perf_counter()
        decision, records = self.decided(charges)
        if self._events.listeners:
            denied = None if decision.admitted else self._denial(decision, records)
            self._emit(endpoint, denied or (decision, records), began, again=True)
        return decision, records

    def decided(
        self, charges: Sequence[BoundCharge], *, take: bool = True
    ) -> tuple[Decision, Records]:
        """Decide charges by the storage; without it if it fails."""
        engine = self._engines.current
        try:
            return self._decided_by(engine, charges, take=take)
        except StorageFull:
            raise
        except StorageUnavailable:
            outage = self._engines.instead_of(engine)
            if outage is None:
                raise
            return self._decided_by(outage, charges, take=take)

    def _decided_by(
        self, engine: Engine, charges: Sequence[BoundCharge], *, take: bool
    ) -> tuple[Decision, Records]:
        hold = self.hold_for([bound for bound, _, _ in charges]) if take else NO_HOLD
        if hold.id:
            return self._held(engine, charges, hold)
        return decide(engine, charges, take=take)

    def _held(
        self, engine: Engine, charges: Sequence[BoundCharge], hold: Hold
    ) -> tuple[Decision, Records]:
        """Decide charges of which some are held. These are released if the engine fails, or this
        process is killed."""
        self._settlements.begin(engine, hold, [charge for _, _, charge in charges])
        admitted = False
        try:
            decided = decide(engine, charges, hold)
            admitted = decided[0].admitted
        except StorageUnavailable as error:
            if self._engines.instead_of(engine) is not None:
                self._release(error, engine, charges, hold)
            raise
        finally:
            if not admitted:
                self._settlements.end(engine, hold)
        return decided

    def _release(
        self,
        error: StorageUnavailable,
        failed: Engine,
        charges: Sequence[BoundCharge],
        hold: Hold,
    ) -> None:
        """The storage may have admitted a call although no reply came, or may do so yet. What it
        holds for it is released as soon as the storage is back."""
        if not error.may_have_charged:
            return
        changes = [
            Release(charge, hold) for _, _, charge in charges if hold.id and charge.limit.held
        ]
        if changes:
            self._settlements.send(failed, changes, lease_s=self._settings.lease_s, later=True)

    def _emit(self, endpoint: str, outcome: _Emitted, began: float, *, again: bool = False) -> None:
        """Call the listeners. ``began`` is when the decision did, of the performance counter."""
        decision: Decision = _UNDECIDED
        charges: Sequence[BoundCharge] = ()
        refusal: Refusal | ReadyAnswer | None = None
        wait_ms: int | None = 0
        if isinstance(outcome, Repetition):
            decision, charges, refusal = outcome.recalled, outcome.charges, outcome.answer
            wait_ms = outcome.answer.wait_ms(outcome.passed_us)
        elif isinstance(outcome, tuple):
            decision, charges = outcome[0], outcome[1].charges
            refusal = outcome.error if isinstance(outcome, Denial) else None
        else:
            refusal = outcome
        if refusal is not None and not isinstance(refusal, ReadyAnswer):
            wait_ms = refusal.wait_ms
        self._events.emit(
            DecisionEvent(
                decision=decision,
                endpoint=endpoint,
                reason=None if refusal is None else refusal.cause,
                wait_ms=wait_ms,
                again=again,
                recalled=isinstance(decision, Recollection),
                seconds=time.perf_counter() - began,
                charges=charges,
            )
        )

    def hold_for(self, limits: Iterable[BoundLimit]) -> Hold:
        """The hold of one admission, if a limit holds estimates."""
        for bound in limits:
            if bound.limit.held:
                return new_hold(int(self._settings.lease_s * 1_000_000))
        return NO_HOLD

    # -- deciding ------------------------------------------------------------------------------

    def _decide(
        self,
        state: RequestState,
        route: Route,
        definitions: Sequence[Limit] | None,
        *,
        lenient: bool,
        is_final: IsFinal | None = None,
        engine: Engine | None = None,
    ) -> AdmissionOutcome:
        """Decide by the storage, or without it if it fails; ``None`` if no limit applies."""
        charged = state.charged
        engine = engine or self._engines.current
        found = self._route_limits(charged, route, definitions, engine)
        limits: Sequence[BoundLimit] = found.uncharged(charged) if charged else found.limits
        if not limits and (not found.metas or route.method == "OPTIONS"):
            return None
        swallow = self._settings.swallow_errors
        charges = self.charges(limits, found.metas, lenient=lenient, swallow=swallow)
        # Records of an earlier decision are in the headers, too: then no answer is ready.
        repeated = self._repeated(engine, found, charges, is_final if charged is None else None)
        if repeated is not None:
            state.charged = charged | found.shared_ids if charged else found.shared_ids
            return repeated
        hold = self.hold_for(limits)
        try:
            if hold.id:
                decision, records = self._held(engine, charges, hold)
            else:
                decision, records = decide(engine, charges)
        except ConfigurationError:
            raise  # a limit that this storage cannot carry out is no outage
        except StorageFull as error:
            # No outage, so no fallback: it would give exhausted callers a new allowance.
            bound = next(bound for bound, _, charge in charges if charge.key == error.key)
            state.retry_ms = STORAGE_FULL_WAIT_MS
            raise TemporarilyUnavailable(bound, "storage-full", STORAGE_FULL_WAIT_MS) from error
        except StorageUnavailable:
            outage = self._engines.instead_of(engine)
            if outage is None:
                raise
            return self._decide(state, route, definitions, lenient=lenient, engine=outage)
        except Exception:
            state.charged = charged or frozenset()  # do not ask again for this request
            raise
        state.charged = charged | found.shared_ids if charged else found.shared_ids
        if decision.admitted:
            return decision, records.without_metas()
        return self._denial(decision, records)

    def _route_limits(
        self,
        charged: frozenset[int] | None,
        route: Route,
        definitions: Sequence[Limit] | None,
        engine: Engine,
    ) -> RouteLimits:
        fallback = self._settings.in_memory_fallback
        if fallback and engine is self._engines.outage:
            return self._resolver.limits_of(route, fallback) if charged is None else _NO_LIMITS
        if definitions is not None:
            found = self._resolver.limits_of(route, definitions)
        else:
            found = self._resolver.limits(route)
        if found.invalid and not all(d.exempt_when and d.exempt_when() for d in found.invalid):
            raise LimitUnavailable
        return found

    def charges(
        self,
        limits: Iterable[BoundLimit],
        metas: Sequence[BoundLimit] = (),
        *,
        lenient: bool = False,
        swallow: bool = False,
        as_bound: bool = False,
    ) -> list[BoundCharge]:
        """The charges of the current request; limits on denials come last. Each function is
        called once, whatever the number of limits that use it. If one fails, its limits are left
        out: silently if ``lenient``, with an error in the log if ``swallow``. ``as_bound``: limits
        that were charged before keep their amounts, whatever the overrides are now."""
        identities: dict[int, tuple[str, str]] = {}
        costs: dict[tuple[int, bool], int | Guess] = {}
        charges: list[BoundCharge] = []
        on_denials: list[tuple[BoundLimit, tuple[int, ...]]] = []
        for bound in limits:
            charge = self._charge(bound, identities, costs, lenient, swallow)
            if charge is not None:
                if not as_bound and (self._overrides.by_limit or bound.optional):
                    charge = self._overridden(charge, costs)
                    if charge is None:
                        continue
                if bound.metas:
                    on_denials += [(meta, (len(charges),)) for meta in bound.metas]
                charges.append(charge)
        if metas:
            triggers = _triggers(charges)
            on_denials[:0] = [(meta, triggers) for meta in metas]
        for meta, on_denial in on_denials:
            charge = self._charge(meta, identities, costs, lenient, swallow)
            if charge is not None:
                _, identity, own = charge
                own = own._replace(meta=True, on_denial=on_denial)
                charges.append((meta, identity, own))
        return charges

    def _charge(
        self,
        bound: BoundLimit,
        identities: dict[int, tuple[str, str]],
        costs: dict[tuple[int, bool], int | Guess],
        lenient: bool,
        swallow: bool,
    ) -> BoundCharge | None:
        """The charge of one limit; ``None`` if the request is exempt, or a function failed.
        ``identities`` are the answers of identity functions, with their part of a bucket's name."""
        runtime = bound.runtime
        try:
            if runtime.exempt_when is not None and runtime.exempt_when():
                return None
            known = identities.get(id(runtime.key_func))
            if known is None:
                identity: object = runtime.key_func()
                name = "" if identity is None else str(identity)  # a user's id may be 0
                known = name, bucket_key("", name)
                identities[id(runtime.key_func)] = known
            name, tag = known
            if name:
                cost = bound.fixed_cost
                if cost is None:
                    cost = bound.cost(costs)
                key = bound.bucket_prefix + tag
                at_once = 0 if bound.is_late else None
                return bound, name, _new(Charge, (bound.limit, key, cost, False, (), at_once))
        except Exception:
            if lenient:
                self._logger.debug("Left out %s: a function failed", bound.limit, exc_info=True)
            elif swallow:
                self._logger.exception(SWALLOWED)
            else:
                raise
            return None
        app = flask.current_app
        if self._resolver.log_once(app, f"no identity: {bound.bucket_prefix}"):
            # Flask-Limiter's logger has no handler, so by default nothing would show it.
            app.logger.error(SKIPPED, runtime.limit)
        return None

    def _overridden(
        self, charge: BoundCharge, costs: dict[tuple[int, bool], int | Guess]
    ) -> BoundCharge | None:
        """The charge with the amount of an override, if the identity has one."""
        bound, identity, own = charge
        overridden = self._resolver.overridden(bound, identity)
        if overridden is None or overridden is bound:
            return None if overridden is None else charge
        cost = own.cost
        if cost and (overridden.estimate is not None or overridden.fixed_cost is not None):
            cost = overridden.cost(costs)  # a guess is bounded by the capacity
        return overridden, identity, own._replace(limit=overridden.limit, cost=cost)

    # -- denials -------------------------------------------------------------------------------

    def _denial(self, decision: Decision, records: Records) -> Denial:
        """Which exception answers a denied decision."""
        own = records.without_metas()
        for record in records[len(own) :]:
            if record.verdict.reason == UNAVAILABLE:
                wait_ms = decision.retry_after_ms
                closed = TemporarilyUnavailable(record.bound, UNAVAILABLE, wait_ms)
                return Denial(decision, own, closed, [])
            if not record.verdict.allowed:
                return Denial(decision, own, _exceeded(record, decision, "limit"), [record])
        denied = [r for r in own if not r.verdict.allowed and r.verdict.enforced]
        if len(denied) > 1:
            denied.sort(key=lambda record: record.bound.rank)
        for record in denied:
            if record.verdict.retry_after_us is None and record.bound.limit.amount:
                return Denial(decision, own, RequestTooLarge(record.bound, record.verdict), [])
        cause = min((record.verdict.reason for record in denied), key=precedence)
        denied = [record for record in denied if record.verdict.reason == cause]
        longest = max(denied, key=attrgetter("wait_us"))
        breached = [longest] if self._settings.fail_on_first_breach else denied
        wait_ms = known_wait_ms(decision)
        error: Refusal
        if cause in ("closed", "overloaded", UNAVAILABLE):
            error = TemporarilyUnavailable(longest.bound, cause, wait_ms)
        elif cause == "blocked" and is_endless(longest.verdict):
            error = Blocked(longest.bound)
        else:
            error = _exceeded(longest, decision, cause)
        return Denial(decision, own, error, breached)

    def _repeated(
        self,
        engine: Engine,
        route_limits: RouteLimits,
        charges: Sequence[BoundCharge],
        is_final: IsFinal | None,
    ) -> Denial | Repetition | None:
        """The denial that is repeated from memory: the ready answer, or at first the denial, from
        which the answer is made. ``None`` if the engine has to decide."""
        if is_final is None or not isinstance(engine, DenialCache):
            return None
        if self._callbacks.refusal_handler is not None:
            return None
        recalled = engine.recall([charge for _, _, charge in charges])
        if recalled is None:
            return None
        key, answers = answer_key(route_limits, recalled), recalled.denial.answers
        answer: ReadyAnswer | None = answers.get(key)
        if answer is not None:
            return Repetition(answer, recalled, charges, recalled.elapsed_us - answer.made_us)
        denial = self._denial(recalled, Records(charges, recalled, engine, NO_HOLD))
        error = denial.error
        if (
            key is not None
            and len(answers) < MOST_ANSWERS
            and isinstance(error, RateLimitExceeded)
            and not self._has_callback(denial.breached)
            and is_final(error)
        ):
            answers[key] = ReadyAnswer(route_limits, recalled, error, denial.breached)
        return denial

    def _has_callback(self, breached: Sequence[ChargeRecord]) -> bool:
        """Whether code of the application takes part in the answer."""
        return self._settings.on_breach is not None or any(
            record.bound.runtime.on_breach or callable(record.bound.runtime.error_message)
            for record in breached
        )

    def _repeat(self, state: RequestState, repetition: Repetition) -> flask.Response:
        """Record a denial that is repeated from memory, and answer it."""
        answer, recalled, charges, passed_us = repetition
        state.repetition = repetition
        state.admit(recalled, Records(charges, recalled, self._engines.current, NO_HOLD))
        if self._logger.isEnabledFor(logging.INFO):
            identities = {charge.key: identity for _, identity, charge in charges}
            for bound, key in answer.breached:
                self._log_breach(bound, identities[key])
        state.retry_ms = wait_ms = answer.wait_ms(passed_us)
        state.refusal = True
        return answer.response(wait_ms)

    def _log_breach(self, bound: BoundLimit, identity: str) -> None:
        self._logger.info(
            "ratelimit %s (%s) exceeded at endpoint: %s",
            bound.runtime.limit,
            identity,
            bound.scope,
        )

    def _reconsidered(
        self,
        denial: Denial,
        state: RequestState,
        charged: frozenset[int] | None,
        decide_again: Callable[[], AdmissionOutcome],
    ) -> AdmissionOutcome:
        """What the application's refusal handler makes of a denial."""
        outcomes: dict[HTTPException | None, AdmissionOutcome] = {denial.error: denial}

        def again() -> HTTPException | None:
            state.charged = charged  # a denial charges nothing
            outcome = decide_again()
            error = outcome.error if isinstance(outcome, Denial) else None
            outcomes[error] = outcome
            return error

        assert self._callbacks.refusal_handler is not None
        return outcomes.get(self._callbacks.refusal_handler(denial.error, again), denial)

    def _refuse(self, state: RequestState, denial: Denial) -> NoReturn:
        """Record the denial, call the callbacks, and raise its exception."""
        decision, records, error, breached = denial
        state.admit(decision, records)
        is_ban = bool(breached) and breached[0].bound.is_meta
        if is_ban:
            state.records = list(breached)
        else:
            for record in breached:
                self._log_breach(record.bound, record.identity)
        if not isinstance(error, RequestTooLarge):
            state.retry_ms = ENDLESS_MS if error.wait_ms is None else decision.retry_after_ms
        if isinstance(error, RateLimitExceeded):
            error.response = self._call_back(breached, is_ban=is_ban)
        state.refusal = error
        raise error

    def _call_back(self, breached: list[ChargeRecord], *, is_ban: bool) -> flask.Response | None:
        """Call the callbacks on a breach; returns the last response that one of them made."""
        settings = self._settings
        answer: flask.Response | None = None
        for record in breached:
            own = record.bound.runtime.on_breach
            callbacks = [own or settings.on_meta_breach] if is_ban else [settings.on_breach, own]
            for callback in dict.fromkeys(filter(None, callbacks)):
                try:
                    response = callback(self._show(record))
                except Exception as error:
                    if not settings.swallow_errors:
                        raise
                    kind = "on_meta_breach" if is_ban else "on_breach"
                    self._logger.exception(  # Flask-Limiter's words
                        "%s callback failed with error %s",
                        kind,
                        error,  # noqa: TRY401
                    )
                    continue
                if isinstance(response, flask.Response):
                    answer = response
        return answer


def decide(
    engine: Engine, charges: Sequence[BoundCharge], hold: Hold = NO_HOLD, *, take: bool = True
) -> tuple[Decision, Records]:
    """Decide charges, or only look at them. Charges of one bucket share a verdict. A denial that
    is repeated from memory has a record of each charge whose verdict is known."""
    own = [charge for _, _, charge in charges]
    decision = engine.admit(own, take=take, hold=hold)
    return decision, Records(charges, decision, engine, hold)


def _triggers(charges: list[BoundCharge]) -> tuple[int, ...]:
    """The positions of the charges whose denial counts as the caller's; empty for all. A guard's
    denial does not. If there are only guards, it is a position that does not exist."""
    visible = tuple([i for i, (bound, _, _) in enumerate(charges) if bound.limit.visible])
    return () if len(visible) == len(charges) else visible or (len(charges),)


def _exceeded(record: ChargeRecord, decision: Decision, cause: Cause) -> RateLimitExceeded:
    bound = record.bound
    return RateLimitExceeded(bound.runtime, bound_limit=bound, decision=decision, cause=cause)
