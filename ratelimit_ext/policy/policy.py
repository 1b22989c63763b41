"""The policy: which limits apply to which blueprint, route and plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from ratelimit_ext.core.errors import ConfigurationError, unknown_name
from ratelimit_ext.core.limit import DEFAULT_STRATEGY, NO_OPTIONS, LimitOptions
from ratelimit_ext.core.limit_string import ParsedLimit, check_lease
from ratelimit_ext.policy.errors import (
    AppConfig,
    CodeLine,
    Mistakes,
    Place,
    unknown,
    unknown_identity,
)

Key: TypeAlias = str | Callable[[], str]
_NOWHERE: Final = Place(AppConfig(""))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLimit:
    """A limit of a policy, checked.

    ``text`` is its string and ``parsed`` the limits in it. ``source`` is the place in short:
    ``policy.toml: blueprints.chat.limits[1]``; ``place`` has the line too. ``key`` is the name of
    an identity, a function, several of them, or ``None`` for the extension's key function. If
    ``shared`` is true, ``scope`` names the bucket; if not, each endpoint has its own.
    """

    source: str
    text: str
    parsed: tuple[ParsedLimit, ...]
    options: LimitOptions = NO_OPTIONS
    key: Key | tuple[Key, ...] | None = None
    #: In dollars for a limit in usd.
    cost: int | float | str | Callable[[], Any] = 1
    methods: tuple[str, ...] | None = None
    per_method: bool = False
    override_defaults: bool = True
    error_message: str | Callable[[], str] | None = None
    shared: bool = False
    scope: str | None = None
    #: It applies only to callers with an amount of their own.
    optional: bool = False
    exempt_when: Callable[[], bool] | None = None
    # Functions of a response and of a request limit: types of frameworks that are unknown here.
    deduct_when: Callable[[Any], bool] | None = None
    on_breach: Callable[[Any], Any] | None = None
    #: The application's own keywords that are written, with their values.
    keywords: tuple[tuple[str, Any], ...] = ()
    place: Place = field(default=_NOWHERE, compare=False, repr=False)
    #: Whether ``override_defaults = true`` is written: then it replaces what is around it.
    replaces: bool = field(default=False, compare=False, repr=False)

    @property
    def identities(self) -> Iterator[tuple[str, tuple[str | int, ...]]]:
        """The names of identities in it, each with its keys there."""
        keys = self.key if isinstance(self.key, tuple) else (self.key,)
        is_list = keys is self.key
        for position, name in enumerate(keys):
            if isinstance(name, str):
                yield name, ("key", position) if is_list else ("key",)
        for word in ("priority", "fair"):
            if isinstance(name := getattr(self.options, word), str):
                yield name, (word,)

    def check_amount(self, text: str) -> None:
        """Raise :class:`ConfigurationError` unless the string changes only the amount, to one that
        some call can pass."""
        parsed, options = self.parsed[0].with_amount(text), self.options
        if options.burst is None:  # else the burst decides what can pass
            plain = LimitOptions(unit=options.unit, mode=options.mode)
            parsed.limit(plain, options.strategy or DEFAULT_STRATEGY).check_amount(self.cost)


Limits: TypeAlias = tuple[PolicyLimit, ...]


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Limits of the callers on a plan, wherever a blueprint or route has ``plans = true``.

    ``next`` is the plan that allows more, ``default`` whether callers without a plan have it.
    ``price`` and ``upgrade_url`` are shown to callers whose plan names it as the ``next`` one.
    ``keywords`` are the values of the application's own keywords.
    """

    name: str
    title: str
    limits: Limits
    next: str | None = None
    default: bool = False
    price: str = ""
    upgrade_url: str = ""
    keywords: Mapping[str, Any] = field(default_factory=_empty)
    place: Place = field(default=_NOWHERE, compare=False, repr=False)


class Group(NamedTuple):
    """Limits under one name. Decorators name the views and blueprints that they apply to; a file
    may name ``members``, too. ``plans`` is the place of ``plans = true``."""

    place: Place
    limits: Limits
    plans: Place | None
    members: tuple[str, ...]


UseKind: TypeAlias = Literal[
    "blueprint", "endpoint", "either", "identity", "plan", "optional", "wait", "idle"
]


class Use(NamedTuple):
    """What a policy needs of the application, and where it is written: a blueprint, an endpoint,
    one of ``either`` kind or an identity, by its name; the caller's ``plan``, or amounts for an
    ``optional`` limit; a lease that fits a ``wait`` or the ``idle`` time of a session, whose text
    is the name."""

    kind: UseKind
    name: str
    place: Place


