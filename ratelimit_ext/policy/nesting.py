"""What applies where: blueprints in blueprints, routes, groups and plans.

What is inside a blueprint applies beside what the blueprint has, unless it has
``override_defaults = true``. The manager applies that rule at requests. This module uses it to find
limits that apply together and cannot be distinguished.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.limit_string import lease_bound
from ratelimit_ext.policy.errors import NAME, NAME_ALLOWED, Mistakes, Place, dotted, unknown_key
from ratelimit_ext.policy.functions import NO_KEYWORDS, Checks
from ratelimit_ext.policy.policy import Group, Plan, Policy, PolicyLimit, Use, UseKind
from ratelimit_ext.policy.rules import check_buckets, check_limit, check_next

if TYPE_CHECKING:  # loads pydantic
    from ratelimit_ext.policy import schema

_T = TypeVar("_T")
_ByName: TypeAlias = Mapping[str, Sequence[PolicyLimit]]


def around(name: str) -> Iterator[str]:
    """Return the blueprints that a route or blueprint of this name can be in.

    >>> list(around("outer.inner.post"))
    ['outer', 'outer.inner']
    """
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


@dataclass(slots=True)
class _Named:
    """Blueprints, routes or targets: limits by name, and the places of ``plans = true``."""

    limits: defaultdict[str, list[PolicyLimit]] = field(default_factory=lambda: defaultdict(list))
    plans: dict[str, Place] = field(default_factory=dict)


class Nesting:
    """Collects the limits of both inputs, checks them together, and makes the policy.

    ``default_strategy`` is that of limits that name none; ``None`` if unknown. ``plan_keywords``
    and ``limit_keywords`` are the application's.
    """

    def __init__(
        self,
        default_strategy: str | None,
        mistakes: Mistakes,
        *,
        plan_keywords: Checks = NO_KEYWORDS,
        limit_keywords: Checks = NO_KEYWORDS,
    ) -> None:
        self._default_strategy = default_strategy
        self._mistakes = mistakes
        self._plan_keywords, self._limit_keywords = plan_keywords, limit_keywords
        self._application: list[PolicyLimit] = []
        self._default: list[PolicyLimit] = []
        self._blueprints, self._routes, self._targets = _Named(), _Named(), _Named()
        self._named = (self._blueprints, self._routes, self._targets)
        self._groups: dict[str, Group] = {}
        self._plans: dict[str, Plan] = {}
        #: The places of all plans, also of those with mistakes; ``None`` if unknown.
        self._plan_places: dict[str, Place] | None = {}
        self._target_places: dict[str, list[Place]] = {}

    # -- input ---------------------------------------------------------------------------------

    def add_document(self, document: schema.Document | None, place: Place) -> None:
        """Add a policy file; ``None`` for one that cannot be read."""
        if document is None:
            self._plan_places = None
            return
        self._application += self._limits(document.application, place.at("application"), "global")
        self._default += self._limits(document.default, place.at("default"), "/default")
        for name, blueprint, at in _entries(document.blueprints, place.at("blueprints")):
            self._add(self._blueprints, name, blueprint, at, f"/blueprint/{name}")
            for view, route, at_route in _entries(blueprint.routes, at.at("routes")):
                self._add(self._routes, f"{name}.{view}", route, at_route, None)
        for endpoint, route, at in _entries(document.routes, place.at("routes")):
            self._add(self._routes, endpoint, route, at, None)
        for name, group, at in _entries(document.groups, place.at("groups")):
            self._add_group(name, group, at)
        self._add_plans(document.plans, place.at("plans"))

    def add_targets(self, targets: schema.Targets | None, place: Place) -> None:
        """Add ``RATELIMIT_BLUEPRINTS`` of ``app.config``."""
        for name, table in ({} if targets is None else targets.root).items():
            self._target_places.setdefault(name, []).append(place.at(name))
            if table is not None:
                self._add(self._targets, name, table, place.at(name), f"/blueprint/{name}")

    def _add(
        self, named: _Named, name: str, table: schema.RouteTable, place: Place, scope: str | None
    ) -> None:
        if "limits" in table.model_fields_set:
            named.limits[name] += self._limits(table.limits, place.at("limits"), scope)
        # A mistaken value counts as true, so that no plan seems to apply nowhere because of it.
        if table.plans is not False:
            named.plans[name] = place.at("plans")

    def _add_group(self, name: str, table: schema.GroupTable, place: Place) -> None:
        self._check_name(name, place)
        members: dict[str, Place] = {}
        for position, member in enumerate(table.members or ()):
            at = place.at("members", position)
            if member in members:
                twice = f"found {shown(member)}, which is a member already. Remove one of them."
                self._mistakes.add(at, twice)
            elif member is not None:
                members[member] = at
        plans = None if table.plans is False else place.at("plans")
        if plans is None and "limits" not in table.model_fields_set:
            self._mistakes.add(
                place,
                "the group has neither limits nor plans. Write "
                f"[[{dotted(place.path)}.limits]] with a limit, or plans = true, or remove it.",
            )
        limits = self._limits(table.limits, place.at("limits"), f"/group/{name}")
        self._groups[name] = Group(place, tuple(limits), plans, tuple(members))
        for member, at in members.items():
            self._target_places.setdefault(member, []).append(at)
            if plans is not None:
                self._targets.plans.setdefault(member, plans)

    def _add_plans(self, tables: Mapping[str, schema.PlanTable] | None, place: Place) -> None:
        self._plan_places = {name: place.at(name) for name in tables or ()}
        following = {}
        for name, table, at in _entries(tables, place):
            self._check_name(name, at)
            keywords = self._keywords(table, at, self._plan_keywords)
            if table.next is not None:
                following[name] = table.next
            other = next((plan.name for plan in self._plans.values() if plan.default), None)
            if table.default and other is not None:
                twice = f"the plan {other!r} is the default already. Remove one."
                self._mistakes.add(at.at("default"), twice)
            limits = self._limits(table.limits, at.at("limits"), "/plans")
            check_buckets(limits, self._default_strategy, self._mistakes)
            self._plans[name] = Plan(
                name=name,
                title=table.title or name[0].upper() + name[1:],
                limits=tuple(limits),
                next=table.next,
                default=bool(table.default),
                price=table.price or "",
                upgrade_url=table.upgrade_url or "",
                keywords=MappingProxyType(keywords),
                place=at,
            )
        check_next(following, self._plan_places, self._mistakes)

    def _check_name(self, name: str, place: Place) -> None:
        if not re.fullmatch(NAME, name):
            self._mistakes.add(place, f"found {shown(name)}; allowed: {NAME_ALLOWED}.")

    def _limits(
        self, tables: Sequence[schema.LimitTable | None] | None, place: Place, scope: str | None
    ) -> list[PolicyLimit]:
        limits = []
        for position, table in enumerate(tables or ()):
            if table is None:
                continue
            at = place.at(position)
            keywords = self._keywords(table, at, self._limit_keywords)
            if table.limit is None:
                continue
            limit = table.policy_limit(at, scope, keywords)
            if table.shared is False and table.scope and "shared" in table.model_fields_set:
                self._mistakes.add(
                    at.at("shared"),
                    f"found false beside scope = {table.scope!r}, which names a shared bucket. "
                    "Remove one of the two.",
                )
            is_valid = table.strategy is not None or "strategy" not in table.model_fields_set
            check_limit(limit, self._default_strategy if is_valid else None, self._mistakes)
            if at not in self._mistakes:
                limits.append(limit)
        return limits

    def _keywords(self, table: schema.Table, place: Place, checks: Checks) -> dict[str, Any]:
        """Return the values of the application's keywords that are written; note other words."""
        given, written = dict[str, Any](), table.model_extra or {}
        for word in [word for word in written if word not in checks]:
            keys = (*type(table).model_fields, *checks)
            self._mistakes.add(place.at(word), unknown_key(word, written[word], keys))
        for word, check in checks.items():
            try:
                given |= {word: check(written[word])} if word in written else {}
            except ValueError as mistake:
                self._mistakes.add(place.at(word), mistake)
        return given

    # -- checks --------------------------------------------------------------------------------

    def check(self) -> None:
        """Note limits that apply together and cannot be distinguished, and plans without effect."""
        mistakes = self._mistakes
        check_buckets(self._application, self._default_strategy, mistakes)
        check_buckets(self._default, self._default_strategy, mistakes)
        of_plans = [limit for plan in self._plans.values() for limit in plan.limits]
        for group in self._groups.values():
            if not group.members:  # views name it
                beside = [*self._application, *(of_plans if group.plans else ())]
                check_buckets(group.limits, self._default_strategy, mistakes, beside=beside)
        for limits, plans_apply in self._together():
            beside = [*self._application, *of_plans] if plans_apply else self._application
            check_buckets(limits, self._default_strategy, mistakes, beside=beside)
        self._check_plans()

    def _together(self) -> Iterator[tuple[list[PolicyLimit], bool]]:
        """For each name, what its blueprints have and then its own; and whether plans apply."""
        targets = self._target_limits()
        blueprints, routes = self._blueprints.limits, self._routes.limits
        overriding = {  # one limit decides for all beside it
            name
            for named in (blueprints, routes, targets)
            for name, limits in named.items()
            if any(limit.replaces for limit in limits)
        }
        with_plans = {name for named in self._named for name in named.plans}
        for name in self._limited():
            outer = _reaching(name, overriding)
            inherited = [
                limit
                for blueprint in outer
                for limit in (*blueprints.get(blueprint, ()), *targets.get(blueprint, ()))
            ]
            plans_apply = not with_plans.isdisjoint((name, *outer))
            # A target may be either kind; a blueprint and a view of one name have nothing in common
            kinds = [named[name] for named in (blueprints, routes) if name in named]
            for of_kind in kinds or [[]]:
                limits = [*inherited, *of_kind, *targets.get(name, ())]
                yield [*{id(limit): limit for limit in limits}.values()], plans_apply

    def _check_plans(self) -> None:
        if self._plan_places is None:
            return
        groups = self._groups.values()
        places = [*self._plan_keys(), *(group.plans for group in groups if group.plans)]
        if not self._plan_places:
            for place in places:
                remedy = "Add a table [plans.NAME] to the policy file, or remove the key."
                self._mistakes.add(place, f"there is no plan to apply. {remedy}")
        elif not places:
            self._mistakes.add(
                next(iter(self._plan_places.values())),
                "the plans apply nowhere. Write plans = true in the table of a blueprint, such as "
                "[blueprints.chat].",
            )

    # -- the policy ----------------------------------------------------------------------------

    def policy(self) -> Policy:
        """Return the policy; complete if there are no mistakes."""

        def limits(named: _ByName) -> Mapping[str, tuple[PolicyLimit, ...]]:
            return MappingProxyType({name: tuple(listed) for name, listed in named.items()})

        return Policy(
            application=tuple(self._application),
            default=tuple(self._default),
            blueprints=limits(self._blueprints.limits),
            routes=limits(self._routes.limits),
            targets=limits(self._target_limits()),
            target_places=MappingProxyType(
                {name: tuple(places) for name, places in self._target_places.items()}
            ),
            groups=MappingProxyType(self._groups),
            plans=MappingProxyType(self._plans),
            plan_blueprints=frozenset(self._blueprints.plans),
            plan_routes=frozenset(self._routes.plans),
            plan_targets=frozenset(self._targets.plans),
            uses=tuple(self._uses()),
        )

    def _uses(self) -> Iterator[Use]:
        kinds: tuple[tuple[UseKind, _Named], ...] = (
            ("blueprint", self._blueprints),
            ("endpoint", self._routes),
        )
        for kind, named in kinds:
            places = {name: at.around(1) for name, at in named.plans.items()}
            for name, limits in named.limits.items():
                if limits:
                    places[name] = limits[0].place.around(2)
            yield from (Use(kind, name, place) for name, place in places.items())
        for name, at_target in self._target_places.items():
            yield from (Use("either", name, place) for place in at_target)
        yield from (Use("plan", "", place) for place in dict.fromkeys(self._plan_keys()))
        named_limits = chain.from_iterable(named.limits.values() for named in self._named)
        grouped = (group.limits for group in self._groups.values())
        planned = (plan.limits for plan in self._plans.values())
        for limit in chain(self._application, self._default, *grouped, *planned, *named_limits):
            place = limit.place
            yield from (Use("identity", name, place.at(*keys)) for name, keys in limit.identities)
            if limit.optional:
                yield Use("optional", "", place.at("optional"))
            if bound := lease_bound(limit.text, limit.options):
                yield Use(*bound, place.at(bound[0]))

    def _plan_keys(self) -> list[Place]:
        """Return the places of ``plans = true``."""
        return [place for named in self._named for place in named.plans.values()]

    def _limited(self) -> dict[str, None]:
        names = [name for named in self._named for name in (*named.limits, *named.plans)]
        members = (name for group in self._groups.values() for name in group.members)
        return dict.fromkeys([*names, *members])

    def _target_limits(self) -> dict[str, list[PolicyLimit]]:
        targets = defaultdict(list, {n: [*limits] for n, limits in self._targets.limits.items()})
        for group in self._groups.values():
            for name in group.members:
                targets[name] += group.limits
        return targets


def _entries(
    tables: Mapping[str, _T | None] | None, place: Place
) -> Iterator[tuple[str, _T, Place]]:
    """Yield the tables without mistakes in their form, each with its name and place."""
    for name, table in (tables or {}).items():
        if table is not None:
            yield name, table, place.at(name)


def _reaching(name: str, overriding: Collection[str]) -> tuple[str, ...]:
    """Return the blueprints around a name whose limits apply there, the outermost first.

    A nested blueprint that overrides hides those around it from all that is inside it, the
    blueprints too.
    """
    if name in overriding:
        return ()
    reaching: list[str] = []
    for outer in around(name):
        reaching = [outer] if outer in overriding else [*reaching, outer]
    return tuple(reaching)
