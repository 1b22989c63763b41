"""A policy while it is being read: what both inputs give, not yet checked against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ratelimit_ext.policy.group import Group
from ratelimit_ext.policy.limit_reader import Placed
from ratelimit_ext.policy.nesting import Layers
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.plans_asked import PlansAsked
from ratelimit_ext.policy.policy import Policy
from ratelimit_ext.policy.uses import Kind, Name, Uses

Lists = defaultdict[str, list[Placed]]


def _lists() -> Lists:
    return defaultdict(list)


@dataclass(slots=True, eq=False)
class Draft:
    """Limits with their places. The same target named twice collects the limits of both.

    ``target_places`` are where targets are named, in ``app.config`` or as members of groups.
    """

    application: list[Placed] = field(default_factory=list)
    default: list[Placed] = field(default_factory=list)
    blueprints: Lists = field(default_factory=_lists)
    routes: Lists = field(default_factory=_lists)
    targets: Lists = field(default_factory=_lists)
    groups: list[Group] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    plan_blueprints: dict[str, PlansAsked] = field(default_factory=dict)
    plan_routes: dict[str, PlansAsked] = field(default_factory=dict)
    plan_targets: dict[str, PlansAsked] = field(default_factory=dict)
    target_places: dict[str, list[Place]] = field(default_factory=dict)

    def add_target(self, name: str, place: Place) -> None:
        """Note that a blueprint or endpoint is named here, whether what is said of it is sound."""
        self.target_places.setdefault(name, []).append(place)

    def add_group(self, group: Group) -> None:
        """Add a group, whose members are targets."""
        self.groups.append(group)
        for name, place in group.members.items():
            self.add_target(name, place)
            if group.plans is not None:
                self.plan_targets.setdefault(name, group.plans)

    def policy(self) -> Policy:
        """The finished value."""
        layers = self.layers()
        plan_blueprints, plan_routes, plan_targets = self._asking_once(layers)
        return Policy(
            application=tuple(entry.limit for entry in self.application),
            default=tuple(entry.limit for entry in self.default),
            blueprints=layers.layered(self.blueprints),
            routes=layers.layered(self.routes),
            targets=layers.layered(self.targets_by_name(layers)),
            target_places=MappingProxyType(
                {name: tuple(places) for name, places in self.target_places.items()}
            ),
            overriding=layers.overriding,
            plans=MappingProxyType(dict(self.plans)),
            plan_blueprints=plan_blueprints,
            plan_routes=plan_routes,
            plan_targets=plan_targets,
            uses=self._uses(),
        )

    def _uses(self) -> Uses:
        """The names that the application has to know, each where it is written first."""
        kinds: tuple[tuple[Kind, Lists, dict[str, PlansAsked]], ...] = (
            ("blueprint", self.blueprints, self.plan_blueprints),
            ("endpoint", self.routes, self.plan_routes),
        )
        targets = []
        for kind, limits, plans in kinds:
            places = {name: asked.place.around(1) for name, asked in plans.items()}
            places.update(
                {name: placed[0].place.around(2) for name, placed in limits.items() if placed}
            )
            targets += [Name(kind, name, place) for name, place in places.items()]
        for name, places_of_target in self.target_places.items():
            targets += [Name("either", name, place) for place in places_of_target]
        groups = [group.limits for group in self.groups]
        named = [*self.blueprints.values(), *self.routes.values(), *self.targets.values(), *groups]
        lists = (self.application, self.default, *named)
        limits_of_places = [entry.limit for entries in lists for entry in entries]
        limits_of_plans = [limit for plan in self.plans.values() for limit in plan.limits]
        asking = [*self.plan_blueprints.values(), *self.plan_routes.values()]
        asking += self.plan_targets.values()
        return Uses(
            targets=tuple(targets),
            identities=tuple(
                (limit.key, limit.place.at("key"))
                for limit in (*limits_of_places, *limits_of_plans)
                if isinstance(limit.key, str) and limit.place is not None
            ),
            plans=tuple(dict.fromkeys(asked.place for asked in asking)),
        )

    def limited(self) -> dict[str, None]:
        """Every name with limits or plans."""
        names = [*self.blueprints, *self.routes, *self.targets]
        names += [*self.plan_blueprints, *self.plan_routes, *self.plan_targets]
        names += [name for group in self.groups for name in group.members]
        return dict.fromkeys(names)

    def layers(self) -> Layers:
        """Which blueprints reach into which names."""
        lists: list[Mapping[str, Sequence[Placed]]] = [self.blueprints, self.routes, self.targets]
        lists += [dict.fromkeys(group.members, group.limits) for group in self.groups]
        return Layers(lists, self.limited())

    def targets_by_name(self, layers: Layers) -> Lists:
        """The targets with the limits of their groups, none of which is charged twice."""
        targets = _lists()
        targets.update({name: list(placed) for name, placed in self.targets.items()})
        for group in self.groups:
            for name in layers.once(group.members, group.members):
                targets[name] += group.limits
        return targets

    def _asking_once(self, layers: Layers) -> list[Mapping[str, str]]:
        """What asks for plans, each with the place that does, so that no plan is charged twice."""
        blueprints, routes = self.plan_blueprints, self.plan_routes
        stated = {*blueprints, *routes}
        targets = {name: at for name, at in self.plan_targets.items() if name not in stated}
        asking = {*stated, *targets}
        kept = (
            layers.once(blueprints, asking),
            layers.once(routes, asking),
            layers.once(targets, asking),
        )
        return [MappingProxyType({n: str(at.place) for n, at in names.items()}) for names in kept]
