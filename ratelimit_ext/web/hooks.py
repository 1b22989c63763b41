"""Where a request meets its limits: before its view, in the wrapper around the view, at a block
inside it, when it is answered, and when it ends.

Each of them finds the request's state and its route, and has :mod:`admission` decide.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import call
from typing import Any, cast

import flask
from flask_limiter.util import get_qualified_name
from limits.storage import Storage
from werkzeug.exceptions import HTTPException

from ratelimit_ext.core.errors import unknown_name
from ratelimit_ext.web.bound_limit import BoundLimit, Records, new
from ratelimit_ext.web.components import Components
from ratelimit_ext.web.declarations.definitions import (
    RouteLimit,
    contexts,
    is_unhandled,
    is_wrapped,
    methods_called,
    request_context,
    wrap,
)
from ratelimit_ext.web.declarations.manager import EDGE, Route
from ratelimit_ext.web.request.request_state import RequestState
from ratelimit_ext.web.request.reservation import Reservation


class RequestHooks:
    components: Components

    def __init__(self, limiter: Any) -> None:
        self._limiter = limiter

    def use(self, components: Components) -> None:
        """Decide, answer and reserve by these from now on."""
        self.components = components
        #: Whether the view itself has a wrapper, by endpoint and view.
        self._wrapped_views: dict[tuple[str, Any], bool] = {}
        self._identifier = components.settings._request_identifier or requested_endpoint
        #: Whether that is the endpoint: then the context is not looked up again.
        self._is_usual = self._identifier is requested_endpoint

    def use_storage(self, storage: Storage) -> Storage | None:
        """Decide by this storage from now on; returns the one before. For tests."""
        before = self.components.storage
        self.components.use(storage)
        self.use(self.components)
        return before

    def install(self, app: flask.Flask) -> None:
        app.before_request(self.before_request)
        app.after_request(self.finish)
        app.teardown_request(self.release)

    @property
    def is_enabled(self) -> bool:
        return self._limiter.is_on and self.components.is_enabled

    # -- before the view -----------------------------------------------------------------------

    def before_request(self) -> flask.Response | None:
        """Decide before a view that has none of our wrappers. Returns as :meth:`admit_to_view`."""
        context = contexts.get()
        endpoint = (context.request.endpoint or "") if self._is_usual else self._identifier()
        view = context.app.view_functions.get(endpoint) if endpoint else None
        # A wrapper asks the request filters later, too: they may read who is logged in.
        if view is None and context.request.endpoint is None:
            return None
        if view is not None and (
            self._wrapped_views.get((endpoint, view))
            or self.decider(endpoint, view, context.request.blueprint, context.request.method)
        ):
            return None
        state = self.state_in(context)
        if self._is_exempt(state, endpoint):
            return None
        route = _route(context, endpoint, None)
        return self.components.admission.admit(state, route, is_final=is_unhandled)

    def admit_to_view(
        self, context: Any, name: str | None, is_final: Callable[[Any], bool] | None
    ) -> flask.Response | None:
        """Decide in the wrapper of a callable. Returns the response to a denial that is repeated
        from memory, if its exception ``is_final``."""
        state = self.state_in(context)
        endpoint = (context.request.endpoint or "") if self._is_usual else self._identifier()
        if self._is_exempt(state, endpoint):
            return None
        view = context.app.view_functions.get(endpoint) if endpoint else None
        if name and view is not None and get_qualified_name(view) != name:
            request = context.request
            if self.decider(endpoint, view, request.blueprint, request.method) != name:
                self.components.manager.add_endpoint_hint(endpoint, name)
        return self.components.admission.admit(
            state, _route(context, endpoint, name), is_final=is_final
        )

    def admit_to_block(self, definition: RouteLimit, location: str) -> None:
        context = request_context._get_current_object()
        state, endpoint = self.state_in(context), self._endpoint_in(context)
        if self._is_exempt(state, endpoint):
            return
        if location not in self.components.manager._decorated_limits:
            self.components.manager.add_decorated_limit(location, definition)
        self.components.manager.add_endpoint_hint(endpoint, location)
        self.components.admission.admit(state, _route(context, endpoint, location), [definition])

    def admit_edge(self, context: Any, state: RequestState) -> None:
        endpoint = self._endpoint_in(context)
        if not self._is_exempt(state, endpoint):
            self.components.admission.admit_edge(state, _route(context, endpoint, None))

    def look(self, endpoint: str, method: str) -> Records:
        """Return what the caller has left at an endpoint; see :meth:`LimitedRequest.peek`."""
        app = cast(Any, flask.current_app)._get_current_object()
        if endpoint not in app.view_functions:
            endpoints = sorted(app.view_functions.keys() - {"static"})
            raise ValueError(unknown_name("endpoint", endpoint, endpoints))
        return self.components.admission.look(self._route_of(app, endpoint, method))

    def conditional_limits(self, context: Any) -> list[BoundLimit]:
        """Return the limits of the request's view that apply to some of its calls."""
        endpoint, method = self._endpoint_in(context), context.request.method
        limits = self.components.resolver.limits(self._route_of(context.app, endpoint, method))
        return [bound for bound in limits.limits if bound.condition is not None]

    def _route_of(self, app: flask.Flask, endpoint: str, method: str) -> Route:
        view, blueprint = app.view_functions.get(endpoint), endpoint.rpartition(".")[0] or None
        name = self.decider(endpoint, view, blueprint, method)
        return Route(app, endpoint, blueprint, method, name)

    def decider(self, endpoint: str, view: Any, blueprint: str | None, method: str) -> str | None:
        """Return the name of the callable whose wrapper decides the limits of an endpoint: the
        view's, or that of the method that its class calls. ``None``: they are decided before the
        view."""
        if self._is_wrapped(endpoint, view, blueprint):
            return get_qualified_name(view)
        for called in methods_called(view, method):
            if is_wrapped(called, self._limiter):
                return get_qualified_name(called)
        return None

    def _is_wrapped(self, endpoint: str, view: Any, blueprint: str | None) -> bool:
        """Return whether one of our wrappers is around the view.

        A view that only a policy limits gets its wrapper here, at its first request.
        """
        wrapped = self._wrapped_views.get((endpoint, view))
        if wrapped is None:
            app = cast(Any, flask.current_app)._get_current_object()
            self.components.policies.complete(app)
            wrapped = is_wrapped(view, self._limiter)
            if not wrapped and self.components.manager.is_configured(app, endpoint, blueprint):
                view = app.view_functions[endpoint] = wrap(view, self._limiter)
                wrapped = True
            for text in self.components.manager.in_vain(app, app.view_functions.get(endpoint)):
                app.logger.error(text, endpoint)
            self._wrapped_views[endpoint, view] = wrapped
        return wrapped

    # -- after it ------------------------------------------------------------------------------

    def finish(self, response: flask.Response) -> flask.Response:
        """Charge a request that reached no view, refund, write headers. Runs at most once."""
        context = contexts.get()
        state = self.state_in(context)
        if state.finished:  # a later hook has failed, and its error replaces the response
            state.streams = False
            return response
        if not self._limiter.is_on:
            return response
        state.finished = True
        states = context._ratelimit_ext.values()  # one for each extension of the application
        if state.charged is None and not any(other.is_refused(response) for other in states):
            response = self._decide_late(context, state, response)
        has_origin = "HTTP_ORIGIN" in context.request.environ
        self.components.response.finish(response, state, states, has_origin=has_origin)
        return response

    def release(self, _: BaseException | None = None) -> None:
        """The request is over. Flask enters its context again for a stream ``with_context``."""
        states = contexts.get().__dict__.get("_ratelimit_ext")
        if states and (state := states.get(self)) is not None:
            state.close()
            if not state.streams:
                del states[self]

    def _decide_late(
        self, context: Any, state: RequestState, response: flask.Response
    ) -> flask.Response:
        """Charge a request that was answered before its view to the application's limits.

        Raising here would be a 500: a refusal is made into a response.
        """
        endpoint = self._endpoint_in(context)
        if self._is_exempt(state, endpoint):
            return response
        try:
            self.components.admission.admit(state, _route(context, endpoint, EDGE), lenient=True)
        except HTTPException as refusal:
            state.refusal = True
            app = flask.current_app
            answer = app.make_response(app.handle_http_exception(refusal))
            return self.components.response.replace(response, answer)
        return response

    # -- the current request -------------------------------------------------------------------

    def current_plan(self) -> str:
        return self.plan_of(self.state_in(request_context._get_current_object()))

    def plan_of(self, state: RequestState) -> str:
        if state.plan_name is None:
            state.plan_name = self.components.asked_plan()
        return state.plan_name

    def state_in(self, context: Any) -> RequestState:
        states: dict[RequestHooks, RequestState] | None = context.__dict__.get("_ratelimit_ext")
        if states is None:
            states = context._ratelimit_ext = {}
            context.request.__dict__.setdefault("_ratelimit_ext", states)
        state = states.get(self)
        if state is None:
            state = states[self] = RequestState(self.components.reserve)
        return state

    def reservation_in(self, context: Any) -> Reservation:
        """Return the reservation of the request of this context. In a copy of the context, as for
        another thread, it is that of the request, unless the copy has taken something itself."""
        state = self.state_in(context)
        if state.reservation is None:
            state = context.request._ratelimit_ext.get(self, state)
        return state.reserved()

    def _endpoint_in(self, context: Any) -> str:
        return (context.request.endpoint or "") if self._is_usual else self._identifier()

    def _is_exempt(self, state: RequestState, endpoint: str) -> bool:
        """Return whether no limit applies to the request. The request filters are called once."""
        if state.exempt is None:
            limiter = self._limiter
            state.exempt = (
                not (limiter.is_on and self.components.is_enabled)
                or endpoint.rpartition(".")[2] == "static"
                or any(map(call, limiter._request_filters))
            )
        return state.exempt


def requested_endpoint() -> str:
    """Return the default identity of a request, as Flask-Limiter's."""
    return flask.request.endpoint or ""


def _route(context: Any, endpoint: str, name: str | None) -> Route:
    request = context.request
    method = "GET" if request.method == "HEAD" else request.method
    return new(Route, (context.app, endpoint, request.blueprint, method, name))
