"""The charges of a request: one for each limit that applies, with its identity and cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Final, NamedTuple

import flask

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.key import LONGEST_CACHED, bucket_key, cached_tag
from ratelimit_ext.web.bound_limit import BoundCharge, BoundCharges, BoundLimit, Costs, new
from ratelimit_ext.web.request.resolver import MOST_VARIANTS, SWALLOWED, Resolver, RouteLimits

_tag_of: Final = partial(bucket_key, "")
SKIPPED: Final = "The limit %s does not count this caller: its key function returned no identity."

#: How many charges of callers are kept; a caller has some for each route.
MOST_KNOWN: Final = 2048


class _Answers(NamedTuple):
    """What the functions of limits have answered for a request, by their ids: whether it is exempt;
    the identity, with its part of a bucket's name; the cost; the class of traffic. The limits of
    one that fails are left out, and its error is logged at this level; 0: it is raised."""

    exempt: dict[int, bool]
    identities: dict[int, tuple[str, str]]
    costs: Costs
    classes: dict[int, str]
    level: int = 0


class Charges:
    def __init__(self, resolver: Resolver, logger: logging.Logger) -> None:
        self._resolver = resolver
        self._overrides = resolver.overrides
        self._logger = logger
        # A decorator would keep the charges of applications that are gone.
        kept = lru_cache(maxsize=MOST_KNOWN)
        self._of_names: Callable[[RouteLimits, tuple[str, ...]], BoundCharges] = kept(self._named)
        self._plan: Callable[[RouteLimits, tuple[bool, ...]], RouteLimits]
        self._plan = lru_cache(maxsize=MOST_VARIANTS)(RouteLimits.without)

    def planned(self, on_route: RouteLimits) -> BoundCharges:
        """Return the charges of the current request by limits that only its exemptions, identities
        and costs tell apart: but for its estimates, the same ones for a caller who comes again."""
        plan = on_route
        if on_route.exemptions:
            plan = self._plan(on_route, tuple([bool(asked()) for asked in on_route.exemptions]))
        names = tuple([n if type(n := ask()) is str else _name_of(n) for ask in plan.askers])
        if not self._overrides.identities.isdisjoint(names):
            return self._named(plan, names, is_kept=False)
        is_long = max(map(len, names), default=0) > LONGEST_CACHED
        kept = (self._named if is_long else self._of_names)(plan, names)
        unpriced = kept.prepared.unpriced
        if not unpriced:
            return kept
        charges, costs = list(kept), Costs()
        for place in unpriced:
            bound, name, (limit, key, *_, at_once, _) = charges[place]
            cost, claim = bound.priced(costs)
            charge = new(Charge, (limit, key, cost, False, (), at_once, claim))
            charges[place] = bound, name, charge
        return BoundCharges(charges, kept)

    def _named(
        self, plan: RouteLimits, names: tuple[str, ...], *, is_kept: bool = True
    ) -> BoundCharges:
        asked = zip(plan.askers, names, strict=True)
        identities = {id(ask): (name, bucket_key("", name)) for ask, name in asked}
        exempt = dict.fromkeys([id(bound.runtime.exempt_when) for bound in plan.limits], False)
        answers = _Answers(exempt, identities, {}, {})
        # What is kept is as bound: an override that is read meanwhile would be kept after its end.
        # Its estimates are those of each request.
        charges = self._charges(plan.limits, answers, as_bound=is_kept, is_priced=not is_kept)
        made, places = BoundCharges(charges), enumerate(charges)
        if is_kept:
            made.prepared.unpriced = tuple([i for i, c in places if c[0].fixed_cost is None])
        return made

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
        called once, whatever the number of limits that use it. ``as_bound``: limits that were
        charged before keep their amounts, whatever the overrides are now."""
        level = logging.DEBUG if lenient else logging.ERROR if swallow else 0
        answers = _Answers({}, {}, {}, {}, level)
        charges = self._charges(limits, answers, as_bound=as_bound)
        triggers = _triggers(charges) if metas else ()
        on_denials = [(meta, triggers) for meta in metas]
        for place, (bound, _, _) in enumerate(charges):
            if bound.metas:
                on_denials += [(meta, (place,)) for meta in bound.metas]
        for meta, on_denial in on_denials:
            for made in self._charges([meta], answers, as_bound=True):
                bound, identity, charge = made
                charges.append((bound, identity, charge._replace(meta=True, on_denial=on_denial)))
        return BoundCharges(charges)

    def _charges(
        self,
        limits: Iterable[BoundLimit],
        answers: _Answers,
        *,
        as_bound: bool,
        is_priced: bool = True,
    ) -> list[BoundCharge]:
        """Return the charges of these limits, unless the request is exempt or a function fails."""
        charges: list[BoundCharge] = []
        exempt, identities, costs, *_ = answers
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
                    name = _name_of(runtime.key_func())
                    tag_of = cached_tag if len(name) <= LONGEST_CACHED else _tag_of
                    cached = identities[id(runtime.key_func)] = name, tag_of(name)
                name, tag = cached
                if not name:
                    self._log_skipped(bound)
                    continue
                cost, claim = bound.priced(costs) if is_priced else (bound.fixed_cost or 0, None)
                key, at_once = bound.bucket_prefix + tag, 0 if bound.is_late else None
                charge = new(Charge, (bound.limit, key, cost, False, (), at_once, claim))
                if bound.varies or self._overrides.by_limit:
                    charges += self._applying((bound, name, charge), answers, as_bound=as_bound)
                else:
                    charges.append((bound, name, charge))
            except Exception:
                if not answers.level:
                    raise
                left_out = f"Left out {bound.limit}: a function failed"
                text = SWALLOWED if answers.level == logging.ERROR else left_out
                self._logger.log(answers.level, text, exc_info=True)
        return charges

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
                cost = adjusted.priced(answers.costs)[0]  # a guess is bounded by the capacity
            plain = plain._replace(limit=adjusted.limit, cost=cost)
        if (member := whole.member) is None:
            return [(adjusted, identity, plain)]
        who = answers.identities.get(id(member))
        if who is None:
            name = _name_of(member())
            who = answers.identities[id(member)] = name, _tag_of(name)
        guess = answers.costs.get((id(whole.estimate), whole.limit.unit == "usd"))
        return self._resolver.shared(whole, (adjusted, identity, plain), who, guess)


def _name_of(answer: object) -> str:
    """Return an identity as a text; empty for None, and for the address of an object."""
    text = "" if answer is None else str(answer)  # a user's id may be 0
    return text if isinstance(answer, str) or " at 0x" not in text else ""


def _triggers(charges: list[BoundCharge]) -> tuple[int, ...]:
    """Return the positions of the charges whose denial counts as the caller's; empty for all. A
    guard's denial does not. If there are only guards, it is a position that does not exist."""
    visible = tuple([i for i, (bound, _, _) in enumerate(charges) if bound.limit.visible])
    return () if len(visible) == len(charges) else visible or (len(charges),)
