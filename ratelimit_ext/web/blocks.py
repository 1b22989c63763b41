"""Blocks, which operators set and lift by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import flask
from flask_limiter._limits import RuntimeLimit

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.strategies.guards.block import BlockReason, check_reason, length_us, new_block
from ratelimit_ext.web.declarations.definitions import runtime_limits
from ratelimit_ext.web.declarations.limits_adapter import limit_of, options_of
from ratelimit_ext.web.inventory import Group, Inventory
from ratelimit_ext.web.storage import Engines


class Blocks:
    """The limits ``unless blocked`` of an extension, by their names."""

    def __init__(self, inventory: Inventory, engines: Engines) -> None:
        self._inventory = inventory
        self._engines = engines

    def names(self, app: flask.Flask, taking: str = "block") -> list[str]:
        guards = self._guards(app, taking)
        return sorted({options_of(runtime.limit).name for _, runtime in guards} - {""})

    def block(
        self,
        app: flask.Flask,
        name: str,
        identity: str,
        *,
        for_s: float | None,
        reason: BlockReason,
    ) -> bool:
        """See :meth:`Operators.block`."""
        for_us = length_us(for_s)
        check_reason(reason)
        charges = self._charges(app, name, identity, "block")
        blocks = [new_block(charge, for_us, reason) for charge in charges]
        return self._engines.primary.settle(blocks) > 0

    def unblock(self, app: flask.Flask, name: str, identity: str) -> bool:
        """See :meth:`Operators.unblock`."""
        charges = self._charges(app, name, identity, "unblock")
        return self._engines.primary.clear([charge.key for charge in charges]) > 0

    def _charges(self, app: flask.Flask, name: str, identity: str, taking: str) -> list[Charge]:
        """The identity's charges to the guards of that name, one per bucket. Raises
        ``OperatorError`` if there is no such guard."""
        charges: dict[str, Charge] = {}
        naming = self._inventory.naming
        for group, runtime in self._guards(app, taking, name):
            if callable(runtime.scope):
                raise OperatorError(
                    "unfit_scope",
                    f"The scope of the limit {name!r} is a function of the request, so it cannot "
                    "be blocked by name. Give the limit a fixed scope, or none.",
                )
            limit = limit_of(runtime.limit, naming.strategy)
            for method in group.methods if runtime.per_method else [""]:
                scope = runtime.scope_for(group.endpoint, method)
                key = bucket_key(naming.prefix(limit, scope), identity)
                charges[key] = Charge(limit, key)
        if not charges:
            known = ", ".join(map(repr, self.names(app, taking))) or "none"
            raise OperatorError(
                "unknown_limit",
                f"No limit 'unless blocked' is named {name!r}; known names: {known}. Give the "
                "limit that name.",
            )
        return list(charges.values())

    def _guards(
        self, app: flask.Flask, taking: str, name: str = ""
    ) -> Iterator[tuple[Group, RuntimeLimit]]:
        """Every guard, or those of that name, with each endpoint that it applies to; without those
        that functions return."""
        strategies = strategies_taking(taking)
        for definition, group in self._inventory.sites(app, name):
            text = definition.limit_provider
            with contextlib.suppress(ValueError):  # logged when a request needs it
                for runtime in () if callable(text) else runtime_limits(definition, text):
                    options = options_of(runtime.limit)
                    if options.strategy in strategies and name in ("", options.name):
                        yield group, runtime
