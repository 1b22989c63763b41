"""Policies: loaded from a file, and made into the definitions of an application."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import flask
import flask_limiter

from ratelimit_ext.core.errors import ConfigurationError, not_allowed
from ratelimit_ext.core.limit import OPTION_NAMES, LimitOptions
from ratelimit_ext.core.limit_string import check_lease, lease_bound, states_guard
from ratelimit_ext.policy import load_policy
from ratelimit_ext.policy.errors import CodeLine, Mistakes, Place, unknown_identity
from ratelimit_ext.policy.plan_sentence import amount_sentence, plan_sentence
from ratelimit_ext.web.commands import is_checked
from ratelimit_ext.web.declarations.callbacks import Callbacks, CheckedPolicy
from ratelimit_ext.web.declarations.definitions import (
    ApplicationLimit,
    Limit,
    RouteLimit,
    groups_of,
    methods_called,
)
from ratelimit_ext.web.declarations.manager import Manager

if TYPE_CHECKING:
    from ratelimit_ext.policy.policy import Limits, Plan, Policy, PolicyLimit

FILE: Final = "RATELIMIT_POLICY_FILE"
UNKNOWN: Final = (
    "The policy names unknown blueprints or endpoints, or the application unknown groups; all "
    "other limits apply. Call limiter.check_policy(app) at the start to stop there. %s"
)
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
    _is_complete: bool = False

    def __post_init__(self) -> None:
        #: The limits without those of a policy.
        self._others = self.manager.copy()
        self._completing = threading.Lock()

    def apply(self, app: flask.Flask) -> None:
        """Load the application's policy and add its limits, if it has one. Raises
        ``ConfigurationError`` with every mistake."""
        self.policy = self._load(app, None, partial(self._check, app))
        if self.policy is None:
            self.check_targets(app)
        else:
            self._applied = PolicyLimits(self.policy, self, self.manager)

    def check_limit(self, text: object, options: LimitOptions) -> None:
        """Raise ``ConfigurationError`` for a limit that the storage cannot carry out, that does not
        fit the lease, or that names an unknown identity. What the string of a function states is
        checked at the request."""
        where = text if isinstance(text, str) else getattr(text, "__name__", repr(text))
        for word in ("priority", "fair"):
            name, identities = getattr(options, word), self.callbacks.identities
            if isinstance(name, str) and name not in identities:
                raise ConfigurationError(f"{where}, {word}: {unknown_identity(name, identities)}")
        if bound := lease_bound(text, options):
            check_lease(where, *bound, self.lease_s)
        if isinstance(text, str):
            self.check_storage(text, options)

    def complete(self, app: flask.Flask) -> None:
        """Add the limits of names that are blueprints or endpoints, once all are registered.

        Unknown names are logged: an error would make every request fail. Other limits apply.
        """
        if self._is_complete:
            return
        with self._completing:  # a request that comes meanwhile must not miss half of the limits
            if not self._is_complete:
                try:
                    self.check_targets(app)
                except ConfigurationError as error:
                    app.logger.error(UNKNOWN, error)
                if self._applied is not None:
                    self._applied.complete(app)
                self._is_complete = True

    def check_targets(self, app: flask.Flask) -> None:
        """Raise ``ConfigurationError`` for blueprints and endpoints that are not registered, and
        for groups that the policy does not have."""
        mistakes, named = Mistakes(), named_groups(app)
        if self.policy is not None:
            self.policy.check_targets(app.blueprints, app.view_functions, mistakes)
            self.policy.check_groups(named, mistakes)
        elif named and not is_checked():  # that command reads a policy itself
            name, source = next(iter(named.items()))
            mistakes.add(
                Place(CodeLine(source)),
                f"the group {name!r} needs a policy, and none is configured. Set {FILE} to a file "
                f"with [groups.{name}], or RATELIMIT_POLICY.",
            )
        mistakes.raise_if_any()

    def check(self, app: flask.Flask) -> None:
        """Do :meth:`check_targets`, and log the groups that nothing uses."""
        self.check_targets(app)
        if self.policy is not None:
            for sentence in self.policy.warnings(named_groups(app)):
                app.logger.warning("%s", sentence)

    def check_file(self, app: flask.Flask, file: str | os.PathLike[str]) -> Policy:
        def check(policy: Policy, mistakes: Mistakes) -> None:
            self._check(app, policy, mistakes)
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

    def manager_with(self, app: flask.Flask, policy: Policy) -> Manager:
        """Return the application's limits with this policy in place of its own."""
        manager = self._others.copy()
        PolicyLimits(policy, self, manager).complete(app)
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

    def _check(self, app: flask.Flask, policy: Policy, mistakes: Mistakes) -> None:
        if self.callbacks.policy_rules is not None and not mistakes:
            if not isinstance(rules := cast(Any, self.callbacks).policy_rules(policy), Iterable):
                allowed = not_allowed(rules, "places, each with a sentence; yield them")
                raise ConfigurationError(f"limiter.policy_rules: {allowed}")
            for place, sentence in rules:
                mistakes.add(place, sentence)
        identities, key_func = self.callbacks.identities, self.settings._key_func
        usual = [name for name, function in identities.items() if function is key_func]
        for limit in policy.all_limits():
            if limit.key is None and limit.options.fair in usual:
                sentence = "found what the limit counts already. Write a key, too."
                mistakes.add(limit.place.at("fair"), sentence)
        policy.check_uses(
            identities,
            mistakes,
            knows_plans=self.callbacks.plan_loader is not None,
            knows_amounts=self.callbacks.amount_loader is not None,
            lease_s=self.lease_s,
        )
        policy.check_groups(named_groups(app), mistakes)