@dataclass(frozen=True, slots=True)
class Policy:
    """All limits of a configuration.

    ``blueprints`` go by name, ``routes`` by endpoint. ``targets`` come from ``app.config`` and are
    the members of groups. They are one or the other, which only the application knows;
    ``target_places`` are where they are named. ``plan_blueprints``, ``plan_routes`` and
    ``plan_targets`` are those that the caller's plan applies to.
    """

    application: Limits = ()
    default: Limits = ()
    blueprints: Mapping[str, Limits] = field(default_factory=_empty)
    routes: Mapping[str, Limits] = field(default_factory=_empty)
    targets: Mapping[str, Limits] = field(default_factory=_empty)
    target_places: Mapping[str, tuple[Place, ...]] = field(default_factory=_empty)
    groups: Mapping[str, Group] = field(default_factory=_empty)
    plans: Mapping[str, Plan] = field(default_factory=_empty)
    plan_blueprints: frozenset[str] = frozenset()
    plan_routes: frozenset[str] = frozenset()
    plan_targets: frozenset[str] = frozenset()
    uses: tuple[Use, ...] = field(default=(), compare=False)

    def check_targets(
        self, blueprints: Collection[str], endpoints: Collection[str], mistakes: Mistakes
    ) -> None:
        """Note blueprints, by their whole names, and endpoints that are not registered."""
        either = [*blueprints, *(name for name in endpoints if name not in blueprints)]
        endpoints = [name for name in endpoints if name.rpartition(".")[2] != "static"]  # exempt
        registered = {"blueprint": blueprints, "endpoint": endpoints, "either": either}
        for kind, name, place in self.uses:
            if kind in registered and name not in (names := registered[kind]):
                what = kind.replace("either", "blueprint or endpoint")
                mistakes.add(place, unknown(what, name, names))

    def check_groups(self, named: Mapping[str, str], mistakes: Mistakes) -> None:
        """Note the groups that decorators name and the policy lacks. ``named`` maps a group to the
        place of one of its decorators."""
        for name, source in named.items():
            if name not in self.groups:
                there_is = unknown("group", name, self.groups, " in the policy; its groups")
                remedy = f"or add [groups.{name}] to the policy, with limits = [] for none."
                mistakes.add(Place(CodeLine(source)), f"{there_is} Correct the name, {remedy}")

    def check_uses(
        self,
        identities: Collection[str],
        mistakes: Mistakes,
        *,
        knows_plans: bool,
        knows_amounts: bool,
        lease_s: float,
    ) -> None:
        """Note unknown identities, plans and optional limits without their loader, what does not
        fit the lease, and unknown classes: a plan's keyword with the name of a ``priority``."""
        lacking = {} if knows_plans else {"plan": ("plan", "plan_loader")}
        lacking |= {} if knows_amounts else {"optional": ("amounts", "amount_loader")}
        for kind, name, place in self.uses:
            if kind == "identity" and name not in identities:
                mistakes.add(place, unknown_identity(name, identities))
            elif kind in lacking:
                what, loader = lacking[kind]
                mistakes.add(
                    place,
                    f"no function returns the caller's {what}. Register one before init_app with "
                    f"@limiter.{loader}.",
                )
            elif kind in ("wait", "idle"):
                with mistakes.at(place):
                    check_lease(repr(name), kind, name, lease_s)
        for plan, word in [(p, word) for p in self.plans.values() for word in p.keywords]:
            classes, name = self.classes(word), plan.keywords[word]
            if classes and name not in classes:
                remedy = f"{unknown_name('class', name, classes)} Or add {name} = 0 to keep."
                mistakes.add(plan.place.at(word), remedy)

    def plan(self, name: str) -> Plan:
        """Return the plan of this name. Raises :class:`ConfigurationError` if it is unknown."""
        if name not in self.plans:
            raise ConfigurationError(unknown("plan", name, self.plans, " in the policy; its plans"))
        return self.plans[name]

    @property
    def default_plan(self) -> Plan | None:
        """The plan of callers without one, or with one that is unknown: the one that says so, else
        the first. ``None`` without plans."""
        plans = self.plans.values()
        return next((plan for plan in plans if plan.default), next(iter(plans), None))

    def classes(self, identity: str) -> tuple[str, ...]:
        """Return the classes of traffic that limits with this ``priority`` declare by ``keep``."""
        options = [limit.options for limit in self.all_limits()]
        return tuple({name: 0 for o in options if o.priority == identity for name in dict(o.keep)})

    def next_plan(self, plan: Plan) -> Plan | None:
        return None if plan.next is None else self.plans.get(plan.next)

    def adjustable(self, *, key: str, plan: str | None = None) -> dict[str, PolicyLimit]:
        """Return the limits whose amount may be another for single callers, by name.

        ``key`` is the identity that they count. Of the limits of plans, those of ``plan``.
        """
        plans = [self.plan(plan)] if plan is not None else []
        return {
            limit.options.name: limit
            for limit in self._limits(plans)
            if limit.options.name and limit.key == key and limit.parsed[0].form.has_amount
        }

    def all_limits(self) -> Limits:
        """Return every limit once, those of the plans last."""
        return self._limits(self.plans.values())

    def warnings(self, named: Collection[str]) -> Iterator[str]:
        """Yield a sentence for each group that neither a decorator nor the file uses. ``named`` are
        the groups that decorators name."""
        for name, group in self.groups.items():
            if not (group.members or name in named):
                yield (
                    f"{group.place.located}: nothing uses this group. Write "
                    f'@limiter.group("{name}") at a view or blueprint, or remove it.'
                )

    def _limits(self, plans: Iterable[Plan]) -> Limits:
        named = (*self.blueprints.values(), *self.routes.values(), *self.targets.values())
        grouped = (group.limits for group in self.groups.values())
        lists = (self.application, self.default, *named, *grouped, *(plan.limits for plan in plans))
        return tuple(dict.fromkeys(chain.from_iterable(lists)))
