"""The charges of a request: one for each limit that applies, with its identity and cost."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final

import flask

from ratelimit_ext.core.charge import Charge, Guess
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.web.bound_limit import BoundCharge, BoundLimit
from ratelimit_ext.web.request.resolver import SWALLOWED, Resolver

#: Makes a named tuple of its items, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__
SKIPPED: Final = "The limit %s does not count this caller: its key function returned no identity."


class Charges:
    """Makes the charges of requests, for one extension."""

    def __init__(self, resolver: Resolver, logger: logging.Logger) -> None:
        self._resolver = resolver
        self._overrides = resolver.overrides
        self._logger = logger

    def of(
        self,
        limits: Iterable[BoundLimit],
        metas: Sequence[BoundLimit] = (),
        *,
        lenient: bool = False,
        swallow: bool = False,
        as_bound: bool = False,
    ) -> list[BoundCharge]:
        """Return the charges of the current request; limits on denials come last. Each function is
        called once, whatever the number of limits that use it. If one fails, its limits are left
        out: silently if ``lenient``, with an error in the log if ``swallow``. ``as_bound``: limits
        that were charged before keep their amounts, whatever the overrides are now."""
        identities: dict[int, tuple[str, str]] = {}
        costs: dict[tuple[int, bool], int | Guess] = {}
        charges: list[BoundCharge] = []
        on_denials: list[tuple[BoundLimit, tuple[int, ...]]] = []
        for bound in limits:
            charge = self._charge(bound, identities, costs, lenient, swallow, as_bound)
            if charge is not None:
                if bound.metas:
                    on_denials += [(meta, (len(charges),)) for meta in bound.metas]
                charges.append(charge)
        if metas:
            triggers = _triggers(charges)
            on_denials[:0] = [(meta, triggers) for meta in metas]
        for meta, on_denial in on_denials:
            charge = self._charge(meta, identities, costs, lenient, swallow, True)
            if charge is not None:
                applied, identity, own = charge
                own = own._replace(meta=True, on_denial=on_denial)
                charges.append((applied, identity, own))
        return charges

    def _charge(
        self,
        bound: BoundLimit,
        identities: dict[int, tuple[str, str]],
        costs: dict[tuple[int, bool], int | Guess],
        lenient: bool,
        swallow: bool,
        as_bound: bool,
    ) -> BoundCharge | None:
        """Return the charge of one limit; ``None`` if the request is exempt, or a function failed.
        ``identities`` are the answers of identity functions, with their part of a bucket's name."""
        runtime = bound.runtime
        try:
            if runtime.exempt_when is not None and runtime.exempt_when():
                return None
            known = identities.get(id(runtime.key_func))
            if known is None:
                identity: object = runtime.key_func()
                name = "" if identity is None else str(identity)  # a user's id may be 0
                known = name, bucket_key("", name)
                identities[id(runtime.key_func)] = known
            name, tag = known
            if name:
                cost = bound.fixed_cost
                if cost is None:
                    cost = bound.cost(costs)
                key = bound.bucket_prefix + tag
                at_once = 0 if bound.is_late else None
                own = _new(Charge, (bound.limit, key, cost, False, (), at_once))
                if bound.varies or self._overrides.by_limit:
                    return self._applying((bound, name, own), identities, costs, as_bound)
                return bound, name, own
        except Exception:
            if lenient:
                self._logger.debug("Left out %s: a function failed", bound.limit, exc_info=True)
            elif swallow:
                self._logger.exception(SWALLOWED)
            else:
                raise
            return None
        app = flask.current_app
        if self._resolver.log_once(app, f"no identity: {bound.bucket_prefix}"):
            # Flask-Limiter's logger has no handler, so by default nothing would show it.
            app.logger.error(SKIPPED, runtime.limit)
        return None

    def _applying(
        self,
        charge: BoundCharge,
        identities: dict[int, tuple[str, str]],
        costs: dict[tuple[int, bool], int | Guess],
        as_bound: bool,
    ) -> BoundCharge | None:
        """Return the charge of the same bucket with the amount that applies: that of an override,
        and of the request's class."""
        bound, identity, own = charge
        adjusted = bound if as_bound else self._resolver.adjusted(bound, identity)
        if adjusted is not None and adjusted.limit.keep:
            priority = adjusted.limit.priority
            if id(priority) not in identities:
                identities[id(priority)] = str(priority()), ""
            adjusted = self._resolver.of_class(adjusted, identities[id(priority)][0])
        if adjusted is None or adjusted is bound:
            return None if adjusted is None else charge
        cost = own.cost
        if cost and (adjusted.estimate is not None or adjusted.fixed_cost is not None):
            cost = adjusted.cost(costs)  # a guess is bounded by the capacity
        return adjusted, identity, own._replace(limit=adjusted.limit, cost=cost)


def _triggers(charges: list[BoundCharge]) -> tuple[int, ...]:
    """Return the positions of the charges whose denial counts as the caller's; empty for all. A
    guard's denial does not. If there are only guards, it is a position that does not exist."""
    visible = tuple([i for i, (bound, _, _) in enumerate(charges) if bound.limit.visible])
    return () if len(visible) == len(charges) else visible or (len(charges),)
