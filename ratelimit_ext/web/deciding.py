"""Deciding: from a request to its decision, before the view, at a decorated callable, or late.

:mod:`resolution` finds the claims of a request, :mod:`admission` has them decided by an engine of
:mod:`storing`, :mod:`limited_request` remembers the answers, :mod:`concluding` draws the
consequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import flask
from flask.globals import request_ctx
from flask_limiter import ExemptionScope
from flask_limiter.util import get_qualified_name

from ratelimit_ext.core.charge import NO_HOLD, Hold, new_hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import ConfigurationError, StorageFull
from ratelimit_ext.web.admission import SWALLOWED, Charged, Outcome, admitted, charged
from ratelimit_ext.web.bound_limit import Claim
from ratelimit_ext.web.cause import STORAGE_FULL_WAIT_MS, lacks_room
from ratelimit_ext.web.code_checks import KnownNames
from ratelimit_ext.web.concluding import ConcludingLimiter
from ratelimit_ext.web.definitions import MARK, RouteLimit, wrap
from ratelimit_ext.web.entry import Entry
from ratelimit_ext.web.errors import LimitUnavailable, TemporarilyUnavailable
from ratelimit_ext.web.lease import DEFAULT_LEASE_S
from ratelimit_ext.web.manager import Manager
from ratelimit_ext.web.request_state import LimitedRequest, RequestLimit
from ratelimit_ext.web.reservation import Reservation
from ratelimit_ext.web.resolver import EDGE, Place, Resolved, Resolver
from ratelimit_ext.web.settlement_queue import settlements
from ratelimit_ext.web.storage import StoringLimiter


class Configured(Protocol):
    """A policy of an application: see :class:`~ratelimit_ext.web.policy_limits.PolicyLimits`."""

    def check_targets(self, app: flask.Flask) -> None: ...
    def complete(self, app: flask.Flask) -> None: ...


class DecidingLimiter(ConcludingLimiter, StoringLimiter):
    """Flask-Limiter's extension, deciding a request's limits together.

    ``_check_request_limit`` is where Flask-Limiter's hooks and wrappers enter.
    """

    limit_manager: Manager

    def __init__(self, key_func: Callable[[], str], **options: Any) -> None:
        self._lease_s = DEFAULT_LEASE_S
        #: Changes the present request where it lacks nothing but room; see `second_choice`.
        self.chooses_again: Callable[[], bool] | None = None
        #: The policies, by application.
        self._configurations: dict[flask.Flask, Configured] = {}
        self._deferred_views: dict[tuple[str, Any], bool] = {}
        self._settlements = settlements
        super().__init__(key_func, **options)
        stock = self.limit_manager
        self.limit_manager = Manager(
            application_limits=stock._application_limits,
            default_limits=stock._default_limits,
            decorated_limits=stock._decorated_limits,
            blueprint_limits=stock._blueprint_limits,
            route_exemptions=stock._route_exemptions,
            blueprint_exemptions=stock._blueprint_exemptions,
        )
        self._resolver = Resolver(self.limit_manager, self.logger)
        self._known_names = KnownNames(self.limit_manager.definitions)

    def check_policy(self, app: flask.Flask) -> None:
        """Raise ``ConfigurationError`` where the policy names a blueprint or endpoint that the
        application does not have. Call it when all are registered. The first request only logs
        them, and all other limits apply."""
        if (configured := self._configurations.get(app)) is not None:
            configured.check_targets(app)

    def _complete_policy(self, app: flask.Flask) -> None:
        """File the limits whose names are known only when all blueprints are registered."""
        if (configured := self._configurations.get(app)) is not None:
            configured.complete(app)

    # -- the request's way ------------------------------------------------------------

    @property
    def context(self) -> LimitedRequest:  # type: ignore[override]
        """The state of the present request."""
        context = cast(Any, request_ctx)._get_current_object()
        try:
            return cast(LimitedRequest, context._ratelimit_ext[self])
        except AttributeError:
            context._ratelimit_ext = {}
        except KeyError:
            pass
        state = context._ratelimit_ext[self] = LimitedRequest(self, self._reserves)
        return state

    def present_plan(self) -> str:
        """The plan of the present request; the loader is asked once."""
        state = self.context
        if state.plan is None:
            assert self.plan_of_request is not None
            state.plan = self.plan_of_request()
        return state.plan

    def admit_edge(self) -> None:
        """Decide the application's own limits now, for a request that is costly to read: its others
        are decided before the view, without these. One round trip more than deciding all there."""
        state = self.context
        endpoint = self.identify_request()
        if not self._exempt(state, endpoint):
            self._decide_edge(state, self._place(endpoint, None))

    @property
    def current_limit(self) -> RequestLimit | None:
        """The limit nearest to exhaustion; in a denied request, the one with the longest wait."""
        return self.context.view_rate_limit

    @property
    def current_limits(self) -> list[RequestLimit]:  # type: ignore[override]
        """All enforced limits that were decided in this request, the shortest period first."""
        return self.context.view_rate_limits

    def _check_request_limit(
        self, callable_name: str | None = None, in_middleware: bool = True
    ) -> None:
        """Decide, before the view or in a decorated callable's wrapper."""
        state = self.context
        endpoint = self.identify_request()
        view = flask.current_app.view_functions.get(endpoint) if endpoint else None
        if in_middleware:
            # What is decided later asks the filters later, too: they may look at who is logged in.
            if view is None and flask.request.endpoint is None:
                return
            if view is not None and self._is_deferred(endpoint, view, flask.request.blueprint):
                return
        if self._exempt(state, endpoint):
            return
        inside = None if in_middleware else callable_name
        if inside and view is not None and get_qualified_name(view) != inside:
            self.limit_manager.add_endpoint_hint(endpoint, inside)
        place = self._place(endpoint, None if in_middleware else callable_name)
        self._decide(state, place, lambda: self._resolver.resolve(place))

    def _check_block_limit(self, definition: RouteLimit, location: str) -> None:
        """Decide the one limit that guards a block inside a view; ``location`` is the block's."""
        state = self.context
        endpoint = self.identify_request()
        if self._exempt(state, endpoint):
            return
        if location not in self.limit_manager._decorated_limits:
            self.limit_manager.add_decorated_limit(location, definition)
        self.limit_manager.add_endpoint_hint(endpoint, location)
        place = self._place(endpoint, location)
        self._decide(state, place, lambda: self._resolver.of_definitions(place, [definition]))

    def _place(self, endpoint: str, name: str | None) -> Place:
        context = cast(Any, request_ctx)._get_current_object()
        request = context.request
        method = "GET" if request.method == "HEAD" else request.method
        return Place(context.app, endpoint, request.blueprint, method, name)

    def _exempt(self, state: LimitedRequest, endpoint: str) -> bool:
        """Whether no limit concerns the request. The filters are asked once."""
        if state.exempt is None:
            state.exempt = (
                not (self.enabled and self.initialized)
                or endpoint.rpartition(".")[2] == "static"
                or any(exempts() for exempts in self._request_filters)
            )
        return state.exempt

    def _is_deferred(self, endpoint: str, view: Any, blueprint: str | None) -> bool:
        """Whether the view will come back to us: one of our wrappers stands around it.

        A view that only a policy limits gets its wrapper here, at its first request.
        """
        known = self._deferred_views.get((endpoint, view))
        if known is None:
            app = flask.current_app
            self._complete_policy(cast(Any, app)._get_current_object())
            inner = view
            while inner is not None and getattr(inner, MARK, None) != self:
                inner = getattr(inner, "__wrapped__", None)
            known = inner is not None
            if not known and self.limit_manager.is_configured(endpoint, blueprint):
                view = app.view_functions[endpoint] = wrap(view, self)
                known = True
            self._deferred_views[endpoint, view] = known
        return known

    # -- deciding ----------------------------------------------------------------------

    def _decide(
        self,
        state: LimitedRequest,
        place: Place,
        resolve: Callable[[], Resolved],
        *,
        lenient: bool = False,
    ) -> None:
        """Have the claims decided; raise where they deny."""
        if self._storage_dead:
            self._look_for_recovery()
        already = state.charged
        try:
            outcome = self._outcome(state, place, resolve, lenient=lenient)
            if outcome is not None and self._has_second_choice(outcome):
                state.charged = already  # nothing has been, but the shadows
                state.taken += outcome.shadows
                second = self._outcome(state, place, resolve, lenient=lenient, again=True)
                if second is None or _is_better(second.decision, outcome.decision):
                    outcome = second
        except LimitUnavailable as refusal:
            state.retry_ms, state.refusal = refusal.RETRY_MS, refusal
            raise
        except Exception as error:
            if state.charged is None and place.name != EDGE:
                self._decide_edge(state, place)
            if not self._swallow_errors or isinstance(error, TemporarilyUnavailable):
                raise
            self.logger.exception(SWALLOWED)
            return
        finally:
            state.charged = state.charged or set()
        if outcome is not None:
            self._conclude(state, outcome)

    def _decide_edge(self, state: LimitedRequest, place: Place) -> None:
        """Charge the edge limits alone, where a function that another limit asks has failed before
        the storage was asked.

        Otherwise whoever makes it fail, with a body that cannot be read for instance, could call
        as often as he likes. Where they deny, their refusal takes the place of the failure.
        """
        edge = place._replace(name=EDGE)
        self._decide(state, edge, lambda: self._resolver.resolve(edge), lenient=True)

    def _has_second_choice(self, outcome: Outcome) -> bool:
        """Whether the application has changed a request that lacks nothing but room."""
        choose = self.chooses_again
        return choose is not None and lacks_room(outcome.decision) and choose()

    def _outcome(
        self,
        state: LimitedRequest,
        place: Place,
        resolve: Callable[[], Resolved],
        *,
        lenient: bool,
        again: bool = False,
    ) -> Outcome | None:
        """What the storage decides; where it fails and there is a fallback, what that decides.

        ``again``: the same request was decided and denied before. Its shadows have counted it, but
        for those that hold an estimate: they are taken if it is admitted.
        """
        already = state.charged or set()
        resolved = self._fallback(state, place) or resolve()
        invalid = resolved.invalid
        if invalid and not all(each.exempt_when and each.exempt_when() for each in invalid):
            raise LimitUnavailable
        claims = list(resolved.own)
        for definition, prepared in resolved.shared:
            if id(definition) not in already:
                claims += prepared
        if again:
            claims = [c for c in claims if c.limit.mode == "enforce" or c.limit.held]
        metas = self._metas(place, resolved)
        if not claims and (not metas or place.method == "OPTIONS"):
            return None
        swallow = bool(self._swallow_errors)
        made = charged(claims, metas, self.logger, lenient=lenient, swallow=swallow)
        engine = self.engine
        try:
            outcome = admitted(engine, made, self._hold(made.claims))
        except ConfigurationError:
            raise  # a limit that this storage cannot carry out is no outage
        except StorageFull as error:
            raise _full(state, made, error) from error
        except Exception:
            if not self._falls_back(engine):
                state.charged = already  # asked, if in vain: not once more for this request
                raise
            return self._outcome(state, place, resolve, lenient=lenient, again=again)
        state.charged = already | {id(definition) for definition, _ in resolved.shared}
        return outcome

    def _hold(self, claims: list[Claim]) -> Hold:
        """Under which id the estimates of one admission are held."""
        if any(claim.limit.held for claim in claims):
            return new_hold(int(self._lease_s * 1_000_000))
        return NO_HOLD

    def _reserves(self, entries: list[Entry]) -> Reservation:
        """The reservation of what a request takes."""
        return Reservation(
            entries, self._known_names, settlements=self._settlements, lease_s=self._lease_s
        )

    def _metas(self, place: Place, resolved: Resolved) -> tuple[Claim, ...]:
        if resolved.metas and ExemptionScope.META & self.limit_manager.exemption_scope(
            place.app, place.endpoint, place.blueprint
        ):
            return ()
        return resolved.metas

    def _fallback(self, state: LimitedRequest, place: Place) -> Resolved | None:
        """While the storage is away, the fallback's own limits replace all others, once."""
        if not (self._storage_dead and self._in_memory_fallback):
            return None
        if state.charged is not None:
            return Resolved((), (), ())
        return self._resolver.of_definitions(place, self._in_memory_fallback)


def _full(state: LimitedRequest, made: Charged, error: StorageFull) -> TemporarilyUnavailable:
    """The refusal of a caller whom a full storage does not know. It is no outage: the memory of one
    worker would give an exhausted caller a new allowance."""
    place = next(i for i, charge in enumerate(made.charges) if charge.key == error.key)
    state.retry_ms = STORAGE_FULL_WAIT_MS
    return TemporarilyUnavailable(made.claims[place], "storage-full", STORAGE_FULL_WAIT_MS)


def _is_better(second: Decision, first: Decision) -> bool:
    """Whether the decision on a second choice counts. Who is refused is told of what he has asked
    for; where both lack nothing but room, of the one that has some first."""
    if second.admitted or not lacks_room(second):
        return second.admitted
    wait_ms, first_ms = second.retry_after_ms, first.retry_after_ms
    return wait_ms is not None and (first_ms is None or wait_ms < first_ms)
