"""A policy while it is being read: what both inputs give, not yet checked against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ratelimit_ext.policy.layers import layered, once
from ratelimit_ext.policy.limit_reader import Placed
from ratelimit_ext.policy.mistakes import Mistakes
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.policy import Policy
from ratelimit_ext.policy.shared_buckets import check_buckets

Lists = defaultdict[str, list[Placed]]


def _lists() -> Lists:
    return defaultdict(list)


@dataclass(slots=True, eq=False)
class Draft:
    """Limits with their places. The same target named twice collects the limits of both."""

    application: list[Placed] = field(default_factory=list)
    default: list[Placed] = field(default_factory=list)
    blueprints: Lists = field(default_factory=_lists)
    routes: Lists = field(default_factory=_lists)
    targets: Lists = field(default_factory=_lists)
    plans: dict[str, Plan] = field(default_factory=dict)
    plan_blueprints: dict[str, Place] = field(default_factory=dict)
    plan_routes: dict[str, Place] = field(default_factory=dict)
    plan_targets: dict[str, Place] = field(default_factory=dict)

    def check_buckets(self, strategy: str | None, mistakes: Mistakes) -> None:
        """Note limits that would be counted as one. A target may be a blueprint or a route."""
        check_buckets(self.application, strategy, mistakes)
        check_buckets(self.default, strategy, mistakes)
        for lists in (self.blueprints, self.routes):
            for name, placed in lists.items():
                together = [*placed, *self.targets.get(name, ())]
                check_buckets(together, strategy, mistakes)
        for name, placed in self.targets.items():
            if name not in self.blueprints and name not in self.routes:
                check_buckets(placed, strategy, mistakes)

    def check_plans(self, places: Mapping[str, Place], mistakes: Mistakes) -> None:
        """Note plans that would apply nowhere, and places that ask for plans where none are.

        ``places`` are those of all plans, the unsound ones too.
        """
        asking = [*self.plan_blueprints.values(), *self.plan_routes.values()]
        asking += self.plan_targets.values()
        if not places:
            for place in asking:
                mistakes.add(
                    place,
                    "found true, but there is no plan. Add a table [plans.NAME] to the policy "
                    "file, or remove the key.",
                )
        elif not asking:
            mistakes.add(
                next(iter(places.values())),
                "the plans would apply nowhere. Write plans = true in the table of a blueprint, "
                "such as [blueprints.chat].",
            )

    def policy(self) -> Policy:
        """The finished value."""
        lists = (self.blueprints, self.routes, self.targets)
        asking = (self.plan_blueprints, self.plan_routes, self.plan_targets)
        limited = {name for names in (*lists, *asking) for name in names}
        blueprints, routes, targets = (layered(named, limited) for named in lists)
        plan_blueprints, plan_routes, plan_targets = once(asking, lists)
        return Policy(
            application=tuple(entry.limit for entry in self.application),
            default=tuple(entry.limit for entry in self.default),
            blueprints=blueprints,
            routes=routes,
            targets=targets,
            plans=MappingProxyType(dict(self.plans)),
            plan_blueprints=plan_blueprints,
            plan_routes=plan_routes,
            plan_targets=plan_targets,
        )
