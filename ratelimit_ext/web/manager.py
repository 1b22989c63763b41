"""Which definitions apply to a request: Flask-Limiter's rules, over definitions.

The stock manager resolves to runtime limits, at every request anew, and on the way loses the meta
limits of blueprints. This one resolves to the definitions, so that what is static is computed once
per endpoint; ``revision`` tells when that has to be done again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import flask
from flask_limiter import ApplicationLimit, ExemptionScope, Limit
from flask_limiter._limits import RuntimeLimit
from flask_limiter._manager import LimitManager
from flask_limiter.util import get_qualified_name
from limits import RateLimitItem

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.web.configured_limits import ConfiguredLimits, is_of_plan
from ratelimit_ext.web.definitions import extended

#: Whether a definition yields any limit for this request (a callable may answer with nothing).
Yields = Callable[[Limit], bool]


class Applicable(NamedTuple):
    """The definitions for one endpoint: ``shared`` ones are charged once in a request."""

    shared: tuple[Limit, ...]
    own: tuple[Limit, ...]


class Manager(LimitManager):
    """Flask-Limiter's manager, resolving definitions."""

    def __init__(self, **stock: Any) -> None:
        super().__init__(**stock)
        self.revision = 0
        #: Called before the commands of Flask-Limiter are given limits: it files what is known only
        #: when all blueprints are registered.
        self.complete: Callable[[flask.Flask], None] = lambda _: None
        self._configured = ConfiguredLimits()

    def add_decorated_limit(self, route: str, limit: Limit | None, override: bool = False) -> None:
        """Add a limit of a callable. Raises ``ConfigurationError`` for what cannot be carried out,
        as :meth:`add_blueprint_limit` does."""
        self._check(limit, self._decorated_limits.get(route, ()))
        super().add_decorated_limit(route, limit, override)
        self.revision += 1

    def add_blueprint_limit(self, blueprint: str, limit: Limit | None) -> None:
        """Add a limit of a blueprint."""
        self._check(limit, self._blueprint_limits.get(blueprint, ()))
        super().add_blueprint_limit(blueprint, limit)
        self.revision += 1

    def check_names(self) -> None:
        """Raise ``ConfigurationError`` for a name that two limits have which apply together."""
        places = (*self._decorated_limits.values(), *self._blueprint_limits.values())
        for limits in (self._default_limits, *places):
            _check_names((*self._application_limits, *limits))

    def _check(self, limit: Limit | None, beside: Iterable[Limit]) -> None:
        """Check a definition, also one of Flask-Limiter's own classes."""
        if limit is not None:
            extended(limit).check(limit.limiter._strategy)
            _check_names((*self._application_limits, *beside, limit))

    def add_route_exemption(self, route: str, scope: ExemptionScope) -> None:
        """Exempt a callable."""
        super().add_route_exemption(route, scope)
        self.revision += 1

    def add_blueprint_exemption(self, blueprint: str, scope: ExemptionScope) -> None:
        """Exempt a blueprint."""
        super().add_blueprint_exemption(blueprint, scope)
        self.revision += 1

    def add_endpoint_hint(self, endpoint: str, callable: str) -> None:
        """Note that an endpoint's view calls a limited callable."""
        if callable not in self._endpoint_hints.get(endpoint, ()):
            super().add_endpoint_hint(endpoint, callable)
            self.revision += 1

    def add_application_limit(self, limit: ApplicationLimit) -> None:
        """Add a limit of the application, unless an equal one is there."""
        if limit not in self._application_limits:
            self._application_limits.append(limit)
            self.revision += 1

    def add_default_limit(self, limit: Limit) -> None:
        """Add a default limit, unless an equal one is there."""
        if limit not in self._default_limits:
            self._default_limits.append(limit)
            self.revision += 1

    def add_configured_blueprint(self, name: str, limits: Iterable[Limit]) -> None:
        """Add limits that a policy gives to a blueprint, by its whole registered name."""
        self._configured.add_to_blueprint(name, limits)
        self.revision += 1

    def add_configured_endpoint(self, endpoint: str, limits: Iterable[Limit]) -> None:
        """Add limits that a policy gives to an endpoint."""
        self._configured.add_to_endpoint(endpoint, limits)
        self.revision += 1

    def filed(self) -> Iterator[Limit]:
        """Every definition so far, wherever it applies."""
        return itertools.chain(
            self._application_limits,
            self._default_limits,
            *self._decorated_limits.values(),
            *self._blueprint_limits.values(),
            self._configured,
        )

    def stated_items(self) -> Iterator[RateLimitItem]:
        """The items of every definition so far that states its limits without a function."""
        for limit in self.filed():
            if isinstance(limit.limit_provider, str) and not getattr(limit, "items", None):
                yield from [runtime.limit for runtime in limit]

    def is_configured(self, endpoint: str, blueprint: str | None) -> bool:
        """Whether a policy limits the endpoint, by itself or by one of its blueprints."""
        return self._configured.concern(endpoint, blueprint)

    def edge(self, app: flask.Flask, endpoint: str | None, blueprint: str | None) -> Applicable:
        """What applies to a request that reaches no view."""
        exempt = self.exemption_scope(app, endpoint, blueprint)
        if endpoint and exempt & ExemptionScope.APPLICATION:
            return Applicable((), ())
        return Applicable(tuple(self._application_limits), ())

    def before_view(
        self,
        app: flask.Flask,
        endpoint: str,
        blueprint: str | None,
        *,
        method: str,
        yields: Yields,
    ) -> Applicable:
        """What applies to a view without decorators."""
        shared = list(self.edge(app, endpoint, blueprint).shared)
        hinted = [
            limit
            for hint in self._endpoint_hints.get(endpoint, ())
            for limit in self._decorated(hint)
            if yields(limit)
        ]
        if self.has_hints(endpoint):
            # A callable inside the view has limits of its own; it decides over the defaults.
            if hinted and not any(limit.override_defaults for limit in hinted):
                shared += self._default_limits
            return Applicable(tuple(shared), ())
        own = [limit for limit in self._of_blueprint(app, blueprint) if yields(limit)]
        if self._admits_defaults(own, app, endpoint, blueprint, method):
            shared += self._default_limits
        return Applicable(tuple(shared), tuple(own))

    def at_callable(
        self,
        app: flask.Flask,
        endpoint: str,
        blueprint: str | None,
        name: str,
        *,
        method: str,
        yields: Yields,
    ) -> Applicable:
        """What applies at a decorated callable, with what would have applied before the view."""
        shared = list(self.edge(app, endpoint, blueprint).shared)
        view = app.view_functions.get(endpoint)
        configured = (
            self._configured.of_endpoint(endpoint)
            if view is not None and get_qualified_name(view) == name
            else ()
        )
        own = [limit for limit in (*self._decorated(name), *configured) if yields(limit)]
        if not any(limit.override_defaults for limit in own):
            own += [limit for limit in self._of_blueprint(app, blueprint) if yields(limit)]
        if self._admits_defaults(own, app, endpoint, blueprint, method):
            shared += self._default_limits
        return Applicable(tuple(shared), tuple(own))

    def candidates(
        self, app: flask.Flask, endpoint: str, blueprint: str | None, name: str | None
    ) -> Applicable:
        """Everything that could apply, whatever the method and the callables' answers."""
        hints = self._endpoint_hints.get(endpoint, ())
        named = [limit for part in (name, *hints) if part for limit in self._decorated(part)]
        return Applicable(
            (*self._application_limits, *self._default_limits),
            (
                *named,
                *self._configured.of_endpoint(endpoint),
                *self._of_blueprint(app, blueprint),
            ),
        )

    def blueprint_limits(self, app: flask.Flask, blueprint: str) -> list[RuntimeLimit]:
        """The runtime limits of a blueprint, meta limits included; the commands ask for them."""
        self.complete(app)
        limits: list[RuntimeLimit] = []
        for definition in self._of_blueprint(app, blueprint):
            try:
                limits.extend(definition)
            except ValueError as error:
                self._logger.error(
                    "failed to load ratelimit for blueprint %s: %s", blueprint, error
                )
        return limits

    def resolve_limits(
        self,
        app: flask.Flask,
        endpoint: str | None = None,
        blueprint: str | None = None,
        *stock: Any,
        **options: Any,
    ) -> tuple[list[RuntimeLimit], ...]:
        """The defaults and the own limits of an endpoint; the commands ask for them."""
        self.complete(app)
        if not endpoint or not self.is_configured(endpoint, blueprint):
            return super().resolve_limits(app, endpoint, blueprint, *stock, **options)
        name = get_qualified_name(app.view_functions[endpoint])
        shared, own = self.at_callable(
            app, endpoint, blueprint, name, method="GET", yields=lambda _: True
        )
        defaults = [limit for limit in shared if limit in self._default_limits]
        return list(itertools.chain(*defaults)), list(itertools.chain(*own))

    def _decorated(self, name: str) -> Iterable[Limit]:
        if self._route_exemptions.get(name, ExemptionScope.NONE):
            return ()
        return self._decorated_limits.get(name, ())

    def _of_blueprint(self, app: flask.Flask, blueprint: str | None) -> Iterable[Limit]:
        """A blueprint's definitions and its ancestors', unless it overrides or is exempt.

        Decorators' are filed by the last part of its name, a policy's by all of it.
        """
        instance = app.blueprints.get(blueprint) if blueprint else None
        if instance is None or not blueprint:
            return ()
        exemption, ancestors = self._blueprint_exemption_scope(app, blueprint)
        if exemption & ~(ExemptionScope.DEFAULT | ExemptionScope.APPLICATION):
            return ()
        own = (
            *self._blueprint_limits.get(instance.name, ()),
            *self._configured.of_blueprint(blueprint),
        )
        overridden = own and all(limit.override_defaults for limit in own)
        scope = self._blueprint_exemptions.get(instance.name, ExemptionScope.NONE)
        if overridden or scope & ExemptionScope.ANCESTORS:
            return own
        parts = [part for part in dict.fromkeys(blueprint.split(".")) if part not in ancestors]
        decorated = [limit for part in parts for limit in self._blueprint_limits.get(part, ())]
        return [*decorated, *self._configured.reaching(blueprint, exempt=ancestors)]

    def _admits_defaults(
        self,
        own: list[Limit],
        app: flask.Flask,
        endpoint: str,
        blueprint: str | None,
        method: str,
    ) -> bool:
        """Defaults apply where no limit of the view's own overrides them for this method.

        A plan is none of the view's own, unless it says that it overrides.
        """
        if self.exemption_scope(app, endpoint, blueprint) & ExemptionScope.DEFAULT:
            return False
        own = [limit for limit in own if limit.override_defaults or not is_of_plan(limit)]
        none_for_method = all(
            limit.methods is not None and method.lower() not in limit.methods for limit in own
        )
        inside = self._configured.inside_plans(endpoint, blueprint)
        overriding = any(limit.override_defaults or limit in inside for limit in own)
        return none_for_method or not overriding


def _check_names(limits: Iterable[Limit]) -> None:
    """Raise ``ConfigurationError`` for a name that two limits have which apply together."""
    named: dict[str, Limit] = {}
    for limit in limits:
        name = getattr(limit, "name", "")
        other = named.setdefault(name, limit) if name else limit
        if _statement(other) != _statement(limit):
            raise ConfigurationError(
                f"limit {limit.limit_provider!r}, name: found {name!r}, which is also the name of "
                f"{other.limit_provider!r}. Limits that apply together need names of their own."
            )


def _statement(limit: Limit) -> tuple[Any, ...]:
    """What is written of a limit: a function that makes views may state one several times."""
    functions = (limit.limit_provider, limit.key_function)
    return (
        *(getattr(each, "__code__", each) for each in functions),
        getattr(limit, "options", None),
    )
