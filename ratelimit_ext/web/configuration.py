"""Limits by configuration: from a policy to definitions on the extension's manager.

A view that only the configuration limits gets a wrapper like a decorated one, so that its limits,
too, are decided after all ``before_request`` functions, when it is known who calls.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import flask
import flask_limiter
from limits import RateLimitItem

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit_string import states_guard
from ratelimit_ext.policy import (
    Mistakes,
    Plan,
    Policy,
    PolicyLimit,
    Uses,
    load_policy,
    plan_sentence,
)
from ratelimit_ext.web.deciding import DecidingLimiter
from ratelimit_ext.web.definitions import ApplicationLimit, Limit, RouteLimit
from ratelimit_ext.web.limits_adapter import items_of

POLICY_FILE = "RATELIMIT_POLICY_FILE"
BLUEPRINTS = "RATELIMIT_BLUEPRINTS"


def configured_policy(
    config: Mapping[str, Any],
    default_strategy: str | None,
    *,
    file: str | os.PathLike[str] | None = None,
    check: Callable[[Uses, Mistakes], None],
) -> Policy | None:
    """The policy that an application's configuration names; ``None`` where it names none.

    ``default_strategy`` is the one of limits that name none, ``file`` replaces the one of the
    configuration, and ``check`` adds mistakes in names.
    """
    file, blueprints = file or config.get(POLICY_FILE), config.get(BLUEPRINTS)
    if not file and not blueprints:
        return None
    return load_policy(
        file=file or None,
        blueprints=blueprints,
        default_strategy=default_strategy,
        check=check,
    )


class Configuration:
    """A policy on an extension: adds the definitions, and checks the names it uses."""

    def __init__(self, policy: Policy, limiter: DecidingLimiter) -> None:
        self._policy = policy
        self._limiter = limiter
        self._plans: list[RouteLimit] = []
        self._targets: dict[str, list[RouteLimit]] = {}
        self._is_complete = False

    def apply(self) -> None:
        """Add every limit of the policy."""
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

    def check_targets(self, app: flask.Flask) -> None:
        """Raise ``ConfigurationError`` for blueprints and endpoints that are not registered."""
        mistakes = Mistakes()
        self._policy.uses.check_targets(app.blueprints, app.view_functions, mistakes)
        mistakes.raise_if_any()

    def complete(self, app: flask.Flask) -> None:
        """Add the limits of what may be a blueprint or an endpoint, once all are registered.

        Names that are unknown now have no views. They are logged: an error here would be a 500 of
        every view, and all other limits can be applied.
        """
        if self._is_complete:
            return
        self._is_complete = True
        try:
            self.check_targets(app)
        except ConfigurationError as error:
            app.logger.error(
                "The policy names what the application does not have; all its other limits apply. "
                "Call limiter.check_policy(app) at the start to stop there. %s",
                error,
            )
        manager = self._limiter.limit_manager
        for name, limits in self._targets.items():
            if name in app.blueprints:
                manager.add_configured_blueprint(name, limits)
            else:
                manager.add_configured_endpoint(name, limits)

    # -- definitions -------------------------------------------------------------------------

    def _identity(self, limit: PolicyLimit) -> Callable[[], str]:
        if limit.key is None:
            return self._limiter._key_func
        return self._limiter.identities[limit.key] if isinstance(limit.key, str) else limit.key

    def _common(self, limit: PolicyLimit) -> dict[str, Any]:
        """What every kind of definition takes. Refuses what the storage cannot carry out."""
        for item in items_of(limit.text, limit.options):
            self._limiter.check_storage(item)
        return {
            "limit_provider": limit.text,
            "key_function": self._identity(limit),
            "per_method": limit.per_method,
            "methods": limit.methods,
            "error_message": limit.error_message,
            "exempt_when": limit.exempt_when,
            "deduct_when": limit.deduct_when,
            "on_breach": limit.on_breach,
            "cost": limit.cost,
            **dataclasses.asdict(limit.options),
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
        items = items_of(limit.text, limit.options)

        def applicable(name: str) -> tuple[RateLimitItem, ...]:
            return items if name == plan.name else ()

        definition = self._route_limit(limit)
        sentence = limit.error_message
        if sentence is None and not states_guard(limit.text, limit.options):
            sentence = plan_sentence(plan, limit, policy.next_plan(plan))
        return dataclasses.replace(
            definition,
            limiter=limiter,
            asks=self._present_plan,
            items=applicable,
            plan=plan.name,
            error_message=sentence,
        )
