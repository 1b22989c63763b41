"""Which definitions apply to a request.

Flask-Limiter's manager resolves to runtime limits at every request, and loses the meta limits of
blueprints. This one resolves to definitions, so that an endpoint is compiled once; ``revision``
changes when it has to be compiled again.

Decorators' limits and exemptions go by a blueprint's own name, whatever it is registered under, and
replace each other as in Flask-Limiter. A policy's go by the whole name that it is registered under,
so that ``v1.chat`` is not ``v2.chat``, and by the groups that decorators name. They add up, with
each other and with decorators, except where a limit states ``override_defaults``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from inspect import unwrap
from operator import attrgetter
from typing import Any, Final, NamedTuple
from weakref import WeakSet, ref

import flask
from flask_limiter import ExemptionScope, Limit
from flask_limiter._limits import RuntimeLimit
from flask_limiter._manager import LimitManager
from flask_limiter.util import get_qualified_name

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.policy.errors import Place
from ratelimit_ext.web.declarations.definitions import groups_of, methods_called, stated, upgrade

#: Whether a definition yields any limit for this request: a function may return no string.
Yields = Callable[[Limit], bool]
EDGE: Final = ""
IDLE: Final = "limit %s never denies: %s applies with it and is lower. Remove or name one."
BARE: Final = (
    "The limits of the view %r do not apply: its route got the function before they were added. "
    "Write @limiter.limit(…) below the route decorator."
)
EXEMPT: Final = "The view %r is exempt, so its own limits do not apply. Remove one of the two."
NO_METHOD: Final = "A limit of the view %r does not apply: no route of it has one of its methods."
_TEXTS: Final = dict.fromkeys(("limit_provider", "error_message", "source"))


class Route(NamedTuple):
    """What limits are resolved for.

    ``name`` is the decorated callable, ``None`` before a view without decorators, and :data:`EDGE`
    for a request that reaches no view.
    """

    app: flask.Flask
    endpoint: str
    blueprint: str | None
    method: str
    name: str | None

    @property
    def is_edge(self) -> bool:
        """Whether only the application's own limits apply."""
        return not self.endpoint or self.name == EDGE


class EndpointLimits(NamedTuple):
    """The definitions for an endpoint; a request is charged once for the ``shared`` ones."""

    shared: tuple[Limit, ...]
    unshared: tuple[Limit, ...]


