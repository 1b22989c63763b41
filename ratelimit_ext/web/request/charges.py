"""The charges of a request: one for each limit that applies, with its identity and cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Final, NamedTuple

import flask

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.key import LONGEST_CACHED, bucket_key, cached_tag
from ratelimit_ext.web.bound_limit import BoundCharge, BoundCharges, BoundLimit, Costs
from ratelimit_ext.web.request.resolver import SWALLOWED, Resolver, RouteLimits

#: Makes a named tuple of its items, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__
_tag_of: Final = partial(bucket_key, "")
SKIPPED: Final = "The limit %s does not count this caller: its key function returned no identity."

#: How many charges of callers are kept; a caller has some for each route.
MOST_KNOWN: Final = 2048


class _Answers(NamedTuple):
    """What the functions of limits have answered for a request, by their ids: whether it is exempt;
    the identity, with its part of a bucket's name; the cost; the class of traffic."""

    exempt: dict[int, bool]
    identities: dict[int, tuple[str, str]]
    costs: Costs
    classes: dict[int, str]


class Charges:
    def __init__(self, resolver: Resolver, logger: logging.Logger) -> None:
        self._resolver = resolver
        self._overrides = resolver.overrides
        self._logger = logger
        # A decorator would keep the charges of applications that are gone.
        kept = lru_cache(maxsize=MOST_KNOWN)
        self._of_names: Callable[[RouteLimits, tuple[str, ...]], BoundCharges] = kept(self._named)

    def cached(self, on_route: RouteLimits) -> BoundCharges:
        """Return the charges of the current request by limits that only its identities tell apart:
        the same ones for a caller who comes again."""
        names = tuple(["" if (name := ask()) is None else str(name) for ask in on_route.askers])
        if not self._overrides.identities.isdisjoint(names):
            return self._named(on_route, names, as_bound=False)
        make = self._named if max(map(len, names)) > LONGEST_CACHED else self._of_names
        return make(on_route, names)

    def _named(
        self, on_route: RouteLimits, names: tuple[str, ...], *, as_bound: bool = True
    ) -> BoundCharges:
        asked = zip(on_route.askers, names, strict=True)
        identities = {id(ask): (name, bucket_key("", name)) for ask, name in asked}
        answers = _Answers({}, identities, {}, {})
        leave_out = partial(self._leave_out, lenient=False, swallow=False)
        # What is kept is as bound: an override that is read meanwhile would be kept after its end.
        return BoundCharges(self._charges(on_route.limits, answers, leave_out, as_bound=as_bound))

    def of(
        self,
        limits: Iterable[BoundLimit],
        metas: Sequence[BoundLimit] = (),
        *,
        lenient: bool = False,
        swallow: bool = False,
        as_bound: bool = False,
    ) -> BoundCharges:
        """Return the charges of the current request; limits on denials come last. Each function is
        called once, whatever the number of limits that use it. If one fails, its limits are left
        out: silently if ``lenient``, with an error in the log if ``swallow``. ``as_bound``: limits
        that were charged before keep their amounts, whatever the overrides are now."""
        answers = _Answers({}, {}, {}, {})
        leave_out = partial(self._leave_out, lenient=lenient, swallow=swallow)
        charges = self._charges(limits, answers, leave_out, as_bound=as_bound)
        triggers = _triggers(charges) if metas else ()
        on_denials = [(meta, triggers) for meta in metas]
        for place, (bound, _, _) in enumerate(charges):
            if bound.metas:
                on_denials += [(meta, (place,)) for meta in bound.metas]
        for meta, on_denial in on_denials:
            for made in self._charges([meta], answers, leave_out, as_bound=True):
                bound, identity, charge = made
                charges.append((bound, identity, charge._replace(meta=True, on_denial=on_denial)))
        return BoundCharges(charges)

    def _charges(
        self,
        limits: Iterable[BoundLimit],
        answers: _Answers,
        leave_out: Callable[[BoundLimit, Exception], None],
        *,
        as_bound: bool,
    ) -> list[BoundCharge]:
        """Return the charges of these limits, unless the request is exempt or a function fails."""
        charges: list[BoundCharge] = []
        exempt, identities, costs, _ = answers
        for bound in limits:
            runtime = bound.runtime
            try:
                if (asked := runtime.exempt_when) is not None:
                    is_exempt = exempt.get(id(asked))
                    if is_exempt is None:
                        is_exempt = exempt[id(asked)] = asked()
                    if is_exempt:
                        continue
                cached = identities.get(id(runtime.key_func))
                if cached is None:
                    identity: object = runtime.key_func()
                    name = "" if identity is None else str(identity)  # a user's id may be 0
                    tag_of = cached_tag if len(name) <= LONGEST_CACHED else _tag_of
                    cached = identities[id(runtime.key_func)] = name, tag_of(name)
                name, tag = cached
                if not name:
                    self._log_skipped(bound)
                    continue
                cost = bound.fixed_cost
                if cost is None:
                    cost = bound.cost(costs)
                key, at_once = bound.bucket_prefix + tag, 0 if bound.is_late else None
                limit, is_held = bound.limit, bound.limit.held and at_once is None
                guess = costs.get((id(bound.estimate), True)) if is_held else None
                claim = getattr(guess, "claim", None)
                charge = _new(Charge, (limit, key, cost, False, (), at_once, claim))
                if bound.varies or self._overrides.by_limit:
                    charges += self._applying((bound, name, charge), answers, as_bound=as_bound)
                else:
                    charges.append((bound, name, charge))
            except Exception as error:  # noqa: BLE001 - whatever the application's functions raise
                leave_out(bound, error)
        return charges

    def _leave_out(
        self, bound: BoundLimit, error: Exception, *, lenient: bool, swallow: bool
    ) -> None:
        """Note that a function of the limit failed; raises its error if it is no reason to leave
        the limit out."""
        if lenient:
            self._logger.debug("Left out %s: a function failed", bound.limit, exc_info=error)
        elif swallow:
            self._logger.error(SWALLOWED, exc_info=error)
        else:
            raise error

    def _log_skipped(self, bound: BoundLimit) -> None:
        app = flask.current_app
        if self._resolver.log_once(app, f"no identity: {bound.bucket_prefix}"):
            # Flask-Limiter's logger has no handler, so by default nothing would show it.
            app.logger.error(SKIPPED, bound.runtime.limit)

    def _applying(
        self, charge: BoundCharge, answers: _Answers, *, as_bound: bool
    ) -> list[BoundCharge]:
        """Return the charge of the same bucket with the amount that applies: that of an override,
        and of the request's class; empty if none applies."""
        bound, identity, plain = charge
        whole = adjusted = bound if as_bound else self._resolver.adjusted(bound, identity)
        if adjusted is not None and adjusted.limit.keep:
            priority, classes = adjusted.limit.priority, answers.classes
            if id(priority) not in classes:
                classes[id(priority)] = str(priority())
            adjusted = self._resolver.of_class(adjusted, classes[id(priority)])
        if adjusted is None or whole is None:
            return []
        if adjusted is not bound:
            cost = plain.cost
            if cost and (adjusted.estimate is not None or adjusted.fixed_cost is not None):
                cost = adjusted.cost(answers.costs)  # a guess is bounded by the capacity
            plain = plain._replace(limit=adjusted.limit, cost=cost)
        if (member := whole.member) is None:
            return [(adjusted, identity, plain)]
        who = answers.identities.get(id(member))
        if who is None:
            answer = member()
            name = "" if answer is None else str(answer)  # as of an identity
            who = answers.identities[id(member)] = name, _tag_of(name)
        guess = answers.costs.get((id(whole.estimate), whole.limit.unit == "usd"))
        return self._resolver.shared(whole, (adjusted, identity, plain), who, guess)


def _triggers(charges: list[BoundCharge]) -> tuple[int, ...]:
    """Return the positions of the charges whose denial counts as the caller's; empty for all. A
    guard's denial does not. If there are only guards, it is a position that does not exist."""
    visible = tuple([i for i, (bound, _, _) in enumerate(charges) if bound.limit.visible])
    return () if len(visible) == len(charges) else visible or (len(charges),)
