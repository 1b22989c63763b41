"""Every limit of an application, by endpoint: what commands list, read and change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import flask
from flask_limiter import Limit as Definition
from flask_limiter._limits import RuntimeLimit
from flask_limiter.util import get_qualified_name

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import ConfigurationError, OperatorError, did_you_mean
from ratelimit_ext.core.key import Identity, Naming, bucket_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.limit_string import states_strategy
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.web.declarations.definitions import is_dynamic, methods_called, runtime_limits
from ratelimit_ext.web.declarations.limits_adapter import limit_of, with_amount
from ratelimit_ext.web.declarations.manager import Manager, Route
from ratelimit_ext.web.identities import kinds_of

#: The name of the callable whose wrapper decides, for an endpoint, its view, its blueprint and a
#: method; ``None``: they are decided before the view.
Decider: TypeAlias = Callable[[str, Any, str | None, str], str | None]


class Group(NamedTuple):
    """The limits under one title: of an endpoint, or of all."""

    title: str
    definitions: Iterable[Definition]
    endpoint: str = ""
    methods: tuple[str, ...] = ("",)
    route: Route | None = None
    #: The policy's groups that decorators name at the endpoint, each with the decorator's place.
    named: Mapping[str, str] = {}


class Row(NamedTuple):
    """A limit of an endpoint; with a ``method`` if each method has a bucket of its own. ``kinds``
    are the names of the identities that it counts, or of the functions: mostly one."""

    runtime: RuntimeLimit
    limit: Limit
    plan: str
    method: str
    scope: str
    kinds: tuple[str, ...]
    place: object
    #: The place of the decorator that names its group; empty without one.
    attached: str
    prefix: str
    is_optional: bool
    on_failure: str
    #: The application's own.
    keywords: Mapping[str, Any]

    @property
    def source(self) -> str:
        """Where it is written. The line in a policy's file takes long to find."""
        return str(getattr(self.place, "located", self.place))

    @property
    def key(self) -> str:
        return ",".join(self.kinds)

    @property
    def name(self) -> str:
        """The limit's name, else its text."""
        return self.limit.name or str(self.runtime.limit)

    @property
    def is_adjustable(self) -> bool:
        """Whether single identities may have another amount."""
        form = self.limit.traits.form
        return bool(self.limit.name) and (form is None or form.has_amount)

    def with_amount(self, text: str) -> Row:
        """Return the limit with another amount. Raises as :func:`with_amount`."""
        item, _ = with_amount(self.runtime, text, self.limit.strategy)
        return self._replace(limit=limit_of(item, self.limit.strategy))

    def bucket(self, identity: str) -> str:
        return bucket_key(self.prefix, identity)