class Manager(LimitManager):
    """Flask-Limiter's manager, resolving to definitions. Every definition in it is upgraded.

    It begins with the definitions of another one.
    """

    def __init__(self, stock: LimitManager, *, key: str = "") -> None:
        super().__init__(
            application_limits=list(map(copy, stock._application_limits)),
            default_limits=list(map(copy, stock._default_limits)),
            decorated_limits=stock._decorated_limits,
            blueprint_limits=stock._blueprint_limits,
            route_exemptions=stock._route_exemptions,
            blueprint_exemptions=stock._blueprint_exemptions,
        )
        self.revision = 0
        #: The attribute in which the extension's wrapper of a view has the view's own limits.
        self._key = key
        #: Those with limits, which each has in an attribute, as views have.
        self._limited_blueprints: WeakSet[flask.Blueprint] = WeakSet()
        #: By name, the functions that were decorated last.
        self._functions: dict[str, tuple[object, ref[Any]]] = {}
        #: Those that share the limits and exemptions of decorators.
        self._copies: WeakSet[Manager] = WeakSet([self])
        #: Called before Flask-Limiter's commands list limits, when all blueprints are registered.
        self.complete: Callable[[flask.Flask], None] = lambda _: None
        #: The limits of a policy: of blueprints by their whole names, of endpoints, and of groups,
        #: which views and blueprints name. What is there counts as limited, even without any.
        self.policy_blueprints: dict[str, list[Limit]] = {}
        self.policy_endpoints: dict[str, list[Limit]] = {}
        self.groups: dict[str, list[Limit]] = {}

    def copy(self) -> Manager:
        """One for another application or another policy. It shares the limits and exemptions of
        decorators, also of later ones, and has none of a policy's limits of views and blueprints.

        Flask-Limiter writes an application's settings into the limits that apply to all views, so
        these are copied."""
        other = Manager(self, key=self._key)
        other._limited_blueprints = self._limited_blueprints
        other._functions, other._copies = self._functions, self._copies
        self._copies.add(other)
        return other

    def _note_declaration(self) -> None:
        for manager in list(self._copies):
            manager.revision += 1

    def add_decorated_limit(self, route: str, limit: Limit | None, override: bool = False) -> None:
        """Add a limit of a callable. Raises ``ConfigurationError`` if it is invalid."""
        others = () if override else self._decorated_limits.get(route, ())
        super().add_decorated_limit(route, self._checked(limit, others), override)
        self._note_declaration()

    def add_view_limit(self, view: Any, limit: Limit) -> None:
        """Add a limit of a wrapped callable, which has its own limits in an attribute. By its name
        alone one could not tell it from others that the same function has made, such as the views
        of each application in an application factory."""
        attached, name = getattr(view, self._key), get_qualified_name(view)
        checked: Any = self._checked(limit, attached)
        for other in attached:
            are_texts = isinstance(limit.limit_provider, str) and not callable(other.limit_provider)
            if are_texts and vars(other) | _TEXTS == vars(checked) | _TEXTS:
                for one, another in itertools.product(checked, other):
                    low, high = sorted((one.limit, another.limit), key=attrgetter("amount"))
                    if low.amount < high.amount and low.get_expiry() == high.get_expiry():
                        limit.limiter.logger.warning(IDLE, high, low)
        function = getattr(unwrap(view), "__func__", unwrap(view))
        code = getattr(function, "__code__", None)
        is_made_again = False
        if code is not None and not attached:
            last_code, last = self._functions.get(name, (None, ref(function)))
            is_made_again = code is last_code and last() is not function
            self._functions[name] = code, ref(function)
        self.add_decorated_limit(name, checked, override=is_made_again)
        if checked not in attached:
            attached.append(checked)

    def add_blueprint_limit(self, blueprint: str, limit: Limit | None) -> None:
        """Add a limit of a blueprint. Raises ``ConfigurationError`` if it is invalid."""
        limit = self._checked(limit, self._blueprint_limits.get(blueprint, ()))
        super().add_blueprint_limit(blueprint, limit)
        self._note_declaration()

    def add_limit_of_blueprint(self, blueprint: flask.Blueprint, limit: Limit) -> None:
        """Add a limit of a blueprint and its namesakes in an application; those of other
        applications have their own."""
        attached: list[Limit] = vars(blueprint).setdefault(self._key, [])
        checked: Any = self._checked(limit, attached)
        if checked not in attached:
            attached.append(checked)
        self._limited_blueprints.add(blueprint)
        self._note_declaration()

    def _checked(self, limit: Limit | None, others: Iterable[Limit]) -> Limit | None:
        if limit is None:
            return None
        upgraded: Any = upgrade(limit)
        upgraded.check(limit.limiter._strategy)
        _check_names((*self._application_limits, *others, upgraded))
        return upgraded  # type: ignore[no-any-return]

    def check_stated(self, default_strategy: str | None) -> None:
        """Raise ``ConfigurationError`` for an invalid limit of constructor or configuration."""
        application, default = self._application_limits, self._default_limits
        self._application_limits = stated(application, default_strategy, "application_limits")
        self._default_limits = stated(default, default_strategy, "default_limits")

    def check_names(self) -> None:
        """Raise ``ConfigurationError`` if limits that apply together have the same name."""
        routes = (*self._decorated_limits.values(), *self._all_of_blueprints())
        for limits in (self._default_limits, *routes):
            _check_names((*self._application_limits, *limits))

    def add_route_exemption(self, route: str, scope: ExemptionScope) -> None:
        super().add_route_exemption(route, scope)
        self._note_declaration()

    def add_blueprint_exemption(self, blueprint: str, scope: ExemptionScope) -> None:
        super().add_blueprint_exemption(blueprint, scope)
        self._note_declaration()

    def add_endpoint_hint(self, endpoint: str, callable: str) -> None:
        """Note that an endpoint's view calls a limited callable."""
        if callable not in self._endpoint_hints.get(endpoint, ()):
            super().add_endpoint_hint(endpoint, callable)
            self.revision += 1

    def add(self, present: list[Any], limits: Iterable[Limit]) -> None:
        """Add a policy's limits to some of this manager, equal ones once."""
        present += [limit for limit in limits if limit not in present]
        self.revision += 1

    def add_named(self, named: dict[str, list[Limit]], name: str, limits: Iterable[Limit]) -> None:
        self.add(named.setdefault(name, []), limits)

    def definitions(self) -> Iterator[Limit]:
        return itertools.chain(
            self._application_limits,
            self._default_limits,
            *self._decorated_limits.values(),
            *self._all_of_blueprints(),
            *self.policy_blueprints.values(),
            *self.policy_endpoints.values(),
            *self.groups.values(),
        )

    def is_configured(self, app: flask.Flask, endpoint: str, blueprint: str | None) -> bool:
        """Return whether a policy limits the endpoint, its blueprint or one around that."""
        return (
            endpoint in self.policy_endpoints
            or not self.policy_blueprints.keys().isdisjoint(_nesting(blueprint))
            or bool(self.named_groups(app, endpoint))
        )

    def applicable(self, route: Route, yields: Yields = lambda _: True) -> EndpointLimits:
        if route.is_edge:
            return EndpointLimits(self._of_application(route), ())
        return (self._before_view if route.name is None else self._at_callable)(route, yields)

    def _of_application(self, route: Route) -> tuple[Limit, ...]:
        exempt = self.exemption_scope(*route[:3])
        is_exempt = route.endpoint and exempt & ExemptionScope.APPLICATION
        return () if is_exempt else tuple(self._application_limits)

    def _before_view(self, route: Route, yields: Yields) -> EndpointLimits:
        """Return what applies to a view without decorators."""
        shared = self._of_application(route)
        if self.has_hints(route.endpoint):
            # A callable inside the view has limits of its own, which decide about the defaults.
            hints = self._endpoint_hints[route.endpoint]
            hinted = [lim for hint in hints for lim in self._decorated(hint) if yields(lim)]
            if hinted:
                if not any(limit.override_defaults for limit in hinted):
                    shared += tuple(self._default_limits)
                return EndpointLimits(shared, ())
        limits = [limit for limit in self.of_blueprint(route.app, route.blueprint) if yields(limit)]
        return self._with_defaults(shared, limits, route)

    def _at_callable(self, route: Route, yields: Yields) -> EndpointLimits:
        """Return what applies to a decorated callable, with what applies before the view."""
        app, endpoint, blueprint, method, name = route
        assert name is not None
        view = self._view_of(app, endpoint, name)
        limits = [limit for limit in self._decorated(name, view) if yields(limit)]
        of_view = [] if view is None else self._policy_of_view(app, endpoint, method)
        of_view = [limit for limit in of_view if yields(limit)]
        decorated, of_policy = self._of_nesting(app, blueprint)
        if any(limit.override_defaults for limit in limits) or any(map(_replaces, of_view)):
            decorated = []
        if any(map(_replaces, (*limits, *of_view))):
            of_policy = []
        of_policy = _once([*of_view, *filter(yields, of_policy)])
        limits = [*limits, *filter(yields, decorated), *of_policy]
        return self._with_defaults(self._of_application(route), limits, route)

    def _policy_of_view(self, app: flask.Flask, endpoint: str, method: str) -> list[Limit]:
        """Return a policy's limits of an endpoint, with those of the groups that its view names."""
        view, limits = app.view_functions[endpoint], self.policy_endpoints.get(endpoint, [])
        if self._route_exemptions.get(get_qualified_name(view), ExemptionScope.NONE):
            return [*limits]
        return [*limits, *self._of_groups(view, *methods_called(view, method))]

    def _of_groups(self, *named: object) -> Iterator[Limit]:
        for name in groups_of(*named):
            yield from self.groups.get(name, ())

    def unapplied(self, route: Route) -> tuple[list[Limit], str]:
        """Return the limits of a policy that code keeps from a route, and the places of that
        code."""
        alone = copy(self)
        without = ("decorated_limits", "blueprint_limits", "route_exemptions")
        vars(alone).update({f"_{word}": {} for word in (*without, "blueprint_exemptions")}, _key="")
        shared, unshared = self.applicable(route)
        missing = [
            limit
            for limits in alone.applicable(route)
            for limit in limits
            if _is_of_policy(limit) and limit not in (*shared, *unshared)
        ]
        overriding = [d for d in unshared if d.override_defaults and not _is_of_policy(d)]
        code = [str(getattr(d, "source", "")) for d in overriding]
        view = get_qualified_name(route.app.view_functions[route.endpoint])
        unexempt = self._unexempt(route.app, route.blueprint)
        if self._route_exemptions.get(view) or unexempt != [*_nesting(route.blueprint)]:
            code.append("limiter.exempt")
        return missing, ", ".join(dict.fromkeys(code))

    def named_groups(self, app: flask.Flask, endpoint: str) -> dict[str, str]:
        """Return the groups that an endpoint's view and the blueprints around it name, each with
        the place of its decorator."""
        view, around_it = app.view_functions.get(endpoint), _nesting(endpoint.rpartition(".")[0])
        return groups_of(view, *methods_called(view), *map(app.blueprints.get, around_it))

    def candidates(self, route: Route) -> EndpointLimits:
        """Return all that could apply, whatever the method and the functions' answers."""
        if route.is_edge:
            return self.applicable(route)
        app, endpoint, blueprint, _, name = route
        lists = self.of_callable(app, endpoint, name), self.of_blueprint(app, blueprint)
        return EndpointLimits(self.shared(), (*lists[0], *lists[1]))

    def shared(self) -> tuple[Limit, ...]:
        """Return what may apply to every view."""
        return (*self._application_limits, *self._default_limits)

    def of_callable(self, app: flask.Flask, endpoint: str, name: str | None) -> list[Limit]:
        """Return what may apply to an endpoint and a callable in it, without blueprints."""
        decorated = self._decorated(name, self._view_of(app, endpoint, name)) if name else ()
        hints = self._endpoint_hints.get(endpoint, ())
        hinted = [limit for hint in hints for limit in self._decorated(hint)]
        view = app.view_functions.get(endpoint)
        groups = self._of_groups(view, *methods_called(view))
        return [*decorated, *hinted, *self.policy_endpoints.get(endpoint, ()), *groups]

    def blueprint_limits(self, app: flask.Flask, blueprint: str) -> list[RuntimeLimit]:
        self.complete(app)
        return list(itertools.chain(*self.of_blueprint(app, blueprint)))

    def resolve_limits(
        self,
        app: flask.Flask,
        endpoint: str | None = None,
        blueprint: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[RuntimeLimit], ...]:
        """Return the default limits that apply to a view and its own, as Flask-Limiter's commands
        list them."""
        self.complete(app)
        view = app.view_functions.get(endpoint or "")
        if endpoint is None or view is None:
            return [], []
        applicable = self.applicable(
            Route(app, endpoint, blueprint or None, "GET", get_qualified_name(view))
        )
        defaults = [limit for limit in applicable.shared if limit not in self._application_limits]
        return list(itertools.chain(*defaults)), list(itertools.chain(*applicable.unshared))

    def in_vain(self, app: flask.Flask, view: Any) -> Iterator[str]:
        """Yield what is wrong with the decorators of a view: none of them applies, or a limit."""
        name, own = get_qualified_name(view), getattr(view, self._key, ())
        routed = [unwrap(v) for v in app.view_functions.values() if hasattr(v, self._key)]
        if self._functions.get(name, (0, lambda: 0))[1]() is view and view not in routed:
            yield BARE
        if own and self._route_exemptions.get(name):
            yield EXEMPT
        rules = [r for r in app.url_map.iter_rules() if app.view_functions.get(r.endpoint) is view]
        methods = set(itertools.chain(*(rule.methods or () for rule in rules)))
        stated = [d.methods for d in own if d.methods and not d.shared]
        if any(methods.isdisjoint(map(str.upper, each)) for each in stated):
            yield NO_METHOD

    def _decorated(self, name: str, view: Any = None) -> Iterable[Limit]:
        """Return the limits of a callable: a view's own, else those of its name."""
        if self._route_exemptions.get(name, ExemptionScope.NONE):
            return ()
        attached: Iterable[Limit] | None = getattr(view, self._key, None)
        return self._decorated_limits.get(name, ()) if attached is None else attached

    def _view_of(self, app: flask.Flask, endpoint: str, name: str) -> Any:
        """Return the endpoint's view if it has that name; ``None`` for a callable inside it."""
        view = app.view_functions.get(endpoint)
        return view if view is not None and get_qualified_name(view) == name else None

    def of_blueprint(self, app: flask.Flask, blueprint: str | None) -> list[Limit]:
        """Return the definitions of a blueprint and of those around it."""
        decorated, of_policy = self._of_nesting(app, blueprint)
        return [*decorated, *_once(of_policy)]

    def _of_nesting(
        self, app: flask.Flask, blueprint: str | None
    ) -> tuple[list[Limit], list[Limit]]:
        """Return the limits of decorators and those of a policy that a blueprint has, with those
        around it, the outermost first.

        Decorators go by Flask-Limiter's rule: if all of the innermost blueprint override, they
        replace those around it. A written ``override_defaults`` hides what is around, in a policy
        from everything inside.
        """
        decorated: list[Limit] = []
        of_policy: list[Limit] = []
        for name in self._unexempt(app, blueprint):
            instance = app.blueprints[name]
            inner = [d for d in self._of_namesakes(app, instance.name) if d not in decorated]
            limits = [*self.policy_blueprints.get(name, ()), *self._of_groups(instance)]
            is_innermost = name == blueprint and inner and all(d.override_defaults for d in inner)
            replaces = any(map(_replaces, limits))
            decorated = [*([] if replaces or is_innermost else decorated), *inner]
            hides = replaces or any(map(_replaces, inner))
            of_policy = [*([] if hides else of_policy), *limits]
        return decorated, of_policy

    def _unexempt(self, app: flask.Flask, blueprint: str | None) -> list[str]:
        """Return which of the blueprint and those around it are not exempt, the outermost first."""
        if not blueprint or blueprint not in app.blueprints:
            return []
        exemption, inherited = self._blueprint_exemption_scope(app, blueprint)
        if exemption & ~(ExemptionScope.DEFAULT | ExemptionScope.APPLICATION):
            return []
        scope = self._blueprint_exemptions.get(app.blueprints[blueprint].name, ExemptionScope.NONE)
        if scope & ExemptionScope.ANCESTORS:
            return [blueprint]
        return [n for n in _nesting(blueprint) if app.blueprints[n].name not in inherited]

    def _blueprint_exemption_scope(
        self, app: flask.Flask, blueprint_name: str
    ) -> tuple[ExemptionScope, dict[str, ExemptionScope]]:
        """See Flask-Limiter, which takes registered names of blueprints for their own."""
        scopes = {
            name: self._blueprint_exemptions.get(name, ExemptionScope.NONE)
            for name in [app.blueprints[whole].name for whole in _nesting(blueprint_name)]
        }
        inherited = {n: scope for n, scope in scopes.items() if scope & ExemptionScope.DESCENDENTS}
        return scopes[app.blueprints[blueprint_name].name] & ~ExemptionScope.ANCESTORS, inherited

    def _of_namesakes(self, app: flask.Flask, name: str) -> Iterable[Limit]:
        """Decorators' limits of the application's blueprints of that name."""
        named = [blueprint for blueprint in app.blueprints.values() if blueprint.name == name]
        limits = [limit for blueprint in named for limit in vars(blueprint).get(self._key, ())]
        return dict.fromkeys((*self._blueprint_limits.get(name, ()), *limits))

    def _all_of_blueprints(self) -> Iterator[Iterable[Limit]]:
        yield from self._blueprint_limits.values()
        for blueprint in list(self._limited_blueprints):
            yield vars(blueprint)[self._key]

    def _with_defaults(
        self, shared: tuple[Limit, ...], limits: list[Limit], route: Route
    ) -> EndpointLimits:
        """Add the defaults unless the view has limits for this method that override them.

        A plan overrides them only with ``override_defaults``.
        """
        if not self.exemption_scope(*route[:3]) & ExemptionScope.DEFAULT:
            stated = [
                limit for limit in limits if limit.override_defaults or not vars(limit).get("plan")
            ]
            method = route.method.lower()
            for_method = any(limit.methods is None or method in limit.methods for limit in stated)
            if not (for_method and any(limit.override_defaults for limit in stated)):
                shared += tuple(self._default_limits)
        return EndpointLimits(shared, tuple(limits))


