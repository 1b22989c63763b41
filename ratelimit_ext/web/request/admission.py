"""The admission of a request: bound limits become charges, one call of the engine decides them, and
a denial becomes the exception that answers it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Final, TypeAlias

import flask
from flask_limiter import Limit

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold, new_hold, price_of
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import ConfigurationError, StorageFull, StorageUnavailable
from ratelimit_ext.core.events import DecisionEvent, Events
from ratelimit_ext.engine.denial_cache import DenialCache
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.settlements.queue import SettlementQueue
from ratelimit_ext.web.bound_limit import (
    BoundCharge,
    BoundCharges,
    BoundLimit,
    ChargeRecord,
    Records,
)
from ratelimit_ext.web.declarations.callbacks import AdmissionSettings, Callbacks
from ratelimit_ext.web.declarations.manager import EDGE, Route
from ratelimit_ext.web.errors import (
    STORAGE_FULL_WAIT_MS,
    LimitUnavailable,
    Refusal,
    TemporarilyUnavailable,
)
from ratelimit_ext.web.request.cached_denial import CachedAnswer, ReadyAnswer
from ratelimit_ext.web.request.charges import Charges
from ratelimit_ext.web.request.refusals import AdmissionOutcome, Denial, IsFinal, Refusals
from ratelimit_ext.web.request.request_state import RequestLimit, RequestState
from ratelimit_ext.web.request.resolver import SWALLOWED, Resolver, RouteLimits
from ratelimit_ext.web.request.waiting_room import Places, WaitingRoom
from ratelimit_ext.web.storage import Engines

_NO_LIMITS: Final = RouteLimits()
#: No limit was asked.
_UNDECIDED: Final = Decision(admitted=False, now_us=0, verdicts=())
_is_held: Final = attrgetter("limit.held")  # `map` calls it without a frame of Python
_Emitted: TypeAlias = Records | Denial | CachedAnswer | LimitUnavailable | TemporarilyUnavailable


@dataclass(eq=False)
class Admission:
    """Decides requests, for one extension. ``show`` makes the argument of breach callbacks."""

    resolver: Resolver
    engines: Engines
    callbacks: Callbacks
    settings: AdmissionSettings
    events: Events
    settlements: SettlementQueue
    show: Callable[[ChargeRecord], RequestLimit]
    logger: logging.Logger

    def __post_init__(self) -> None:
        settings = self.settings
        self.waiting_room = WaitingRoom(
            Places(settings.most_waiting),
            self.engines.shared_client,
            settlements=self.settlements,
            events=self.events,
            lease_s=settings.lease_s,
        )
        self.charges = Charges(self.resolver, self.logger)
        self._refusals = Refusals(self.callbacks, settings, show=self.show, logger=self.logger)

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
        began = time.perf_counter() if self.events.listeners else None
        charged = state.charged
        if charged is not None:
            is_final = None  # records of an earlier decision are in the headers, too
        try:
            outcome = self._decide(state, route, definitions, lenient=lenient, is_final=is_final)
            if isinstance(outcome, Denial) and self.callbacks.refusal_handler is not None:
                again = partial(self._decide, state, route, definitions, lenient=lenient)
                outcome = self._refusals.reconsidered(outcome, state, charged, again)
        except Exception as error:
            self._note_failure(error, state, route, began)
            is_refusal = isinstance(error, LimitUnavailable | TemporarilyUnavailable)
            if is_refusal or not self.settings.swallow_errors:
                raise
            self.logger.error(SWALLOWED, exc_info=error)
            return None
        finally:
            state.charged = state.charged or frozenset()
        if outcome is None:
            return None
        if began is not None:
            self._emit(route.endpoint, outcome, began + state.waited_us / 1_000_000)
        if isinstance(outcome, CachedAnswer):
            return self._refusals.repeat(state, outcome)
        if isinstance(outcome, Denial):
            self._refusals.refuse(state, outcome)
        state.admit(outcome)
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
        """Return what the current caller has left of each limit of a route; nothing is charged.
        Limits whose functions fail are left out."""
        limits = [
            replace(bound, estimate=None, fixed_cost=0, is_late=False)
            for bound in self.resolver.limits(route).limits
        ]
        return self.decided(self.charges.of(limits, lenient=True), take=False)

    def decide_again(self, endpoint: str, charges: Sequence[BoundCharge]) -> Records | None:
        """Decide another attempt of an admitted request; ``None``: it is admitted undecided."""
        try:
            outcome = self._outcome(endpoint, charges, again=True)
        except Exception:
            self.logger.exception("Another attempt could not be decided, and is admitted")
            return None
        return outcome.records if isinstance(outcome, Denial) else outcome

    def admit_outside(self, charges: Sequence[BoundCharge]) -> Records:
        """Decide what is charged without a request. Raises the refusal."""
        outcome = self._outcome("", charges)
        if isinstance(outcome, Denial):
            raise outcome.error
        return outcome

    def _outcome(
        self, endpoint: str, charges: Sequence[BoundCharge], *, again: bool = False
    ) -> Records | Denial:
        began, records = time.perf_counter(), self.decided(charges)
        outcome = records if records.decision.admitted else self._refusals.denial(records)
        if self.events.listeners:
            self._emit(endpoint, outcome, began, again=again)
        return outcome

    def decided(self, charges: Sequence[BoundCharge], *, take: bool = True) -> Records:
        """Decide charges by the storage; without it if it fails."""
        engine, bound_charges = self.engines.current, BoundCharges(charges)
        try:
            return self._decided_by(engine, bound_charges, take=take)
        except StorageFull:
            raise
        except StorageUnavailable:
            outage = self.engines.instead_of(engine)
            if outage is None:
                raise
            return self._decided_by(outage, bound_charges, take=take)

    def _decided_by(self, engine: Engine, charges: BoundCharges, *, take: bool) -> Records:
        if take and any(map(_is_held, charges.prepared)):
            return self._held(engine, charges, self._new_hold())
        return decide(engine, charges, take=take)

    def _held(
        self, engine: Engine, charges: BoundCharges, hold: Hold, *, is_new: bool = False
    ) -> Records:
        """Decide charges of which some are held. These are released if the engine fails, or this
        process is killed."""
        self.settlements.begin(engine, hold, charges.prepared)
        admitted = False
        try:
            records = decide(engine, charges, hold, is_new=is_new)
            admitted = records.decision.admitted
        except StorageUnavailable as error:
            if self.engines.instead_of(engine) is not None:
                self._release(error, engine, charges.prepared, hold)
            raise
        finally:
            if not admitted:
                self.settlements.end(engine, hold)
        return records

    def _release(
        self, error: StorageUnavailable, failed: Engine, charges: Sequence[Charge], hold: Hold
    ) -> None:
        """The storage may have admitted a call although no reply came, or may do so yet. What it
        holds for it is released as soon as the storage is back."""
        if not error.may_have_charged:
            return
        held = [charge for charge in charges if charge.limit.held]
        changes = [Change.release(charge, hold, undone=True) for charge in held]
        if changes:
            self.settlements.send(failed, changes, lease_s=self.settings.lease_s, later=True)

    def _emit(self, endpoint: str, outcome: _Emitted, began: float, *, again: bool = False) -> None:
        """Call the listeners. ``began`` is when the decision did, of the performance counter."""
        records: Records | None = outcome if isinstance(outcome, Records) else None
        refusal: Refusal | ReadyAnswer | None = None
        wait_ms: int | None = 0
        if isinstance(outcome, CachedAnswer):
            records, refusal = outcome.records, outcome.answer
            wait_ms = outcome.answer.wait_ms(outcome.passed_us)
        elif not isinstance(outcome, Records):
            records, refusal = outcome[:2] if isinstance(outcome, Denial) else (None, outcome)
            wait_ms = refusal.wait_ms
        decision = _UNDECIDED if records is None else records.decision
        self.events.emit(
            DecisionEvent(
                decision=decision,
                endpoint=endpoint,
                reason=None if refusal is None else refusal.cause,
                wait_ms=wait_ms,
                again=again,
                cached=decision.cached,
                seconds=max(0.0, time.perf_counter() - began),
                charges=() if records is None else records.charges,
            )
        )

    def _new_hold(self) -> Hold:
        return new_hold(int(self.settings.lease_s * 1_000_000), keeps=True)

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
        engine = engine or self.engines.current
        on_route = self._route_limits(charged, route, definitions, engine)
        limits: Sequence[BoundLimit] = on_route.uncharged(charged) if charged else on_route.limits
        if not limits and (not on_route.metas or route.method == "OPTIONS"):
            return None
        done = charged | on_route.shared_ids if charged else on_route.shared_ids
        swallow = self.settings.swallow_errors
        charges = (
            self.charges.planned(on_route)
            if on_route.is_planned and not (charged or lenient or swallow)
            else self.charges.of(limits, on_route.metas, lenient=lenient, swallow=swallow)
        )
        if isinstance(engine, DenialCache) and (cached := engine.cached(charges.prepared)):
            state.charged = done
            return self._refusals.repeated(cached, engine, on_route, charges, is_final)
        try:
            if any(map(_is_held, charges.prepared)):
                records = self._held(engine, charges, self._new_hold(), is_new=True)
            else:
                records = decide(engine, charges, is_new=True)
            if on_route.waits and not (lenient or records.decision.admitted):
                records = self._turn(state, engine, charges, records.decision)
        except ConfigurationError:
            raise  # a limit that this storage cannot carry out is no outage
        except StorageFull as error:
            # No outage, so no fallback: it would give exhausted callers a new allowance.
            state.retry_ms = STORAGE_FULL_WAIT_MS
            full = next(bound for bound, _, charge in charges if charge.key == error.key)
            raise TemporarilyUnavailable(full, "storage-full", STORAGE_FULL_WAIT_MS) from error
        except StorageUnavailable:
            outage = self.engines.instead_of(engine)
            if outage is None:
                raise
            return self._decide(state, route, definitions, lenient=lenient, engine=outage)
        except Exception:
            state.charged = charged or frozenset()  # do not ask again for this request
            raise
        state.charged = done
        admitted = records.decision.admitted
        return records.without_metas() if admitted else self._refusals.denial(records)

    def _turn(
        self, state: RequestState, engine: Engine, charges: BoundCharges, denied: Decision
    ) -> Records:
        """Return what is decided when it is the turn of a denied request."""
        hold = self._new_hold()._replace(price=price_of(charges.prepared))
        self.settlements.begin(engine, hold, charges.prepared)
        admitted = False
        try:
            decision, engine, hold = self.waiting_room.turn(
                state, self._look_in_line, charges.prepared, (denied, engine, hold)
            )
            admitted = decision.admitted
        finally:
            if not admitted:
                self.settlements.end(engine, hold)
        return Records(charges, decision, engine, hold._replace(waited_us=None))

    def _look_in_line(
        self, charges: Sequence[Charge], hold: Hold, engine: Engine | None = None
    ) -> tuple[Decision, Engine, Hold]:
        """Decide a request that waits. If the storage fails, what it may hold is released, and the
        request goes on under a new hold."""
        engine = engine or self.engines.current
        try:
            return engine.admit(charges, hold=hold), engine, hold
        except StorageFull:
            raise
        except StorageUnavailable as error:
            self._release(error, engine, charges, hold._replace(waited_us=None))
            outage = self.engines.outage
            if outage is None:
                raise
            if any(charge.limit.held for charge in charges):
                self.settlements.end(engine, hold)
                if error.may_have_charged:  # else its ticket is there when the storage is back
                    hold = hold._replace(id=self._new_hold().id)
                self.settlements.begin(outage, hold, charges)
            return self._look_in_line(charges, hold, None if engine is outage else outage)

    def _route_limits(
        self,
        charged: frozenset[int] | None,
        route: Route,
        definitions: Sequence[Limit] | None,
        engine: Engine,
    ) -> RouteLimits:
        fallback = self.settings.in_memory_fallback
        if fallback and engine is self.engines.outage:
            return self.resolver.limits_of(route, fallback) if charged is None else _NO_LIMITS
        limits = (
            self.resolver.limits(route)
            if definitions is None
            else self.resolver.limits_of(route, definitions)
        )
        if limits.invalid and not all(d.exempt_when and d.exempt_when() for d in limits.invalid):
            raise LimitUnavailable
        return limits


def decide(
    engine: Engine,
    charges: BoundCharges,
    hold: Hold = NO_HOLD,
    *,
    take: bool = True,
    is_new: bool = False,
) -> Records:
    """Decide charges, or only look at them; ``is_new``: none has a denial in memory. Charges of
    one bucket share a verdict. A denial that is repeated from memory has a record of each charge
    whose verdict is known."""
    if is_new and isinstance(engine, DenialCache):
        decision = engine.ask(charges.prepared, hold)
    else:
        decision = engine.admit(charges.prepared, take=take, hold=hold)
    return Records(charges, decision, engine, hold)
