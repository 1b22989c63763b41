"""Limits by configuration: from a policy to definitions on the extension's manager.

A view that only the configuration limits gets a wrapper like a decorated one, so that its limits,
too, are decided after all ``before_request`` functions, when it is known who calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import flask
import flask_limiter
from limits import RateLimitItem

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import GUARDS
from ratelimit_ext.policy import did_you_mean, identities_used, load_policy, plan_sentence
from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.policy import Policy
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.web.deciding import DecidingLimiter
from ratelimit_ext.web.definitions import ApplicationLimit, Limit, RouteLimit
from ratelimit_ext.web.item import PLAIN, Keywords
from ratelimit_ext.web.limit_string import items_of

POLICY_FILE = "RATELIMIT_POLICY_FILE"
BLUEPRINTS = "RATELIMIT_BLUEPRINTS"


def rates(text: str) -> list[tuple[int, int]]:
    """Amount and period in microseconds of each limit in the string."""
    return [(item.amount, item.get_expiry() * 1_000_000) for item in items_of(text, PLAIN)]


def configured_policy(config: Mapping[str, Any], default_strategy: str | None) -> Policy | None:
    """The policy that an application's configuration names; ``None`` where it names none.

    ``default_strategy`` is the one of limits that name none.
    """
    file, blueprints = config.get(POLICY_FILE), config.get(BLUEPRINTS)
    if not file and not blueprints:
        return None
    return load_policy(
        file=file or None, blueprints=blueprints, parse=rates, default_strategy=default_strategy
    )


class Configuration:
    """A policy on an extension: adds the definitions, and checks the names it uses."""

    def __init__(self, policy: Policy, limiter: DecidingLimiter) -> None:
        self._policy = policy
        self._limiter = limiter
        self._plans: list[RouteLimit] = []
        self._targets: dict[str, list[RouteLimit]] = {}
        self._unknown_until_first_request = True

    def apply(self) -> None:
        """Add every limit of the policy. Raises ``ConfigurationError`` for a name nobody knows."""
        self._check_identities()
        policy, manager = self._policy, self._limiter.limit_manager
        for limit in policy.application:
            manager.add_application_limit(self._application_limit(limit))
        for limit in policy.default:
            manager.add_default_limit(self._default_limit(limit))
        for name, limits in policy.blueprints.items():
            manager.add_configured_blueprint(name, map(self._route_limit, limits))
        for endpoint, limits in policy.routes.items():
            manager.add_configured_endpoint(endpoint, map(self._route_limit, limits))
        self._plans = self._plan_limits()
        for name in policy.plan_blueprints:
            manager.add_configured_blueprint(name, self._plans_at(name))
        for endpoint in policy.plan_routes:
            manager.add_configured_endpoint(endpoint, self._plans_at(endpoint))
        # Made now, so that what cannot be carried out stops the start, too.
        self._targets = {name: self._of_target(name) for name in policy.target_places}

    def settle_names(self, app: flask.Flask) -> None:
        """Check that every blueprint and endpoint exists, once all are registered, and add the
        limits of what may be either."""
        if not self._unknown_until_first_request:
            return
        self._check_names(app)
        manager = self._limiter.limit_manager
        for name, limits in self._targets.items():
            if name in app.blueprints:
                manager.add_configured_blueprint(name, limits)
            else:
                manager.add_configured_endpoint(name, limits)
        self._unknown_until_first_request = False

    def _check_names(self, app: flask.Flask) -> None:
        # By its whole name: with the last part alone, nobody could tell what lies around it.
        blueprints, endpoints = app.blueprints, app.view_functions
        policy, either = self._policy, {**blueprints, **endpoints}
        mistakes = [
            f"{place}: there is no blueprint {name!r}; {_registered(name, blueprints)}"
            for name, place in _places(policy.blueprints, policy.plan_blueprints)
            if name not in blueprints
        ]
        mistakes += [
            f"{place}: there is no endpoint {name!r}; {_registered(name, endpoints)}"
            for name, place in _places(policy.routes, policy.plan_routes)
            if name not in endpoints
        ]
        mistakes += [
            f"{place.located}: {name!r} is neither blueprint nor endpoint; "
            f"{_registered(name, either)}"
            for name, places in policy.target_places.items()
            if name not in either
            for place in places
        ]
        if mistakes:
            raise ConfigurationError("\n".join(mistakes))

    def _check_identities(self) -> None:
        known = self._limiter.identities
        mistakes = [
            f"{source}: key is {name!r}, and nobody registered this identity; known: "
            f'{_listed(known)}. Register it with @limiter.identity("{name}") before init_app.'
            for name, sources in identities_used(self._policy).items()
            if name not in known
            for source in sources
        ]
        uses_plans = {
            **self._policy.plan_blueprints,
            **self._policy.plan_routes,
            **self._policy.plan_targets,
        }
        if uses_plans and self._limiter.plan_of_request is None:
            mistakes += [
                f"{place}: plans = true, and nobody says which plan a caller has. Register a "
                "function that answers with its name: @limiter.plan_loader before init_app."
                for place in uses_plans.values()
            ]
        if mistakes:
            raise ConfigurationError("\n".join(mistakes))

    # -- definitions -------------------------------------------------------------------------

    def _identity(self, limit: PolicyLimit) -> Callable[[], str]:
        if limit.key is None:
            return self._limiter._key_func
        return self._limiter.identities[limit.key] if isinstance(limit.key, str) else limit.key

    def _common(self, limit: PolicyLimit) -> dict[str, Any]:
        """What every kind of definition takes. Refuses what the storage cannot carry out."""
        keywords = _keywords(limit)
        for item in items_of(limit.limit, keywords):
            self._limiter.check_storage(item)
        return {
            "limit_provider": limit.limit,
            "key_function": self._identity(limit),
            "per_method": limit.per_method,
            "methods": limit.methods,
            "error_message": limit.error_message,
            "exempt_when": limit.exempt_when,
            "deduct_when": limit.deduct_when,
            "on_breach": limit.on_breach,
            "cost": limit.cost,
            **keywords._asdict(),
        }

    def _application_limit(self, limit: PolicyLimit) -> flask_limiter.ApplicationLimit:
        definition = ApplicationLimit(**self._common(limit), scope=limit.scope or "global")
        return definition.bind(self._limiter)

    def _default_limit(self, limit: PolicyLimit) -> flask_limiter.Limit:
        definition = Limit(**self._common(limit), scope=limit.scope, shared=limit.shared)
        return definition.bind(self._limiter)

    def _route_limit(self, limit: PolicyLimit) -> RouteLimit:
        return RouteLimit(
            **self._common(limit),
            limiter=self._limiter,
            scope=limit.scope,
            shared=limit.shared,
            override_defaults=limit.override_defaults,
        )

    def _of_target(self, name: str) -> list[RouteLimit]:
        limits = [self._route_limit(limit) for limit in self._policy.targets.get(name, ())]
        return [*limits, *self._plans_at(name)] if name in self._policy.plan_targets else limits

    def _plans_at(self, name: str) -> list[RouteLimit]:
        """The definitions of the plans for a blueprint or endpoint, equal wherever they stand, so
        that blueprints that Flask-Limiter takes for one have them once.

        Flask-Limiter lets a nested blueprint override what is around it only where each of its
        limits does, so beside one that does, the plans do.
        """
        if name not in self._policy.overriding:
            return self._plans
        return [
            dataclasses.replace(plan, limiter=self._limiter, override_defaults=True)
            for plan in self._plans
        ]

    def _plan_limits(self) -> list[RouteLimit]:
        """A definition per limit of each plan, which applies to the callers of that plan."""
        return [
            self._plan_limit(plan, limit)
            for plan in self._policy.plans.values()
            for limit in plan.limits
        ]

    def _present_plan(self) -> str:
        """The caller's plan; ``ConfigurationError`` for one that the policy does not have."""
        name = self._limiter.present_plan()
        self._policy.plan(name)
        return name

    def _plan_limit(self, plan: Plan, limit: PolicyLimit) -> RouteLimit:
        policy, limiter = self._policy, self._limiter
        keywords = _keywords(limit)
        items = items_of(limit.limit, keywords)

        def applicable(name: str) -> tuple[RateLimitItem, ...]:
            return items if name == plan.name else ()

        definition = self._route_limit(limit)
        sentence = limit.error_message
        if sentence is None and limit.strategy not in GUARDS:
            sentence = plan_sentence(plan, limit, policy.next_plan(plan))
        return dataclasses.replace(
            definition,
            limiter=limiter,
            asks=self._present_plan,
            items=applicable,
            error_message=sentence,
        )


def _keywords(limit: PolicyLimit) -> Keywords:
    return Keywords(
        strategy=limit.strategy,
        burst=limit.burst,
        unit=limit.unit,
        name=limit.name,
        mode=limit.mode,
        anchor=limit.anchor,
        timezone=limit.timezone,
        multiple=limit.multiple,
    )


def _places(
    limits: Mapping[str, tuple[PolicyLimit, ...]], plans: Mapping[str, str]
) -> Iterable[tuple[str, str]]:
    """Every name with the first place that mentions it."""
    places = {name: entries[0].source for name, entries in limits.items() if entries}
    return {**plans, **places}.items()


def _registered(name: str, known: Collection[str]) -> str:
    return f"registered: {_listed(known)}.{did_you_mean(name, known)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(repr, names))) or "none"