def _nesting(blueprint: str | None) -> tuple[str, ...]:
    """Return the blueprint's name and those of the blueprints around it, the outermost first."""
    return tuple(itertools.accumulate(blueprint.split("."), "{}.{}".format)) if blueprint else ()


def _once(limits: Iterable[Limit]) -> list[Limit]:
    """Return the limits, equal ones once: what a view and its blueprint have in common."""
    unique: list[Limit] = []
    for limit in limits:
        if limit not in unique:
            unique.append(limit)
    return unique


def _replaces(limit: Limit) -> bool:
    """Return whether ``override_defaults`` is written as true, and not a default."""
    return getattr(limit, "replaces", False)


def _is_of_policy(limit: Limit) -> bool:
    return isinstance(getattr(limit, "source", ""), Place)


def _check_names(limits: Iterable[Limit]) -> None:
    named: dict[str, Limit] = {}
    for limit in limits:
        name = getattr(limit, "name", "")
        other = named.setdefault(name, limit) if name else limit
        if other is not limit and _statement(other) != _statement(limit):
            raise ConfigurationError(
                f"limit {limit.limit_provider!r}, name: found {name!r}, which is also the name of "
                f"{other.limit_provider!r}. Limits that apply together need different names."
            )


def _statement(limit: Limit) -> tuple[Any, ...]:
    """Return what the source states: a function that makes views may state it repeatedly."""
    functions = (limit.limit_provider, limit.key_function)
    return (*map(code_of, functions), getattr(limit, "options", None))


def code_of(function: object) -> object:
    """Return the code of a function: each call of a factory makes another function of it."""
    return getattr(function, "__code__", function)
