"""A policy while it is being read: what both inputs give, not yet checked against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ratelimit_ext.policy.limit_reader import Placed
from ratelimit_ext.policy.mistakes import Mistakes
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.policy import Limits, Policy
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
        return Policy(
            application=_limits(self.application),
            default=_limits(self.default),
            blueprints=_by_name(self.blueprints),
            routes=_by_name(self.routes),
            targets=_by_name(self.targets),
            plans=MappingProxyType(dict(self.plans)),
            plan_blueprints=_sources(self.plan_blueprints),
            plan_routes=_sources(self.plan_routes),
            plan_targets=_sources(self.plan_targets),
        )


def _limits(placed: Iterable[Placed]) -> Limits:
    return tuple(limit for limit, _ in placed)


def _by_name(lists: Lists) -> Mapping[str, Limits]:
    return MappingProxyType({name: _limits(placed) for name, placed in lists.items()})


def _sources(places: Mapping[str, Place]) -> Mapping[str, str]:
    return MappingProxyType({name: str(place) for name, place in places.items()})