def named_groups(app: flask.Flask) -> dict[str, str]:
    """Return the groups that views and blueprints of the application name, each with the place of a
    decorator."""
    views = app.view_functions.values()
    methods = chain.from_iterable(map(methods_called, views))
    return groups_of(*app.blueprints.values(), *views, *methods)


class PolicyLimits:
    """The definitions of a policy.

    A view that only a policy limits gets the wrapper of a decorator, so that its limits are decided
    after all ``before_request`` functions too.
    """

    def __init__(self, policy: Policy, policies: Policies, manager: Manager) -> None:
        """Make the definitions, so that a limit that the storage does not support stops the
        start, and add those whose names are known."""
        self.policy = policy
        self._policies = policies
        self._limiter = limiter = policies.settings
        self._manager = manager
        for limit in policy.application:
            application = ApplicationLimit(**self._keywords(limit), scope=limit.scope or "global")
            manager.add(manager._application_limits, [application.bind(limiter)])
        for limit in policy.default:
            default = Limit(**self._keywords(limit), scope=limit.scope, shared=limit.shared)
            manager.add(manager._default_limits, [default.bind(limiter)])
        all_plans = policy.plans.values()
        plans = [self._plan_limit(plan, limit) for plan in all_plans for limit in plan.limits]

        def limits(listed: Iterable[PolicyLimit], *, with_plans: bool) -> list[RouteLimit]:
            return [*map(self._route_limit, listed), *(plans if with_plans else ())]

        def named(
            by_name: Mapping[str, Limits], with_plans: Collection[str]
        ) -> dict[str, list[RouteLimit]]:
            return {
                name: limits(by_name.get(name, ()), with_plans=name in with_plans)
                for name in (*by_name, *with_plans)
            }

        for name, added in named(policy.blueprints, policy.plan_blueprints).items():
            manager.add_named(manager.policy_blueprints, name, added)
        for endpoint, added in named(policy.routes, policy.plan_routes).items():
            manager.add_named(manager.policy_endpoints, endpoint, added)
        for name, group in policy.groups.items():
            added = limits(group.limits, with_plans=group.plans is not None)
            manager.add_named(manager.groups, name, added)
        self._targets = named(
            dict.fromkeys(policy.target_places, ()) | {**policy.targets}, policy.plan_targets
        )

    def complete(self, app: flask.Flask) -> None:
        """Add the limits of names that are blueprints or endpoints, once all are registered."""
        manager = self._manager
        for name, limits in self._targets.items():
            is_blueprint = name in app.blueprints
            named = manager.policy_blueprints if is_blueprint else manager.policy_endpoints
            manager.add_named(named, name, limits)

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
            "replaces": limit.replaces and not plan,
            "optional": limit.optional,
            "keywords": limit.keywords,
            **plan,
        }
        return RouteLimit(limiter=self._limiter, **keywords)

    def _plan_limit(self, plan: Plan, limit: PolicyLimit) -> RouteLimit:
        keywords: dict[str, Any] = {"plan": plan.name, "plan_loader": self._policies.current_plan}
        if not states_guard(limit.text, limit.options):
            sentence = plan_sentence(plan, limit, self.policy.next_plan(plan))
            keywords |= {
                "plan_sentence": sentence,
                "amount_sentence": partial(amount_sentence, limit),
            }
        return self._route_limit(limit, **keywords)