#: A definition, of this package, at an endpoint.
Site: TypeAlias = tuple[Any, Group]
Sites: TypeAlias = Callable[[flask.Flask, str], Iterator[Site]]
#: Limits, by what those of one bucket and plan have in common.
Rows: TypeAlias = dict[tuple[str, str, Limit], Row]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The limits of an extension. ``failure_policy`` is what a limit does during an outage;
    ``decider`` says where those of an endpoint are decided."""

    manager: Manager
    identities: Mapping[str, Identity]
    metas: Sequence[Definition]
    naming: Naming
    failure_policy: Callable[[Limit], str]
    decider: Decider
    #: By what lists sites, and a name: of which state, the rows, and the dynamic sites.
    _kept: dict[tuple[str, str], Any] = field(default_factory=dict, init=False)

    def groups(self, app: flask.Flask, endpoint: str = "") -> Iterator[Group]:
        """Yield the limits of the application, then those of each endpoint, or of one. Methods of a
        class that have limits of their own make groups of their own."""
        manager = self.manager
        if not endpoint and manager._application_limits:
            yield Group("Application Limits", manager._application_limits)
        if not endpoint and self.metas:
            yield Group("Meta Limits", self.metas)
        for rule in sorted(app.url_map.iter_rules(endpoint or None), key=str):
            if (name := rule.endpoint) == "static":
                continue
            methods = tuple(sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})) or ("GET",)
            view, blueprint = app.view_functions[name], name.rpartition(".")[0] or None
            named = manager.named_groups(app, name)
            deciders: dict[str | None, list[str]] = {}
            for method in methods:
                deciders.setdefault(self.decider(name, view, blueprint, method), []).append(method)
            for decider, decided in deciders.items():
                route = Route(app, name, blueprint, decided[0], decider)
                limits = manager.applicable(route)
                shared = [d for d in limits.shared if d not in manager._application_limits]
                title = f"{name}: {rule}" + (f" {', '.join(decided)}" if len(deciders) > 1 else "")
                yield Group(title, [*limits.unshared, *shared], name, tuple(decided), route, named)

    def rows(self, definition: Definition, group: Group) -> Iterator[Row]:
        """Yield a definition's limits. May raise what its function raises without a request."""
        plan, groups = getattr(definition, "plan", ""), self.manager.groups
        named = group.named.items()
        attached = next((at for name, at in named if definition in groups.get(name, ())), "")
        stated = runtime_limits(definition, definition.limit_provider) if plan else definition
        for runtime in stated:
            for limited in (runtime, *(runtime.meta_limits or ())):
                limit = limit_of(limited.limit, self.naming.strategy)
                for method in group.methods if limited.per_method else ("",):
                    scope = limited.scope_for(group.endpoint, method)
                    yield Row(
                        runtime=limited,
                        limit=limit,
                        plan=plan,
                        method=method,
                        scope=scope,
                        kinds=kinds_of(limited.key_func, self.identities),
                        place=getattr(definition, "source", ""),
                        attached=attached,
                        prefix=self.naming.prefix(limit, scope),
                        is_optional=getattr(definition, "optional", False),
                        on_failure=self.failure_policy(limit),
                        keywords=dict(getattr(definition, "keywords", ())),
                    )

    def all_rows(self, app: flask.Flask) -> list[Row]:
        """Return every limit once for each bucket and plan, without those that functions return."""
        fixed, dynamic = self._listed(app, self._applied)
        return [*self._distinct(dynamic, fixed).values()]

    def unapplied(self, app: flask.Flask, manager: Manager) -> Iterator[str]:
        """Yield a sentence for each endpoint from which code keeps limits of a policy. ``manager``
        has that policy."""
        for group in replace(self, manager=manager).groups(app):
            if group.route is not None:
                limits, code = manager.unapplied(group.route)
                names = [getattr(d, "name", "") or str(d.limit_provider) for d in limits]
                if names:
                    said = f"{group.title}: limits of the policy do not apply because of {code}"
                    yield f"{said}: {', '.join(dict.fromkeys(names))}"

    def _listed(self, app: flask.Flask, sites: Sites, name: str = "") -> tuple[Rows, list[Site]]:
        """Return the rows of all sites, or of that name, and the sites whose rows functions return.
        They are made again after a definition, a view or an identity is added."""
        parts = app.url_map.iter_rules(), app.view_functions.items(), self.identities.items()
        state = (app, self.manager.revision, *chain(*parts))
        kept = self._kept.get((sites.__name__, name))
        if kept is None or kept[0] != state:
            static, dynamic = list[Site](), list[Site]()
            for site in sites(app, name):
                (dynamic if is_dynamic(site[0]) else static).append(site)
            rows = self._distinct(static).items()
            fixed = {key: row for key, row in rows if name in ("", row.limit.name)}
            kept = state, fixed, dynamic
            if fixed:  # operators may ask for any name
                self._kept[sites.__name__, name] = kept
        return kept[1:]

    def _distinct(self, sites: Iterable[Site], others: Rows | None = None) -> Rows:
        rows = dict(others or {})
        for definition, group in sites:
            with contextlib.suppress(Exception):  # a function that needs a request
                for row in self.rows(definition, group):
                    rows.setdefault((row.prefix, row.plan, row.limit), row)
        return rows

    def _applied(self, app: flask.Flask, _: str) -> Iterator[Site]:
        return ((d, group) for group in self.groups(app) for d in group.definitions)

    def _sites(self, app: flask.Flask, name: str) -> Iterator[Site]:
        """Yield every definition, or those of that name, with each endpoint where it may apply,
        whatever the method and the functions' answers. Nothing is compiled."""
        self.manager.complete(app)
        of_callable, of_blueprint = self.manager.of_callable, lru_cache(self.manager.of_blueprint)
        for rule in app.url_map.iter_rules():
            endpoint, methods = rule.endpoint, tuple(sorted(rule.methods or ()))
            view, blueprint = app.view_functions[endpoint], endpoint.rpartition(".")[0] or None
            names = dict.fromkeys(map(get_qualified_name, (view, *methods_called(view, *methods))))
            code = chain.from_iterable(of_callable(app, endpoint, of_view) for of_view in names)
            items: Any = (*self.manager.shared(), *self.metas, *of_blueprint(app, blueprint), *code)
            group = Group("", (), endpoint, methods)
            yield from [(d, group) for d in items if name in ("", d.name) or d.meta_limits]

    def named(self, app: flask.Flask, name: str) -> list[Row]:
        """Return the limits of that name, once for each bucket and plan."""
        fixed, dynamic = self._listed(app, self._sites, name)
        rows = self._distinct(dynamic, fixed)
        return [row for row in rows.values() if row.limit.name == name]

    def adjustable(self, app: flask.Flask, name: str, amount: str | None = None) -> list[Row]:
        """Return the limits of that name, whose amount an operator may change to ``amount``.

        Raises ``OperatorError`` for an unknown name, with the known ones, and for an amount that
        differs in more than the number, or that is below the cost of every call.
        """
        rows = [row for row in self.named(app, name) if row.is_adjustable]
        if not rows:
            adjustable = (row for row in self.all_rows(app) if row.is_adjustable)
            listed = {row.limit.name: str(row.runtime.limit) for row in adjustable}
            shown = ", ".join(f"{label} ({text})" for label, text in listed.items()) or "none"
            raise OperatorError(
                "unknown_limit",
                f"There is no limit {name!r} whose amount can be changed; named limits: {shown}."
                f"{did_you_mean(name, listed)}",
            )
        if amount is not None:
            try:
                for row in rows:
                    row.with_amount(amount)
            except ConfigurationError as error:
                raise OperatorError("invalid_amount", f"{name}: {error}") from None
        return rows

    def counts(self, app: flask.Flask, name: str, identity: str) -> list[str]:
        """Return the buckets in which the limits of that name, and their candidates, count an
        identity. Guards and calls in flight count nothing that is used up."""
        buckets = []
        for row in self.named(app, name):
            limit = row.limit
            if limit.visible and not limit.traits.ends_with_calls:
                buckets.append(row.bucket(identity))
                if (candidate := limit.with_candidate()) is not None:
                    buckets.append(bucket_key(self.naming.prefix(candidate, row.scope), identity))
        return buckets

    def guards(self, app: flask.Flask, name: str, identity: str, taking: str) -> list[Charge]:
        """Return the identity's charges to the guards of that name that take this act, one per
        bucket. Raises ``OperatorError`` if there is no such guard."""
        strategies = strategies_taking(taking)
        fixed, dynamic = self._listed(app, self._sites, name)
        unfit = [d for d, _ in dynamic if callable(d.scope) and d.name == name]
        if any(states_strategy(d.limit_provider, d, strategies) for d in unfit):
            raise OperatorError(
                "unfit_scope",
                f"The scope of the limit {name!r} is a function of the request, so it cannot be "
                "blocked by name. Give the limit a fixed scope, or none.",
            )
        charges = {
            key: Charge(row.limit, key)
            for row in fixed.values()
            if row.limit.strategy in strategies and (key := row.bucket(identity))
        }
        if not charges:
            rows = self._listed(app, self._sites)[0].values()
            names = {row.limit.name for row in rows if row.limit.strategy in strategies} - {""}
            listed = ", ".join(map(repr, sorted(names))) or "none"
            raise OperatorError(
                "unknown_limit",
                f"No limit 'unless blocked' is named {name!r}; known names: {listed}. Give the "
                "limit that name.",
            )
        return list(charges.values())
