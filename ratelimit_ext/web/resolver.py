"""From a request to its claims, computed once per endpoint, method and callable where it can be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import flask
from flask_limiter import ApplicationLimit, Limit, MetaLimit
from flask_limiter._limits import RuntimeLimit

from ratelimit_ext.web.admission import SWALLOWED
from ratelimit_ext.web.bound_limit import Claim, ClaimMaker, Estimators, Naming, concerns
from ratelimit_ext.web.definitions import runtime_limits
from ratelimit_ext.web.manager import EndpointLimits, Manager

#: How many answers of an endpoint's limit callables are kept prepared.
MOST_VARIANTS: Final = 256
#: How many places are kept prepared: clients choose the method, and may choose the endpoint.
MOST_PLACES: Final = 4096

EDGE: Final = ""
#: The answer of whoever cannot be asked in this request: it has no limit for it.
NOTHING: Final = ("",)


class Place(NamedTuple):
    """Where limits are asked for.

    ``name`` is the decorated callable, ``None`` before a view without decorators, and :data:`EDGE`
    for a request that reaches no view.
    """

    app: flask.Flask
    endpoint: str
    blueprint: str | None
    method: str
    name: str | None


class Resolved(NamedTuple):
    """The claims of a place: ``shared`` ones with their definitions, as they are charged once.

    ``invalid`` are definitions whose function returned what is no limit. What they allow is
    unknown, so they deny.
    """

    shared: tuple[tuple[Limit, tuple[Claim, ...]], ...]
    own: tuple[Claim, ...]
    metas: tuple[Claim, ...]
    invalid: tuple[Limit, ...] = ()


@dataclass(slots=True)
class _Prepared:
    """What is known of a place: which questions its definitions have, each once, and claims by
    what was answered. ``asking`` tells by a definition's identity which question is its own."""

    questions: tuple[Callable[[], Any], ...]
    asking: dict[int, int]
    fresh_scopes: bool = False
    variants: dict[tuple[Any, ...], Resolved] = field(default_factory=dict)


class _Loaded:
    """The claims of definitions, by identity, and the definitions that could not be loaded."""

    def __init__(self) -> None:
        self.claims: dict[int, tuple[Claim, ...]] = {}
        self.invalid: list[Limit] = []

    def denying(self, method: str) -> tuple[Limit, ...]:
        """The invalid definitions that concern the method, but for shadows."""
        return tuple(
            definition
            for definition in self.invalid
            if concerns(definition, method) and getattr(definition, "mode", "") != "shadow"
        )


