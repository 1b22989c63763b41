"""Blocks, which operators set and lift by name; and further attempts of an admitted request."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import flask
from flask_limiter import Limit
from flask_limiter.util import get_qualified_name

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.strategies.guards.block import BlockReason, NewBlock, check_reason, length_us
from ratelimit_ext.web.bound_limit import BoundCharge, ChargeRecord, Records
from ratelimit_ext.web.declarations.code_checks import KnownNames
from ratelimit_ext.web.declarations.definitions import methods_called, runtime_limits
from ratelimit_ext.web.declarations.limits_adapter import limit_of, options_of
from ratelimit_ext.web.request.admission import Admission
from ratelimit_ext.web.request.request_state import RequestState
from ratelimit_ext.web.resolver import Resolver
from ratelimit_ext.web.storage import Engines


class Blocks:
    """The limits ``unless blocked`` of an extension, by their names."""

    def __init__(self, resolver: Resolver, engines: Engines) -> None:
        self._manager = resolver.manager
        self._naming = resolver.naming
        self._engines = engines

    def names(self, app: flask.Flask) -> list[str]:
        """The names of all blocks."""
        return sorted(self._names(app, strategies_taking("block")))

    def block(
        self,
        app: flask.Flask,
        name: str,
        identity: str,
        *,
        for_s: float | None,
        reason: BlockReason,
    ) -> bool:
        """See :meth:`Limiter.block`."""
        for_us = length_us(for_s)
        check_reason(reason)
        charges = self._charges(app, name, identity, strategies_taking("block"))
        blocks = [NewBlock(charge, for_us, reason) for charge in charges]
        return self._engines.primary.settle(blocks) > 0

    def unblock(self, app: flask.Flask, name: str, identity: str) -> bool:
        """See :meth:`Limiter.unblock`."""
        charges = self._charges(app, name, identity, strategies_taking("unblock"))
        return self._engines.primary.clear([charge.key for charge in charges]) > 0

    def _charges(
        self, app: flask.Flask, name: str, identity: str, strategies: tuple[str, ...]
    ) -> list[Charge]:
        """The identity's charges to the guards of that name, one per bucket. Raises ``ValueError``
        if there is no such guard."""
        charges: dict[str, Charge] = {}
        for endpoint, methods, runtime in self._guards(app, strategies):
            if options_of(runtime.limit).name != name:
                continue
            if callable(runtime.scope):
                raise ValueError(  # noqa: TRY004 - the name is invalid here, not a type
                    f"The scope of the limit {name!r} is a function of the request, so it cannot "
                    "be blocked by name. Give the limit a fixed scope, or none."
                )
            limit = limit_of(runtime.limit, self._naming.strategy)
            for method in methods if runtime.per_method else [""]:
                scope = runtime.scope_for(endpoint, method)
                key = bucket_key(self._naming.prefix(limit, scope), identity)
                charges[key] = Charge(limit, key)
        if not charges:
            known = ", ".join(map(repr, sorted(self._names(app, strategies)))) or "none"
            raise ValueError(
                f"No limit 'unless blocked' is named {name!r}; known names: {known}. Give the "
                "limit that name."
            )
        return list(charges.values())

    def _names(self, app: flask.Flask, strategies: tuple[str, ...]) -> set[str]:
        guards = self._guards(app, strategies)
        return {options_of(runtime.limit).name for _, _, runtime in guards} - {""}

    def _guards(
        self, app: flask.Flask, strategies: tuple[str, ...]
    ) -> Iterator[tuple[str, list[str], Any]]:
        """Every guard with each endpoint that it applies to, and that endpoint's methods."""
        for rule in app.url_map.iter_rules():
            endpoint, methods = rule.endpoint, sorted(rule.methods or ())
            view, blueprint = app.view_functions[endpoint], endpoint.rpartition(".")[0] or None
            called = chain.from_iterable(methods_called(view, method) for method in methods)
            for name in {get_qualified_name(each) for each in (view, *called)}:
                found = self._manager.candidates(app, endpoint, blueprint, name)
                for definition in chain(found.shared, found.own):
                    for runtime in _runtimes(definition):
                        if options_of(runtime.limit).strategy in strategies:
                            yield endpoint, methods, runtime


class Attempts:
    """Further attempts of an admitted request, such as a retry or a call of another model."""

    def __init__(
        self,
        admission: Admission,
        known_names: KnownNames,
        *,
        logger: logging.Logger,
    ) -> None:
        self._admission = admission
        self._known_names = known_names
        self._logger = logger

    def admit(self, state: RequestState, names: tuple[str, ...]) -> float | None:
        """See :meth:`Limiter.admit_again`."""
        charges, replaced, superseded = self._charges(state, names)
        decided = self._decide(charges)
        if decided is None:
            return None
        decision, records = decided
        if not decision.admitted:
            wait_ms = decision.retry_after_ms
            return math.inf if wait_ms is None else wait_ms / 1000
        # What the failed attempt took stays charged: it was made.
        gone = set(map(id, replaced))
        state.taken[:] = [record for record in state.taken if id(record) not in gone]
        if superseded:  # held of another identity, which the call no longer uses
            state.reserved().give_back(superseded)
        state.taken.extend(record for record in records if record.verdict.allowed)
        return None

    def _charges(
        self, state: RequestState, names: tuple[str, ...]
    ) -> tuple[list[BoundCharge], list[ChargeRecord], list[ChargeRecord]]:
        """What an attempt is charged: by the limits of these names, and by all that hold an
        estimate. With the records that it replaces, and those whose hold is not used any more."""
        again = [
            record
            for record in state.taken
            if record.bound.limit.name in names or record.bound.limit.held
        ]
        for name in set(names).difference(record.bound.limit.name for record in again):
            self._known_names.check_name(name, "admit_again")
        limits = list({id(record.bound): record.bound for record in again}.values())
        charges: list[BoundCharge] = []
        superseded: list[ChargeRecord] = []
        for bound, identity, charge in self._admission.charges(limits, as_bound=True):
            cost = charge.cost
            if bound.limit.held:
                own = [record for record in again if record.bound is bound]
                held = [record for record in own if record.verdict.charge.key == charge.key]
                superseded += [r for r in own if r.verdict.charge.key != charge.key]
                cost -= sum(record.cost for record in held)
                if held and cost <= 0:
                    continue
            charges.append((bound, identity, charge._replace(cost=cost)))
        replaced = [record for record in again if not record.bound.limit.held]
        return charges, replaced, superseded

    def _decide(self, charges: list[BoundCharge]) -> tuple[Decision, Records] | None:
        """``None`` if there are no charges, or if they could not be decided."""
        if not charges:
            return None
        try:
            return self._admission.decide_again(flask.request.endpoint or "", charges)
        except Exception:
            self._logger.exception("Another attempt could not be decided, and is admitted")
            return None


def _runtimes(definition: Limit) -> Iterator[Any]:
    """The runtime limits of a definition; none if its string is a function."""
    if not callable(definition.limit_provider):
        with contextlib.suppress(ValueError):  # logged when a request needs it
            yield from runtime_limits(definition, definition.limit_provider)
