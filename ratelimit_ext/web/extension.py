"""The extension: a ``flask_limiter.Limiter`` that decides a request's limits together.

This class is only glue: :mod:`resolution` finds the claims of a request, :mod:`admission` has them
decided, :mod:`limited_request` remembers the answers, :mod:`headers` and :mod:`refusal` tell them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from secrets import randbits
from typing import Any, Final, cast

import flask
import flask_limiter
from flask.globals import request_ctx
from flask_limiter import ExemptionScope, HeaderNames
from flask_limiter.constants import MAX_BACKEND_CHECKS
from flask_limiter.util import get_qualified_name
from limits.strategies import RateLimiter
from werkzeug.exceptions import HTTPException

from ratelimit_ext.core.charge import NO_HOLD, Hold
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.protocol import Correction, Engine
from ratelimit_ext.web import headers
from ratelimit_ext.web.admission import Outcome, admitted, charged
from ratelimit_ext.web.bucket_limiter import ScopedLimiter
from ratelimit_ext.web.claims import Claim, Naming
from ratelimit_ext.web.configuration import Configuration, configured_policy
from ratelimit_ext.web.definitions import MARK, RouteLimit, limited
from ratelimit_ext.web.identities import BUILT_IN, Identity
from ratelimit_ext.web.item import rank
from ratelimit_ext.web.limited_request import Entry, LimitedRequest, RequestLimit
from ratelimit_ext.web.manager import Manager
from ratelimit_ext.web.refusal import RateLimitExceeded, RequestTooLarge
from ratelimit_ext.web.reservation import Reservation
from ratelimit_ext.web.resolution import EDGE, Place, Resolved, Resolver
from ratelimit_ext.web.storages import engine_for, storage_prefix

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

Estimate = Callable[[], Any]

#: How long a call may go without a sign of life before what it holds goes back, in seconds.
LEASE = "RATELIMIT_LEASE_SECONDS"
DEFAULT_LEASE_S = 120.0


class Limiter(flask_limiter.Limiter):
    """Flask-Limiter's extension with a strategy per limit and one decision a request.

    Takes everything that ``flask_limiter.Limiter`` takes. ``strategy`` may also be
    ``"token-bucket"`` or ``"sliding-window"``, and every limit may name its own.
    """

    def __init__(self, key_func: Callable[[], str], **options: Any) -> None:
        self._engine: Engine | None = None
        self._fallback_engine: Engine | None = None
        self._adapters: dict[int, ScopedLimiter] = {}
        #: Who pays, by the names that a policy can use.
        self.identities: dict[str, Identity] = dict(BUILT_IN)
        #: Answers with the name of the present caller's plan; ``None``: nobody said how.
        self.plan_of_request: Callable[[], str] | None = None
        #: What a call is estimated to cost, by unit.
        self.estimators: dict[str, Estimate] = {}
        self._lease_s = DEFAULT_LEASE_S
        self._configurations: dict[flask.Flask, Configuration] = {}
        self._deferred_views: dict[tuple[str, Any], bool] = {}
        self._recovery_checks = 0
        self._last_recovery_check = time.time()
        app = options.pop("app", None)
        super().__init__(key_func, **options)
        stock = self.limit_manager
        self.limit_manager: Manager = Manager(
            application_limits=stock._application_limits,
            default_limits=stock._default_limits,
            decorated_limits=stock._decorated_limits,
            blueprint_limits=stock._blueprint_limits,
            route_exemptions=stock._route_exemptions,
            blueprint_exemptions=stock._blueprint_exemptions,
        )
        self._resolver = Resolver(self.limit_manager, self.logger)
        self.app = app
        if app is not None:
            self.init_app(app)

    # -- set-up ------------------------------------------------------------------------------

    def init_app(self, app: flask.Flask) -> None:
        """Attach to an application. Reads the ``RATELIMIT_*`` keys of its configuration."""
        again = self in app.extensions.get("limiter", ())
        super().init_app(app)
        if not self.enabled:
            return
        if not again:
            self._take_over_response_hook(app)
        self._engine = engine_for(self.storage)
        if self._in_memory_fallback_enabled:
            self._fallback_engine = engine_for(self._fallback_storage)
        self._adapters.clear()
        self._deferred_views.clear()
        policy = configured_policy(app.config, self._strategy)
        if policy is not None and app not in self._configurations:
            configuration = Configuration(policy, self)
            configuration.apply()
            self._configurations[app] = configuration
        self._lease_s = float(app.config.get(LEASE, DEFAULT_LEASE_S))
        self._resolver.configure(self._naming, self._meta_limits, self.estimators)

    def check_policy(self, app: flask.Flask) -> None:
        """Raise ``ConfigurationError`` where the policy names a blueprint or endpoint that the
        application does not have. Call it when all are registered; the first request does too."""
        configuration = self._configurations.get(app)
        if configuration is not None:
            configuration.settle_names(app)

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

    @property
    def _naming(self) -> Naming:
        assert self._strategy
        return Naming(storage_prefix(self.storage), self._key_prefix, self._strategy)

    def identity(self, name: str) -> Callable[[Identity], Identity]:
        """Register who pays under a name that a policy can use; replaces a built-in one.

        ::

            @limiter.identity("user")
            def user() -> str:
                return str(g.user.id)
        """

        def register(function: Identity) -> Identity:
            self.identities[name] = function
            return function

        return register

    def plan_loader(self, function: Callable[[], str]) -> Callable[[], str]:
        """Register the function that answers with the name of the present caller's plan."""
        self.plan_of_request = function
        return function

    def present_plan(self) -> str:
        """The plan of the present request; the loader is asked once."""
        state = self.context
        if state.plan is None:
            assert self.plan_of_request is not None
            state.plan = self.plan_of_request()
        return state.plan

    def estimator(self, unit: str) -> Callable[[Estimate], Estimate]:
        """Register what a call is estimated to cost, for limits in the unit that state no cost.

        ``tokens``, ``input_tokens`` and ``output_tokens`` are whole numbers, ``usd`` is in dollars.
        """

        def register(function: Estimate) -> Estimate:
            self.estimators[unit] = function
            return function

        return register

    # -- settling ----------------------------------------------------------------------------

    @property
    def reservation(self) -> Reservation:
        """What the present request has taken, and what becomes of it.

        Take it before a stream begins: it goes on working when the request's context is gone.
        """
        state = self.context
        if state.reservation is None:
            engine = self.engine if self.initialized and self.enabled else MemoryEngine()
            state.reservation = Reservation(engine, NO_HOLD, state.taken)
        return state.reservation

    def settle(self, **actual: Any) -> None:
        """Say what the present request really cost: ``tokens=``, ``input_tokens=``,
        ``output_tokens=``, ``usd=``. Every charge in such a unit is corrected when the response is
        closed; without such charges nothing is sent."""
        self.reservation.settle(**actual)

    def cancel(self) -> None:
        """Say that the present request used nothing, as its provider failed: everything is given
        back when the response is closed, but what the application's own limits counted."""
        self.reservation.cancel()

    def peek(self, endpoint: str, *, method: str = "GET") -> list[RequestLimit]:
        """What the present caller has left of each limit of an endpoint, the shortest period first.

        One look, in which nothing is charged. A limit whose identity the present request cannot
        tell, as the model of a call that is not made, is left out.
        """
        app = flask.current_app
        view, blueprint = app.view_functions[endpoint], endpoint.rpartition(".")[0] or None
        if not self._is_deferred(endpoint, view, blueprint):
            name = None
        else:
            name = get_qualified_name(view)
        place = Place(cast(Any, app)._get_current_object(), endpoint, blueprint, method, name)
        resolved = self._resolver.resolve(place)
        claims = [*resolved.own, *(c for _, claims in resolved.shared for c in claims)]
        looks = [replace(claim, estimate=lambda: 0) for claim in claims]
        made = charged(looks, (), self.logger, lenient=True)
        outcome = admitted(self.engine, made, NO_HOLD, take=False)
        shown = [entry for entry in outcome.entries if entry.verdict.enforced]
        shown.sort(key=lambda entry: rank(entry.claim.runtime.limit))
        return [RequestLimit.of(entry, self) for entry in shown]

    # -- definitions -------------------------------------------------------------------------

    def limit(self, limit_value: str | Callable[[], str], **options: Any) -> RouteLimit:
        """A limit for a view, a blueprint, or (as a context manager) a block of code.

        Takes what ``flask_limiter.Limiter.limit`` takes, and ``strategy``, ``burst``, ``unit``,
        ``name``, ``mode``, ``anchor`` and ``timezone``.
        """
        return self._route_limit(limit_value, shared=False, **options)

    def shared_limit(
        self,
        limit_value: str | Callable[[], str],
        scope: str | Callable[[str], str],
        **options: Any,
    ) -> RouteLimit:
        """A limit that several views share; see :meth:`limit`."""
        return self._route_limit(limit_value, shared=True, scope=scope, **options)

    def _route_limit(self, limit_value: Any, **options: Any) -> RouteLimit:
        key_function = options.pop("key_func", None) or self._key_func
        options.setdefault("override_defaults", True)
        options.setdefault("cost", 1)
        definition = RouteLimit(
            limit_provider=limit_value, limiter=self, key_function=key_function, **options
        )
        definition.check(self._strategy)
        return definition

    # -- storage -----------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """What decides now: the storage's engine, or the fallback's while the storage is away."""
        if self._storage_dead and self._fallback_engine is not None:
            return self._fallback_engine
        assert self._engine is not None, "the extension has not been initialised with an app"
        return self._engine

    @property
    def limiter(self) -> RateLimiter:
        """Flask-Limiter's strategy object, over our buckets."""
        engine = self.engine
        adapter = self._adapters.get(id(engine))
        if adapter is None:
            storage = self.storage if engine is self._engine else self._fallback_storage
            adapter = self._adapters[id(engine)] = ScopedLimiter(storage, engine, self._naming)
        return adapter

    def reset(self) -> None:
        """Forget everything that was charged."""
        try:
            self.engine.reset(storage_prefix(self.storage) + ":")
            self.logger.info("Storage has been reset and all limits cleared")
        except NotImplementedError:
            self.logger.warning("This storage type does not support being reset")

    # -- the request's way -------------------------------------------------------------------

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
        state = context._ratelimit_ext[self] = LimitedRequest(self)
        return state

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
            self.check_policy(cast(Any, app)._get_current_object())
            inner = view
            while inner is not None and getattr(inner, MARK, None) != self:
                inner = getattr(inner, "__wrapped__", None)
            known = inner is not None
            if not known and self.limit_manager.is_configured(endpoint, blueprint):
                view = app.view_functions[endpoint] = limited(view, self)
                known = True
            self._deferred_views[endpoint, view] = known
        return known

    # -- deciding ----------------------------------------------------------------------------

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
        try:
            outcome = self._outcome(state, place, resolve, lenient=lenient)
        except Exception:
            if not self._swallow_errors:
                raise
            self.logger.exception("Failed to rate limit. Swallowing error")
            return
        finally:
            state.charged = state.charged or set()
        if outcome is not None:
            self._conclude(state, outcome)

    def _outcome(
        self,
        state: LimitedRequest,
        place: Place,
        resolve: Callable[[], Resolved],
        *,
        lenient: bool,
    ) -> Outcome | None:
        """What the storage decides; where it fails and there is a fallback, what that decides."""
        already = state.charged or set()
        resolved = self._fallback(state, place) or resolve()
        claims = list(resolved.own)
        for definition, prepared in resolved.shared:
            if id(definition) not in already:
                claims += prepared
        metas = self._metas(place, resolved)
        if not claims and (not metas or place.method == "OPTIONS"):
            return None
        made = charged(claims, metas, self.logger, lenient=lenient)
        engine = self.engine
        try:
            outcome = admitted(engine, made, self._hold(state, made.claims))
        except ConfigurationError:
            raise  # a limit that this storage cannot carry out is no outage
        except Exception:
            if engine is not self._engine or self._fallback_engine is None:
                raise
            self.logger.warning(
                "Rate limit storage unreachable - falling back to in-memory storage"
            )
            self._storage_dead = True
            if not state.taken:
                state.reservation = None
            return self._outcome(state, place, resolve, lenient=lenient)
        state.charged = already | {id(definition) for definition, _ in resolved.shared}
        return outcome

    def _hold(self, state: LimitedRequest, claims: list[Claim]) -> Hold:
        """Under which id the request's estimates are held; one for the whole request."""
        if state.reservation is None:
            if not any(claim.limit.held for claim in claims):
                return NO_HOLD
            hold = Hold(randbits(48) or 1, int(self._lease_s * 1_000_000))
            state.reservation = Reservation(self.engine, hold, state.taken)
        return state.reservation.hold

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

    def _look_for_recovery(self) -> None:
        """Ask the storage whether it is back, after 1, 2, 4, … 32 seconds."""
        if self._recovery_checks > MAX_BACKEND_CHECKS:
            self._recovery_checks = 0
        if time.time() - self._last_recovery_check > 2**self._recovery_checks:
            self._last_recovery_check = time.time()
            self._recovery_checks += 1
            if self.storage.check():
                self.logger.info("Rate limit storage recovered")
                self._storage_dead = False
                self._recovery_checks = 0

    def _conclude(self, state: LimitedRequest, outcome: Outcome) -> None:
        """Remember the answers; raise the refusal where the request was denied."""
        enforced = [entry for entry in outcome.entries if entry.verdict.enforced]
        state.entries += enforced
        if outcome.decision.admitted:
            state.taken += [entry for entry in outcome.entries if entry.verdict.allowed]
            state.conditional += [e for e in outcome.entries if e.claim.runtime.deduct_when]
            return
        banned = [entry for entry in outcome.metas if not entry.verdict.allowed]
        if banned:
            state.entries = [banned[0]]
            state.retry_ms = outcome.decision.retry_after_ms
            response = self._told(banned[:1], meta=True)
            raise self._refusal(banned[0], outcome, response)
        denied = sorted(outcome.denied, key=lambda entry: rank(entry.claim.runtime.limit))
        for entry in denied:
            if entry.verdict.retry_after_us is None:
                raise RequestTooLarge(entry.claim, entry.verdict)
        state.retry_ms = outcome.decision.retry_after_ms
        lasting = max(denied, key=lambda entry: entry.verdict.retry_after_us or 0)
        told = [lasting] if self._fail_on_first_breach else denied
        for entry in told:
            self.logger.info(
                "ratelimit %s (%s) exceeded at endpoint: %s",
                entry.claim.runtime.limit,
                entry.identity,
                entry.claim.scope,
            )
        raise self._refusal(lasting, outcome, self._told(told, meta=False))

    def _refusal(
        self, entry: Entry, outcome: Outcome, response: flask.Response | None
    ) -> RateLimitExceeded:
        return RateLimitExceeded(
            entry.claim.runtime, response, claim=entry.claim, decision=outcome.decision
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

    # -- the response ------------------------------------------------------------------------

    def _finish(self, response: flask.Response) -> flask.Response:
        """Charge a request that reached no view, give back, write headers. Runs at most once."""
        state = self.context
        if state.finished or not (self.enabled and self.initialized):
            return response
        state.finished = True
        if state.charged is None:
            response = self._decide_late(state, response)
        if state.conditional:
            self._give_back(state, response)
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
        reservation = state.reservation
        if reservation is not None and not reservation.detached:
            response.call_on_close(reservation.close)
            state.streams = response.is_streamed
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
            app = flask.current_app
            refused = app.make_response(app.handle_http_exception(refusal))
            refused.call_on_close(response.close)
            own = OF_ONE_ANSWER.union(name.lower() for name, _ in refused.headers)
            refused.headers.extend(
                [(name, value) for name, value in response.headers if name.lower() not in own]
            )
            return refused
        return response

    def abandon(self, conditional: list[Entry]) -> None:
        """Return what is reserved, where the request ends without a response to judge by."""
        engine = self.engine
        if not engine.gives_back:
            return
        try:
            engine.settle([Correction(e.verdict, -e.verdict.charge.cost) for e in conditional])
        except Exception:
            self.logger.exception("Failed to give back what a failed request had reserved")

    def _give_back(self, state: LimitedRequest, response: flask.Response) -> None:
        """Return what ``deduct_when`` says was not to be deducted.

        A storage that cannot give back has only looked, and deducts now.
        """
        conditional, state.conditional = state.conditional, []
        try:
            engine = self.engine
            sign = -1 if engine.gives_back else 1
            due = [
                entry
                for entry in conditional
                if bool(cast(Any, entry.claim.runtime.deduct_when)(response))
                is not engine.gives_back
            ]
            if due:
                # Charges of one bucket share one verdict, with their costs added up.
                verdicts = {id(entry.verdict): entry.verdict for entry in due}.values()
                corrections = [Correction(v, sign * v.charge.cost) for v in verdicts]
                engine.settle(corrections)
                state.correct(corrections)
        except Exception:
            if not self._swallow_errors:
                raise
            self.logger.exception("Failed to deduct rate limit. Swallowing error")