class Resolver:
    """Answers which claims a request has, for one extension."""

    def __init__(self, manager: Manager, logger: logging.Logger) -> None:
        self._manager = manager
        self._logger = logger
        self._prepared: dict[Place, _Prepared] = {}
        self._revision = -1
        self._naming = Naming("", "", "")
        self._metas: Sequence[MetaLimit] = ()
        self._estimators: Estimators = {}
        self._swallow_errors = False
        self._told: set[tuple[flask.Flask, str]] = set()

    def configure(
        self,
        naming: Naming,
        metas: Sequence[MetaLimit],
        estimators: Estimators,
        *,
        swallow_errors: bool,
    ) -> None:
        """Names, meta limits and estimates as the extension has them, and whether a function that
        fails is logged and its limit left out; forgets what was prepared."""
        self._naming, self._metas, self._estimators = naming, metas, estimators
        self._swallow_errors = swallow_errors
        self._prepared.clear()

    def resolve(self, place: Place) -> Resolved:
        """The claims of a place, for the present request."""
        if self._revision != self._manager.revision:
            self._prepared.clear()
            self._revision = self._manager.revision
        prepared = self._prepared.get(place)
        if prepared is None:
            if len(self._prepared) >= MOST_PLACES:
                self._prepared.clear()
            prepared = self._prepared[place] = self._questions(place)
        answers = tuple([self._answer(question, place) for question in prepared.questions])
        resolved = prepared.variants.get(answers)
        if resolved is None:
            answered = {each: answers[at] for each, at in prepared.asking.items()}
            resolved = self._compiled(place, answered)
            if len(prepared.variants) >= MOST_VARIANTS:
                prepared.variants.clear()
            prepared.variants[answers] = resolved
            prepared.fresh_scopes = any(callable(c.runtime.scope) for c in _all(resolved))
        return self._in_present_scopes(resolved, place) if prepared.fresh_scopes else resolved

    def of_definitions(self, place: Place, definitions: Iterable[Limit]) -> Resolved:
        """The claims of definitions that stand for themselves: a block's, or the fallback's."""
        maker, loaded = self._maker(place), _Loaded()
        own = [claim for each in definitions for claim in self._claims(place, each, None, loaded)]
        metas = [claim for each in self._metas for claim in self._claims(place, each, None, loaded)]
        return Resolved(
            (),
            tuple(maker.in_present_scope(claim) for claim in maker.concerned(own)),
            tuple(metas),
            loaded.denying(place.method),
        )

    def _maker(self, place: Place) -> ClaimMaker:
        return ClaimMaker(self._naming, place.endpoint, place.method, self._estimators)

    def _questions(self, place: Place) -> _Prepared:
        """What has to be asked at every request, by the definitions that may concern the place."""
        shared, own = self._candidates(place)
        questions: dict[Callable[[], Any], int] = {}
        asking: dict[int, int] = {}
        for definition in (*shared, *own, *self._metas):
            question = _question(definition)
            if question is not None and id(definition) not in asking:
                asking[id(definition)] = questions.setdefault(question, len(questions))
        return _Prepared(tuple(questions), asking)

    def _answer(self, question: Callable[[], Any], place: Place) -> Any:
        """What is answered. A request without a view may lack what the callables ask for."""
        try:
            return question()
        except Exception:
            if place.endpoint and place.name != EDGE:
                if not self._swallow_errors:
                    raise
                self._logger.exception(SWALLOWED)
                return NOTHING
            self._logger.debug("nobody answers %r", question, exc_info=True)
            return NOTHING

    def _candidates(self, place: Place) -> EndpointLimits:
        app, endpoint, blueprint, _, name = place
        if not endpoint or name == EDGE:
            return self._manager.edge(app, endpoint, blueprint)
        return self._manager.candidates(app, endpoint, blueprint, name)

    def _applicable(self, place: Place, yields: Callable[[Limit], bool]) -> EndpointLimits:
        app, endpoint, blueprint, method, name = place
        manager = self._manager
        if not endpoint or name == EDGE:
            return manager.edge(app, endpoint, blueprint)
        if name is None:
            return manager.before_view(app, endpoint, blueprint, method=method, yields=yields)
        return manager.at_callable(app, endpoint, blueprint, name, method=method, yields=yields)

    def _compiled(self, place: Place, answers: dict[int, Any]) -> Resolved:
        maker, loaded = self._maker(place), _Loaded()

        def claims(definition: Limit) -> tuple[Claim, ...]:
            return self._claims(place, definition, answers.get(id(definition)), loaded)

        shared, own = self._applicable(place, lambda definition: bool(claims(definition)))
        resolved = Resolved(
            tuple((each, maker.concerned(claims(each))) for each in shared),
            maker.concerned(claim for each in own for claim in claims(each)),
            tuple(claim for each in self._metas for claim in claims(each)),
            loaded.denying(place.method),
        )
        for claim in _all(resolved):
            if claim.unestimated:
                self._doubt(place.app, claim)
        return resolved

    def _claims(
        self, place: Place, definition: Limit, answer: Any, loaded: _Loaded
    ) -> tuple[Claim, ...]:
        """A claim per limit of the definition; none if it cannot be loaded, which is logged."""
        known = loaded.claims.get(id(definition))
        if known is None:
            try:
                known = self._maker(place).claims(
                    _expanded(definition, answer), edge=isinstance(definition, ApplicationLimit)
                )
            except ValueError as error:
                self._tell(place, answer[0] if answer else definition.limit_provider, error)
                loaded.invalid.append(definition)
                known = ()
            loaded.claims[id(definition)] = known
        return known

    def _doubt(self, app: flask.Flask, claim: Claim) -> None:
        """Log, once for each limit, that a call takes one token or dollar of it until it is
        settled. That may be meant; mostly it is forgotten."""
        if self._is_news(app, str(claim.limit)):
            unit = claim.limit.unit
            app.logger.warning(
                "the limit %s: nobody says what a call is estimated to cost, so each takes 1 of "
                "%s until it is settled. Register one with @limiter.estimator(%r), or state a "
                "cost; where 1 is meant, cost=lambda: 1 says so.",
                claim.limit.name or claim.runtime.limit,
                unit,
                unit,
            )

    def _is_news(self, app: flask.Flask, subject: str) -> bool:
        """Whether an application was told nothing of this yet; it is, from now on."""
        if (app, subject) in self._told:
            return False
        if len(self._told) >= MOST_VARIANTS:
            self._told.clear()
        self._told.add((app, subject))
        return True

    def _tell(self, place: Place, text: object, error: ValueError) -> None:
        """Log that a function returned what is no limit, to the application's logger: few people
        listen to Flask-Limiter's. Once for each string, as callers may choose it."""
        if self._is_news(place.app, str(text)):
            place.app.logger.error(
                "the limit of %s cannot be applied, and its requests are answered with 503: %s",
                place.name or place.endpoint or "a request without a view",
                error,
            )

    def _in_present_scopes(self, resolved: Resolved, place: Place) -> Resolved:
        fresh = self._maker(place).in_present_scope
        return Resolved(
            tuple((each, tuple(map(fresh, claims))) for each, claims in resolved.shared),
            tuple(map(fresh, resolved.own)),
            resolved.metas,
        )


def _all(resolved: Resolved) -> list[Claim]:
    return [*resolved.own, *(claim for _, claims in resolved.shared for claim in claims)]


def _question(definition: Limit) -> Callable[[], Any] | None:
    """What to ask for the definition at every request; None where it is static."""
    plan_loader: Callable[[], Any] | None = getattr(definition, "plan_loader", None)
    if plan_loader is not None:
        return plan_loader
    asked = (definition.limit_provider, *_meta_providers(definition))
    return partial(_stated, definition) if any(map(callable, asked)) else None


def _meta_providers(definition: Limit) -> list[Any]:
    metas = definition.meta_limits or ()
    return [meta.limit_provider if isinstance(meta, MetaLimit) else meta for meta in metas]


def _stated(definition: Limit) -> tuple[Any, ...]:
    """The definition's own string, then what the callables of its meta limits say."""
    provider = definition.limit_provider
    own = provider() if callable(provider) else provider
    return (own, *[meta() for meta in _meta_providers(definition) if callable(meta)])


def _expanded(definition: Limit, answer: Any) -> tuple[RuntimeLimit, ...]:
    """The runtime limits; for a definition that asks, those of what was answered."""
    if answer is None:
        return tuple(definition)
    text = answer[0]
    if plan := getattr(definition, "plan", ""):
        text = definition.limit_provider if answer == plan else ""
    return tuple(runtime_limits(definition, text))
