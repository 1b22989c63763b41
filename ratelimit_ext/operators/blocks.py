"""The guards that operators set and lift by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import flask
from flask_limiter._limits import RuntimeLimit

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.web.declarations.definitions import runtime_limits
from ratelimit_ext.web.declarations.limits_adapter import limit_of, options_of
from ratelimit_ext.web.inventory import Group, Inventory


def guard_charges(
    inventory: Inventory, app: flask.Flask, name: str, identity: str, taking: str
) -> list[Charge]:
    """Return the identity's charges to the guards of that name that take this act, one per bucket.
    Raises ``OperatorError`` if there is no such guard."""
    charges: dict[str, Charge] = {}
    naming = inventory.naming
    for group, runtime in _guards(inventory, app, taking, name):
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
        guards = _guards(inventory, app, taking)
        names = {options_of(runtime.limit).name for _, runtime in guards} - {""}
        known = ", ".join(map(repr, sorted(names))) or "none"
        raise OperatorError(
            "unknown_limit",
            f"No limit 'unless blocked' is named {name!r}; known names: {known}. Give the "
            "limit that name.",
        )
    return list(charges.values())


def _guards(
    inventory: Inventory, app: flask.Flask, taking: str, name: str = ""
) -> Iterator[tuple[Group, RuntimeLimit]]:
    """Yield every guard, or those of that name, with each endpoint that it applies to; without
    those that functions return."""
    strategies = strategies_taking(taking)
    for definition, group in inventory.sites(app, name):
        text = definition.limit_provider
        with contextlib.suppress(ValueError):  # logged when a request needs it
            for runtime in () if callable(text) else runtime_limits(definition, text):
                options = options_of(runtime.limit)
                if options.strategy in strategies and name in ("", options.name):
                    yield group, runtime
