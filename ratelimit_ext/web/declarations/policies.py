"""Policies: loaded from a file, and made into the definitions of an application."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import flask
import flask_limiter

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import OPTION_NAMES, LimitOptions
from ratelimit_ext.core.limit_string import check_lease, lease_bound, states_guard
from ratelimit_ext.policy import (
    Mistakes,
    Plan,
    Policy,
    PolicyLimit,
    amount_sentence,
    load_policy,
    plan_sentence,
)
from ratelimit_ext.policy.policy import unknown_identity
from ratelimit_ext.web.declarations.callbacks import Callbacks, CheckedPolicy
from ratelimit_ext.web.declarations.definitions import ApplicationLimit, Limit, RouteLimit
from ratelimit_ext.web.declarations.manager import Manager

FILE: Final = "RATELIMIT_POLICY_FILE"
#: What a definition copies from a limit of a policy.
_COPIED: Final = ("per_method", "methods", "error_message", "deduct_when", "on_breach", "cost")


@dataclasses.dataclass(eq=False)
class Policies:
    """The policies of an application: loads and checks them, and applies the configured one.

    ``manager`` has the application's limits. ``check_storage`` raises ``ConfigurationError`` for a
    limit that the storage cannot carry out. ``current_plan`` is that of the current caller.
    """

    settings: flask_limiter.Limiter
    manager: Manager
    callbacks: Callbacks
    check_storage: Callable[[str, LimitOptions], None]
    lease_s: float
    current_plan: Callable[[], str]
    #: The application's policy; ``None`` without one.
    policy: Policy | None = None
    _applied: PolicyLimits | None = None

    def __post_init__(self) -> None:
        #: The limits without those of a policy.
        self._others = self.manager.copy()

    def apply(self, app: flask.Flask) -> None:
        """Load the application's policy and add its limits, if it has one. Raises
        ``ConfigurationError`` with every mistake."""
        self.policy = self._load(app, None, self._check)
        if self.policy is not None:
            self._applied = PolicyLimits(self.policy, self, self.manager)
            self._applied.apply()

    def check_limit(self, text: object, options: LimitOptions) -> None:
        """Raise ``ConfigurationError`` for a limit that the storage cannot carry out, that does not
        fit the lease, or that names an unknown identity. What the string of a function states is
        checked at the request."""
        where = text if isinstance(text, str) else getattr(text, "__name__", repr(text))
        for word in ("priority", "fair"):
            name, known = getattr(options, word), self.callbacks.identities
            if isinstance(name, str) and name not in known:
                raise ConfigurationError(f"{where}, {word}: {unknown_identity(name, known)}")
        if bound := lease_bound(text, options):
            check_lease(where, *bound, self.lease_s)
        if isinstance(text, str):
            self.check_storage(text, options)

    def complete(self, app: flask.Flask) -> None:
        """Add the limits whose names are known only when all blueprints are registered."""
        if self._applied is not None:
            self._applied.complete(app)

    def check_targets(self, app: flask.Flask) -> None:
        if self._applied is not None:
            self._applied.check_targets(app)

    def check_file(self, app: flask.Flask, file: str | os.PathLike[str]) -> Policy:
        def check(policy: Policy, mistakes: Mistakes) -> None:
            self._check(policy, mistakes)
            policy.check_targets(app.blueprints, app.view_functions, mistakes)

        policy = self._load(app, file, check)
        assert policy is not None
        return policy

    def checked(self, app: flask.Flask, file: Path | None) -> CheckedPolicy:
        if (checker := self.callbacks.policy_checker) is not None:
            return checker(file)
        configured = app.config.get(FILE)
        if file is None and not configured:
            raise ConfigurationError(f"There is no policy; pass a file or set {FILE}.")
        path = file or Path(configured or "")
        return CheckedPolicy(self.check_file(app, path), path)

    def manager_with(self, app: flask.Flask, file: Path) -> Manager:
        """Return the application's limits with the policy of this file in place of its own. Raises
        ``ConfigurationError`` as :meth:`checked`."""
        manager = self._others.copy()
        limits = PolicyLimits(self.checked(app, file).policy, self, manager)
        limits.apply()
        limits.complete(app)
        return manager

    def _load(
        self,
        app: flask.Flask,
        file: str | os.PathLike[str] | None,
        check: Callable[[Policy, Mistakes], None],
    ) -> Policy | None:
        """Return the policy of the configuration, with ``file`` instead of the configured one.
        ``None`` if nothing is configured. See :func:`load_policy`."""
        in_code = None if file else app.config.get("RATELIMIT_POLICY") or None
        file = file or app.config.get(FILE) or None
        blueprints = app.config.get("RATELIMIT_BLUEPRINTS")
        if not (file or in_code or blueprints):
            return None
        return load_policy(
            file=file,
            policy=in_code,
            blueprints=blueprints,
            default_strategy=self.settings._strategy,
            plan_keywords=self.callbacks.plan_keywords,
            limit_keywords={
                name: keyword.check for name, keyword in self.callbacks.limit_keywords.items()
            },
            check=check,
        )

    def _check(self, policy: Policy, mistakes: Mistakes) -> None:
        if self.callbacks.policy_rules is not None and not mistakes:
            for place, sentence in self.callbacks.policy_rules(policy):
                mistakes.add(place, sentence)
        policy.check_uses(
            self.callbacks.identities,
            mistakes,
            knows_plans=self.callbacks.plan_loader is not None,
            knows_amounts=self.callbacks.amount_loader is not None,
            lease_s=self.lease_s,
        )


class PolicyLimits:
    """The definitions of a policy, and the checks of the names in it.

    A view that only a policy limits gets the wrapper of a decorator, so that its limits are decided
    after all ``before_request`` functions too.
    """

    def __init__(self, policy: Policy, policies: Policies, manager: Manager) -> None:
        self.policy = policy
        self._policies = policies
        self._limiter = policies.settings
        self._manager = manager
        self._plans: list[RouteLimit] = []
        self._targets: dict[str, list[RouteLimit]] = {}
        self._is_complete = False
        self._completing = threading.Lock()

    def apply(self) -> None:
        policy, limiter, manager = self.policy, self._limiter, self._manager
        for limit in policy.application:
            application = ApplicationLimit(**self._keywords(limit), scope=limit.scope or "global")
            manager.add_application_limit(application.bind(limiter))
        for limit in policy.default:
            default = Limit(**self._keywords(limit), scope=limit.scope, shared=limit.shared)
            manager.add_default_limit(default.bind(limiter))
        for name, limits in policy.blueprints.items():
            manager.add_policy_blueprint(name, self._route_limits(limits))
        for endpoint, limits in policy.routes.items():
            manager.add_policy_endpoint(endpoint, self._route_limits(limits))
        plans = policy.plans.values()
        self._plans = [self._plan_limit(plan, limit) for plan in plans for limit in plan.limits]
        for name in policy.plan_blueprints:
            manager.add_policy_blueprint(name, self._plans_at(name))
        for endpoint in policy.plan_routes:
            manager.add_policy_endpoint(endpoint, self._plans_at(endpoint))
        # Made now, so that a limit that the storage does not support stops the start.
        for name in policy.target_places:
            plan_limits = self._plans_at(name) if name in policy.plan_targets else []
            self._targets[name] = [*self._route_limits(policy.targets.get(name, ())), *plan_limits]

    def check_targets(self, app: flask.Flask) -> None:
        """Raise ``ConfigurationError`` for blueprints and endpoints that are not registered."""
        mistakes = Mistakes()
        self.policy.check_targets(app.blueprints, app.view_functions, mistakes)
        mistakes.raise_if_any()

    def complete(self, app: flask.Flask) -> None:
        """Add the limits of names that are blueprints or endpoints, once all are registered.

        Unknown names are logged: an error would make every request fail. Other limits apply.
        """
        if self._is_complete:
            return
        with self._completing:  # a request that comes meanwhile must not miss half of the limits
            if not self._is_complete:
                self._complete(app)
                self._is_complete = True

    def _complete(self, app: flask.Flask) -> None:
        try:
            self.check_targets(app)
        except ConfigurationError as error:
            app.logger.error(
                "The policy names unknown blueprints or endpoints; all its other limits apply. "
                "Call limiter.check_policy(app) at the start to stop there. %s",
                error,
            )
        manager = self._manager
        for name, limits in self._targets.items():
            if name in app.blueprints:
                manager.add_policy_blueprint(name, limits)
            else:
                manager.add_policy_endpoint(name, limits)

    def _keywords(self, limit: PolicyLimit) -> dict[str, Any]:
        """Return the keywords of every kind of definition. Raises ``ConfigurationError`` if the
        storage does not support the limit."""
        self._policies.check_limit(limit.text, limit.options)
        key = self._limiter._key_func if limit.key is None else limit.key
        callbacks, options = self._policies.callbacks, limit.options
        return {
            "limit_provider": limit.text,
            "key_function": callbacks.identity_function(key),
            **{name: getattr(limit, name) for name in _COPIED},
            "exempt_when": callbacks.condition(limit.exempt_when, limit.keywords),
            **{name: getattr(options, name) for name in OPTION_NAMES},
            "priority": callbacks.identity_function(options.priority),
            "fair": callbacks.identity_function(options.fair),
            "source": limit.place,
        }

    def _route_limit(self, limit: PolicyLimit, **plan: Any) -> RouteLimit:
        keywords = {
            **self._keywords(limit),
            "scope": limit.scope,
            "shared": limit.shared,
            "override_defaults": limit.override_defaults,
            "optional": limit.optional,
            "keywords": limit.keywords,
            **plan,
        }
        return RouteLimit(limiter=self._limiter, **keywords)

    def _route_limits(self, limits: Iterable[PolicyLimit]) -> list[RouteLimit]:
        return [self._route_limit(limit) for limit in limits]

    def _plan_limit(self, plan: Plan, limit: PolicyLimit) -> RouteLimit:
        keywords: dict[str, Any] = {"plan": plan.name, "plan_loader": self._policies.current_plan}
        if not states_guard(limit.text, limit.options):
            sentence = plan_sentence(plan, limit, self.policy.next_plan(plan))
            keywords |= {
                "plan_sentence": sentence,
                "amount_sentence": partial(amount_sentence, limit),
            }
        return self._route_limit(limit, **keywords)

    def _plans_at(self, name: str) -> list[RouteLimit]:
        """Return the limits of the plans, which override if other limits of this name do.

        Flask-Limiter lets a nested blueprint override those around it only if each of its limits
        does. Equal definitions are charged once.
        """
        if name not in self.policy.overriding:
            return self._plans
        return [
            dataclasses.replace(plan, limiter=self._limiter, override_defaults=True)
            for plan in self._plans
        ]
