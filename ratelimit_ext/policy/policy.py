"""The policy: which limits apply to which blueprint, route and plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ratelimit_ext.core.errors import ConfigurationError, did_you_mean
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.policy.uses import Uses

Limits = tuple[PolicyLimit, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that the configuration says about limits.

    ``blueprints`` go by name, ``routes`` by endpoint. ``targets`` come from ``app.config`` and from
    groups, and are one or the other, which only the application can tell; ``target_places`` are
    where they are named. ``overriding`` are the names whose limits replace what their blueprints
    have. ``plan_blueprints``, ``plan_routes`` and ``plan_targets`` are those that
    the caller's plan applies to, each with the place that says so. ``uses`` are the names that
    the application has to know.
    """

    application: Limits = ()
    default: Limits = ()
    blueprints: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    routes: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    targets: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    target_places: Mapping[str, tuple[Place, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    overriding: frozenset[str] = frozenset()
    plans: Mapping[str, Plan] = field(default_factory=lambda: MappingProxyType({}))
    plan_blueprints: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    plan_routes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    plan_targets: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    uses: Uses = field(default_factory=Uses, compare=False)

    def plan(self, name: str) -> Plan:
        """The plan of this name, or a :class:`ConfigurationError` that lists the names."""
        plan = self.plans.get(name)
        if plan is None:
            known = ", ".join(map(repr, self.plans)) or "none"
            raise ConfigurationError(
                f"there is no plan {name!r} in the policy; known: {known}."
                f"{did_you_mean(name, self.plans)}"
            )
        return plan

    def next_plan(self, plan: Plan) -> Plan | None:
        """The plan that one can change to for more."""
        return None if plan.next is None else self.plans.get(plan.next)

    def all_limits(self) -> Limits:
        """Every limit of the policy, those of the plans last; one of a group is one."""
        named = (*self.blueprints.values(), *self.routes.values(), *self.targets.values())
        of_plans = (plan.limits for plan in self.plans.values())
        lists = (self.application, self.default, *named, *of_plans)
        # At each member of a group, its limits may override or not, and are the same.
        limits = (limit for limits in lists for limit in limits)
        alike = {replace(limit, override_defaults=False): limit for limit in limits}
        return tuple(alike.values())
