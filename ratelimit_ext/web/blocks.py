"""Blocks, which operators set and lift by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

import flask
from flask_limiter import Limit
from flask_limiter.util import get_qualified_name

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.strategies.guards.block import BlockReason, NewBlock, check_reason, length_us
from ratelimit_ext.web.declarations.definitions import methods_called, runtime_limits
from ratelimit_ext.web.declarations.limits_adapter import limit_of, options_of
from ratelimit_ext.web.request.resolver import Resolver
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


def _runtimes(definition: Limit) -> Iterator[Any]:
    """The runtime limits of a definition; none if its string is a function."""
    if not callable(definition.limit_provider):
        with contextlib.suppress(ValueError):  # logged when a request needs it
            yield from runtime_limits(definition, definition.limit_provider)
