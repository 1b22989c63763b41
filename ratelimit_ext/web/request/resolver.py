"""From a route to its bound limits, compiled once per route, method and callable.

Only what depends on the request is asked at each request: limit strings that are functions, the
caller's plan, and scopes that are functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, compress
from typing import Any, Final

import flask
from flask_limiter import ApplicationLimit, ExemptionScope, Limit, MetaLimit, RouteLimit
from flask_limiter._limits import RuntimeLimit
from limits import RateLimitItem
from werkzeug.exceptions import HTTPException

from ratelimit_ext.core.charge import Guess
from ratelimit_ext.core.errors import ConfigurationError, shown, unknown_name
from ratelimit_ext.core.key import Identity, Naming, member_key
from ratelimit_ext.core.limit import Limit as CoreLimit
from ratelimit_ext.records.overrides import Overrides
from ratelimit_ext.web.bound_limit import (
    BoundCharge,
    BoundLimit,
    applies_to,
    cost_in_units,
    header_name,
    policy_item,
)
from ratelimit_ext.web.declarations.callbacks import Callbacks
from ratelimit_ext.web.declarations.definitions import runtime_limits
from ratelimit_ext.web.declarations.limits_adapter import function_of, limit_of, rank, with_amount
from ratelimit_ext.web.declarations.manager import Manager, Route, code_of
from ratelimit_ext.web.request.reservation import KnownNames

#: How many answers of the limit functions of a route are kept compiled.
MOST_VARIANTS: Final = 256
#: How many routes are kept compiled: clients choose the method, and may choose the endpoint.
MOST_ROUTES: Final = 4096
#: The part of a group's budget that a rough estimate takes of a member's share at most.
MOST_GUESSED: Final = 100

#: Flask-Limiter's words.
SWALLOWED: Final = "Failed to rate limit. Swallowing error"

UNDECLARED: Final = "Limit %s: %s It counts as the lowest class. Correct it, or add it to keep."
NO_AMOUNTS: Final = "Amounts of callers do not apply: amount_loader returned %s instead of a dict."
FAILED: Final = "%s failed, and %s. Later failures of this kind are not logged."
INVALID: Final = "The limit of %s is invalid, and %s: %s"
#: By whether its requests are denied.
THEN: Final = {True: "its requests are answered with 503", False: "its defaults apply instead"}
NO_ESTIMATE: Final = (
    "Limit %s has no estimate: each call costs %s %s until it is settled. Register "
    "@limiter.estimator(%r) or give the limit a cost; cost=lambda: 1 keeps 1 without this warning."
)
#: Of limits from different places. Those of one place are refused at the start.
ONE_NAME: Final = (
    "Limits %s and %s apply together to %s and have one name: each request is charged twice, and "
    "the smaller amount decides. Give them different names."
)
#: The text may be the address of a caller without a key.
ONE_BUCKET: Final = (
    "Two limits %s of %s have different key functions and no names: if both return the same text, "
    "they share a bucket, and the request is charged twice. Give one of them a name."
)

#: The answer of a function that failed: its definition has no limit for this request.
_NO_ANSWER: Final = ("",)


@dataclass(frozen=True, slots=True, eq=False)
class RouteLimits:
    """The bound limits of a route. ``shared`` ones, charged once, have the id of their definition.

    ``invalid`` are definitions that deny: their functions returned invalid limits. ``is_kept``:
    later requests have the same ones.
    """

    shared: tuple[tuple[int, tuple[BoundLimit, ...]], ...] = ()
    unshared: tuple[BoundLimit, ...] = ()
    metas: tuple[BoundLimit, ...] = ()
    invalid: tuple[Limit, ...] = ()
    is_kept: bool = False
    limits: tuple[BoundLimit, ...] = field(init=False)
    shared_ids: frozenset[int] = field(init=False)
    asks_scopes: bool = field(init=False)
    #: Whether a limit applies only to callers with an amount of their own.
    has_optional: bool = field(init=False)
    waits: bool = field(init=False)
    #: What says that limits do not apply, and whom they count; each function once.
    exemptions: tuple[Callable[[], Any], ...] = field(init=False)
    askers: tuple[Callable[[], Any], ...] = field(init=False)
    #: Whether requests differ only in exemptions, identities and costs.
    is_planned: bool = field(init=False)

    def __post_init__(self) -> None:
        derive = object.__setattr__
        limits = (*self.unshared, *[bound for _, limits in self.shared for bound in limits])
        derive(self, "limits", limits)
        derive(self, "shared_ids", frozenset(id_ for id_, _ in self.shared))
        derive(self, "asks_scopes", any(callable(bound.runtime.scope) for bound in limits))
        derive(self, "has_optional", any(bound.optional for bound in limits))
        derive(self, "waits", any(bound.limit.wait for bound in limits))
        derive(self, "exemptions", _distinct(bound.runtime.exempt_when for bound in limits))
        derive(self, "askers", _distinct(bound.runtime.key_func for bound in limits))
        asks = self.metas or any(bound.varies or bound.metas for bound in limits)
        derive(self, "is_planned", self.is_kept and not asks)

    def without(self, exempt: tuple[bool, ...]) -> RouteLimits:
        """Return the limits of requests to which these of the exemptions apply."""
        left_out = {id(ask) for ask in compress(self.exemptions, exempt)}
        limits = [b for b in self.limits if id(b.runtime.exempt_when) not in left_out]
        return RouteLimits((), tuple(limits), is_kept=True)

    def changed(self, to: Callable[..., tuple[BoundLimit, ...]], *, is_kept: bool) -> RouteLimits:
        """Return the same with other limits."""
        shared = tuple((id_, to(limits)) for id_, limits in self.shared)
        return RouteLimits(shared, to(self.unshared), self.metas, self.invalid, is_kept)

    def uncharged(self, charged: Collection[int]) -> list[BoundLimit]:
        """Return the limits without the shared ones whose definitions are charged already."""
        shared = [bound for id_, limits in self.shared if id_ not in charged for bound in limits]
        return [*self.unshared, *shared]


def _distinct(functions: Iterable[Callable[[], Any] | None]) -> tuple[Callable[[], Any], ...]:
    return tuple({id(ask): ask for ask in functions if ask is not None}.values())


@dataclass(slots=True)
class _CompiledRoute:
    """A route's limits by what its questions were answered; each question is asked once a request.
    ``question_of`` has the position of a definition's question, by the definition's id."""

    questions: tuple[Callable[[], Any], ...]
    question_of: dict[int, int]
    variants: dict[tuple[Any, ...], RouteLimits] = field(default_factory=dict)
    #: With amounts of callers, each with the limits whose id is in the key.
    with_amounts: dict[tuple[Any, ...], tuple[RouteLimits, RouteLimits]] = field(
        default_factory=dict
    )


@dataclass(eq=False)
class Resolver:
    manager: Manager
    naming: Naming
    metas: Sequence[MetaLimit]
    callbacks: Callbacks
    overrides: Overrides
    swallow_errors: bool
    strict: bool
    logger: logging.Logger

    def __post_init__(self) -> None:
        self.estimators = self.callbacks.estimators
        self.identities = self.callbacks.identities
        self._routes: dict[Route, _CompiledRoute] = {}
        self._revision = -1
        self._logged: set[tuple[flask.Flask, str]] = set()
        # Decorators would keep the resolvers of applications that are gone.
        kept = lru_cache(maxsize=MOST_VARIANTS)
        self._with_override: Callable[[BoundLimit, str], BoundLimit] = kept(self._make_override)
        self._of_class = kept(lambda bound, name: replace(bound, limit=bound.limit.of_class(name)))
        self._share_of: Callable[[BoundLimit], BoundLimit] = kept(self._make_share)
        self._names = KnownNames(self.manager.definitions)
        #: Limits without a route.
        self._outside: dict[tuple[Any, ...], BoundLimit] = {}

    def limits(self, route: Route) -> RouteLimits:
        if not self.overrides.is_watched:
            self.overrides.watch()
        if self._revision != self.manager.revision:
            self._forget()
        compiled = self._routes.get(route)
        if compiled is None:
            if len(self._routes) >= MOST_ROUTES:
                self._routes.clear()
            compiled = self._routes[route] = self._questions(route)
        asked = compiled.questions
        answers = tuple([self._answer(question, route) for question in asked]) if asked else ()
        on_route = compiled.variants.get(answers)
        if on_route is None:
            if len(compiled.variants) >= MOST_VARIANTS:
                compiled.variants.clear()
            answered = {question: answers[at] for question, at in compiled.question_of.items()}
            on_route = compiled.variants[answers] = _Binder(self, route, answered).route_limits()
        if (loader := self.callbacks.amount_loader) is not None:
            amounts = self._amounts(loader, route)
            if amounts or on_route.has_optional:
                on_route = self._with_own_amounts(on_route, amounts, route, compiled)
        return self._with_scopes(on_route, route) if on_route.asks_scopes else on_route

    def _forget(self) -> None:
        """Forget what was bound of other definitions."""
        self._routes.clear()
        self._outside.clear()
        self._revision = self.manager.revision
        for unit, name in self.estimators:
            if name:
                self._names.check_name(name, f"estimator {unit!r}")

    def limits_on_plan(self, route: Route, plan: str) -> RouteLimits:
        """Return the limits of a route for callers on a plan, without a request. Those whose string
        is a function are left out, because only a request has them."""
        shared, unshared = self.manager.candidates(route)
        answers = {
            id(definition): plan if plan and getattr(definition, "plan", "") else _NO_ANSWER
            for definition in (*shared, *unshared, *self.metas)
            if _question(definition) is not None
        }
        return _Binder(self, route, answers).route_limits()

    def limits_of(self, route: Route, definitions: Iterable[Limit]) -> RouteLimits:
        """Return those of definitions without a route: a block's, or the fallback's."""
        on_route = _Binder(self, route, {}).limits_of(definitions)
        return self._with_scopes(on_route, route) if on_route.asks_scopes else on_route

    def outside(
        self,
        app: flask.Flask,
        runtime: RuntimeLimit,
        scope: str,
        bucket_prefix: str,
        *,
        plan: str,
        optional: bool,
        amount: str | None,
    ) -> BoundLimit:
        """Return a limit without a route, for a charge that no request makes, with an amount of the
        caller's own; the same one each time, because others are kept by it."""
        if self._revision != self.manager.revision:
            self._forget()
        limit = self.core_limit(runtime.limit, runtime.key_func)
        question = app, bucket_prefix, plan, limit, amount
        bound = self._outside.get(question)
        if bound is None:
            bound = BoundLimit(
                runtime=runtime,
                limit=limit,
                scope=scope,
                bucket_prefix=bucket_prefix,
                header=f'"{header_name(limit)}"',
                policy=policy_item(limit),
                rank=rank(runtime.limit),
                optional=optional,
                member=function_of(runtime.limit, "fair", self.identities),
            )
            if amount is not None:
                bound = self.with_own_amount(bound, amount, app)
            if len(self._outside) >= MOST_VARIANTS:
                self._outside.clear()
            self._outside[question] = bound
        return bound

    def adjusted(self, bound: BoundLimit, identity: str) -> BoundLimit | None:
        """Return the limit as it applies to the identity, with the amount of an override; ``None``
        for an optional limit of an identity without one, and for the candidate of one with it."""
        override = self.overrides.find(bound.limit.name, identity)
        if override is None:
            return None if bound.optional else bound
        return None if bound.is_candidate else self._with_override(bound, override.amount)

    def _make_override(self, bound: BoundLimit, amount: str) -> BoundLimit:
        return replace(self.with_own_amount(bound, amount, flask.current_app), override=amount)

    def of_class(self, bound: BoundLimit, name: str) -> BoundLimit:
        """Return the limit as a class of traffic may use it. A class that ``keep`` does not declare
        is the lowest, and logged once a limit: clients may choose it. Empty is valid: no class."""
        names = [class_name for class_name, _ in bound.limit.keep]
        if name not in names:
            if name and self.log_once(flask.current_app, f"class of {bound.limit.label}"):
                unknown = unknown_name("class", name, names)
                flask.current_app.logger.warning(UNDECLARED, bound.limit.label, unknown)
            name = ""
        of_class: BoundLimit = self._of_class(bound, name)
        return of_class

    def shared(
        self, whole: BoundLimit, charge: BoundCharge, who: tuple[str, str], guess: object = None
    ) -> list[BoundCharge]:
        """Return the charge of a group as one of its member, with that of the member's share of a
        budget. ``who`` is the member's identity, with its part of a bucket's name."""
        bound, identity, plain = charge
        if not plain.limit.has_shares:
            return [(bound, identity, plain._replace(limit=plain.limit.of_member(who[0])))]
        share = self._share_of(whole)
        key = member_key(share.bucket_prefix, who[1], plain.key)
        plain = plain._replace(limit=share.limit, key=key)
        if isinstance(guess, Guess):  # a rough one is not to exceed a share
            cost = max(guess.least, min(plain.cost, share.limit.amount // MOST_GUESSED))
            claim = plain.claim and plain.claim._replace(beside=min(plain.claim.beside, cost))
            plain = plain._replace(cost=cost, claim=claim)
        return [charge, (share, who[0], plain)]

    def _make_share(self, bound: BoundLimit) -> BoundLimit:
        """Return what counts the members of the group beside a limit that is shared fairly."""
        limit = bound.limit.share()
        return replace(
            bound,
            limit=limit,
            bucket_prefix=self.naming.prefix(limit, bound.scope),
            header=f'"{header_name(limit)}"',
            policy=policy_item(limit),
            metas=(),
            plan_sentence="",
            amount_sentence=None,
        )

    def denies_if_invalid(self, definition: Limit) -> bool:
        """Return whether a limit denies if its function returns an invalid one. In Flask-Limiter, a
        view's or blueprint's is left out, so that the defaults apply, and any other is an error."""
        return self.strict or not (isinstance(definition, RouteLimit) or self.swallow_errors)

    def log_once(self, app: flask.Flask, subject: str) -> bool:
        """Return whether the subject has not been logged for the application yet."""
        if (app, subject) in self._logged:
            return False
        if len(self._logged) >= MOST_VARIANTS:
            self._logged.clear()
        self._logged.add((app, subject))
        return True

    def _questions(self, route: Route) -> _CompiledRoute:
        """Return what has to be asked at every request, for the definitions that may apply."""
        shared, unshared = self.manager.candidates(route)
        questions: dict[Callable[[], Any], int] = {}
        question_of: dict[int, int] = {}
        for definition in (*shared, *unshared, *self.metas):
            question = _question(definition)
            if question is not None and id(definition) not in question_of:
                question_of[id(definition)] = questions.setdefault(question, len(questions))
        return _CompiledRoute(tuple(questions), question_of)

    def _answer(self, question: Callable[[], Any], route: Route) -> Any:
        """The answer. A request without a view may lack what the functions read."""
        try:
            return question()
        except Exception:
            if route.is_edge:
                self.logger.debug("%r failed for a request without a view", question, exc_info=True)
            elif self.swallow_errors:
                self.logger.exception(SWALLOWED)
            else:
                raise
            return _NO_ANSWER

    def loaded(self, loader: Callable[[], Any], name: str, app: flask.Flask, instead: str) -> Any:
        """Return what a loader of the application returns; ``None`` if it fails, which is logged
        once for each kind of error with what happens ``instead``, unless that is empty."""
        try:
            return loader()
        except HTTPException:
            raise  # it answers the request, as in a view
        except Exception as error:
            if instead and self.log_once(app, f"{name} {type(error)}"):
                app.logger.exception(FAILED, name, instead)
            return None

    def _amounts(self, loader: Callable[[], Any], route: Route) -> Mapping[str, str]:
        """Return the caller's amounts; none if the loader's answer is invalid, which is logged."""
        instead = "" if route.is_edge else "the usual amounts apply"
        amounts: object = self.loaded(loader, "amount_loader", route.app, instead)
        if isinstance(amounts, Mapping):
            return amounts
        if amounts and self.log_once(route.app, "amounts"):
            route.app.logger.error(NO_AMOUNTS, shown(amounts))
        return {}

    def _with_own_amounts(
        self, base: RouteLimits, amounts: Mapping[str, str], route: Route, compiled: _CompiledRoute
    ) -> RouteLimits:
        """Return the limits with the amounts of the current caller, and without the optional ones
        of which the caller has none. If there are overrides of one, each identity decides about
        it."""
        overrides = self.overrides.by_limit
        key = id(base), self.overrides.version, repr(amounts)  # an amount may have no hash
        cached = compiled.with_amounts.get(key)
        if cached is not None:
            return cached[1]
        for name in amounts:
            self._names.check_name(str(name), "amount_loader")

        def applying(limits: Iterable[BoundLimit]) -> tuple[BoundLimit, ...]:
            applied = []
            for bound in limits:
                name = bound.limit.name
                if name in amounts and not bound.is_candidate:
                    applied.append(self.with_own_amount(bound, amounts[name], route.app))
                elif name not in amounts and (not bound.optional or name in overrides):
                    applied.append(bound)
            return tuple(applied)

        changed = base.changed(applying, is_kept=True)
        if len(compiled.with_amounts) >= MOST_VARIANTS:
            compiled.with_amounts.clear()
        compiled.with_amounts[key] = base, changed
        return changed

    def core_limit(self, item: RateLimitItem, identity: Identity) -> CoreLimit:
        """Return the core's limit for an item. Raises ``ConfigurationError``."""
        limit = limit_of(item, self.naming.strategy)
        if isinstance(limit.priority, str):
            limit = replace(limit, priority=function_of(item, "priority", self.identities))
        return replace(limit, common=True) if self.callbacks.is_common(identity) else limit

    def with_own_amount(self, bound: BoundLimit, text: str, app: flask.Flask) -> BoundLimit:
        """Return the limit with that amount; an invalid one is logged, and changes nothing."""
        try:
            item, parsed = with_amount(bound.runtime, text, self.naming.strategy)
            limit = self.core_limit(item, bound.runtime.key_func)
        except ConfigurationError as error:
            if self.log_once(app, f"{bound.limit.name}: {text}"):
                app.logger.error(
                    "A caller's amount of the limit %r is invalid, and the usual one applies: %s",
                    bound.limit.name,
                    error,
                )
            return replace(bound, optional=False)
        runtime = replace(bound.runtime, limit=item)
        return replace(
            bound,
            runtime=runtime,
            limit=limit,
            policy=policy_item(limit),
            rank=rank(item),
            fixed_cost=None if bound.estimate else _fixed_cost(runtime, limit),
            plan_sentence="" if bound.amount_sentence is None else bound.amount_sentence(parsed),
            optional=False,
        )

    def _with_scopes(self, base: RouteLimits, route: Route) -> RouteLimits:
        """Return the limits with the scopes of the current request, where a scope is a function."""

        def scoped(bound: BoundLimit) -> BoundLimit:
            if not callable(bound.runtime.scope):
                return bound
            scope = bound.runtime.scope_for(route.endpoint, route.method)
            return replace(bound, scope=scope, bucket_prefix=self.naming.prefix(bound.limit, scope))

        return base.changed(lambda limits: tuple(map(scoped, limits)), is_kept=False)


class _Binder:
    """Binds definitions to one route, each once. ``answers`` are by the definition's id."""

    def __init__(self, resolver: Resolver, route: Route, answers: Mapping[int, Any]) -> None:
        self._resolver = resolver
        self._route = route
        self._answers = answers
        self._bound: dict[int, tuple[BoundLimit, ...]] = {}
        self._invalid: list[Limit] = []

    def route_limits(self) -> RouteLimits:
        shared, unshared = self._resolver.manager.applicable(
            self._route, lambda definition: bool(self._limits(definition))
        )
        on_route = RouteLimits(
            tuple((id(d), self._applying(self._limits(d))) for d in shared),
            self._applying(bound for d in unshared for bound in self._limits(d)),
            self._metas(),
            self._denying(),
            is_kept=True,
        )
        named: dict[str, BoundLimit] = {}
        for bound in on_route.limits:
            limit, runtime, prefix = bound.limit, bound.runtime, bound.bucket_prefix
            if limit.held and limit.unit != "calls" and not bound.estimate and runtime.cost == 1:
                cost = limit.outside(bound.fixed_cost or 0)
                what = limit.name or runtime.limit, cost, limit.unit, limit.unit
                self._log(str(limit), NO_ESTIMATE, *what, level=logging.WARNING)
            if not prefix:
                continue
            other = named.setdefault(prefix, bound)
            where = runtime.limit, self._route.endpoint
            if not limit.name and code_of(runtime.key_func) != code_of(other.runtime.key_func):
                self._log(f"one bucket: {prefix}", ONE_BUCKET, *where, level=logging.WARNING)
            elif limit.name and other.limit != limit:
                self._log(f"one name: {limit.name}", ONE_NAME, other.runtime.limit, *where)
        return on_route

    def limits_of(self, definitions: Iterable[Limit]) -> RouteLimits:
        limits = self._applying(bound for d in definitions for bound in self._limits(d))
        return RouteLimits((), limits, self._metas(), self._denying())

    def _applying(self, limits: Iterable[BoundLimit]) -> tuple[BoundLimit, ...]:
        return tuple([bound for bound in limits if applies_to(bound.runtime, self._route.method)])

    def _metas(self) -> tuple[BoundLimit, ...]:
        exemption_scope = self._resolver.manager.exemption_scope
        metas = [bound for definition in self._resolver.metas for bound in self._limits(definition)]
        if metas and ExemptionScope.META & exemption_scope(*self._route[:3]):
            return ()
        return tuple([replace(bound, is_meta=True) for bound in metas])

    def _denying(self) -> tuple[Limit, ...]:
        """Return the invalid definitions that apply to the method, without shadows."""
        applying = [d for d in self._invalid if applies_to(d, self._route.method)]
        return tuple(d for d in applying if getattr(d, "mode", "") != "shadow")

    def _limits(self, definition: Limit) -> tuple[BoundLimit, ...]:
        """Return the bound limits of a definition; none if it is invalid, which is logged."""
        bounds = self._bound.get(id(definition))
        if bounds is None:
            answer = self._answers.get(id(definition))
            try:
                runtimes = _runtime_limits(definition, answer)
                bound = [self._bind(runtime, definition) for runtime in runtimes]
                bounds = tuple(chain.from_iterable(map(self._with_candidate, bound)))
            except ValueError as error:
                denies = self._resolver.denies_if_invalid(definition)
                text = answer[0] if answer else definition.limit_provider
                where = self._route.name or self._route.endpoint or "a request without a view"
                # Once for each string, because callers may choose it.
                self._log(str(text), INVALID, where, THEN[denies], error)
                if denies:
                    self._invalid.append(definition)
                bounds = ()
            self._bound[id(definition)] = bounds
        return bounds

    def _bind(self, runtime: RuntimeLimit, definition: Limit | None) -> BoundLimit:
        """``definition`` is None for a limit on the denials by another."""
        naming, route = self._resolver.naming, self._route
        limit = self._resolver.core_limit(runtime.limit, runtime.key_func)
        asked, traits = callable(runtime.scope), limit.traits
        # A slot is not charged: it is returned when the call is over.
        is_conditional = runtime.deduct_when is not None and not traits.ends_with_calls
        scope = "" if asked else runtime.scope_for(route.endpoint, route.method)
        estimate = self._estimator(limit) if runtime.cost == 1 else None
        return BoundLimit(
            runtime=runtime,
            limit=limit,
            scope=scope,
            bucket_prefix="" if asked else naming.prefix(limit, scope),
            header=f'"{header_name(limit)}"',
            policy=policy_item(limit),
            rank=rank(runtime.limit),
            metas=tuple([self._bind(meta, None) for meta in runtime.meta_limits or ()]),
            estimate=estimate,
            fixed_cost=None if estimate else _fixed_cost(runtime, limit),
            is_edge=isinstance(definition, ApplicationLimit),
            is_meta=definition is None,
            optional=getattr(definition, "optional", False),
            varies=getattr(definition, "optional", False) or bool(limit.keep) or limit.fair,
            member=function_of(runtime.limit, "fair", self._resolver.identities),
            plan_sentence=getattr(definition, "plan_sentence", ""),
            amount_sentence=getattr(definition, "amount_sentence", None),
            keywords=getattr(definition, "keywords", ()),
            is_conditional=is_conditional,
            # An estimate is always reserved.
            is_late=is_conditional and not (limit.reserve or limit.held),
        )

    def _with_candidate(self, bound: BoundLimit) -> tuple[BoundLimit, ...]:
        limit = bound.limit.with_candidate()
        if limit is None:
            return (bound,)
        prefix = self._resolver.naming.prefix(limit, bound.scope) if bound.bucket_prefix else ""
        candidate = replace(
            bound,
            limit=limit,
            bucket_prefix=prefix,
            fixed_cost=None if bound.estimate else _fixed_cost(bound.runtime, limit),
            metas=(),
            is_candidate=True,
            member=None,
        )
        return bound, candidate

    def _estimator(self, limit: CoreLimit) -> Callable[[], Any] | None:
        if limit.traits.one_per_call:
            return None
        estimators = self._resolver.estimators
        return estimators.get((limit.unit, limit.name)) or estimators.get((limit.unit, ""))

    def _log(self, subject: str, text: str, *words: object, level: int = logging.ERROR) -> None:
        """Log to the application's logger, which more people read than Flask-Limiter's."""
        app = self._route.app
        if self._resolver.log_once(app, subject):
            app.logger.log(level, text, *words)


def _fixed_cost(runtime: RuntimeLimit, limit: CoreLimit) -> int | None:
    """Return a cost that is no function; ``None`` if it is one, or invalid: then each charge
    raises. The default in the place of an estimate is at most what the limit can hold."""
    if callable(runtime.cost):
        return None
    try:
        cost = cost_in_units(runtime.cost, limit, runtime)
    except ValueError:
        return None
    if not isinstance(cost, int):
        return None
    return min(cost, limit.capacity or cost) if limit.held and runtime.cost == 1 else cost


def _question(definition: Limit) -> Callable[[], Any] | None:
    """Return what to ask for the definition at every request; None if nothing."""
    plan_loader: Callable[[], Any] | None = getattr(definition, "plan_loader", None)
    if plan_loader is not None:
        return plan_loader
    asked = (definition.limit_provider, *_meta_providers(definition))
    return partial(_strings, definition) if any(map(callable, asked)) else None


def _meta_providers(definition: Limit) -> list[Any]:
    metas = definition.meta_limits or ()
    return [meta.limit_provider if isinstance(meta, MetaLimit) else meta for meta in metas]


def _strings(definition: Limit) -> tuple[Any, ...]:
    """Return the definition's own limit string, then those of its meta limits that are functions.
    What is returned instead of a string, such as a list, may not be hashable."""
    provider = definition.limit_provider
    text = provider() if callable(provider) else provider
    metas = [meta() for meta in _meta_providers(definition) if callable(meta)]
    return tuple([str(string or "") for string in (text, *metas)])


def _runtime_limits(definition: Limit, answer: Any) -> tuple[RuntimeLimit, ...]:
    if answer is None:
        return tuple(definition)
    text = answer[0]
    if plan := getattr(definition, "plan", ""):
        text = definition.limit_provider if answer == plan else ""
    return tuple(runtime_limits(definition, text))
