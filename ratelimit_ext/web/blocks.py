"""The buckets of a guard, found by its name: an operator has no request at hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import flask
from flask_limiter import Limit
from flask_limiter.util import get_qualified_name

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.web.claims import Naming
from ratelimit_ext.web.definitions import runtime_limits
from ratelimit_ext.web.limits_adapter import items_of, limit_of, options_of
from ratelimit_ext.web.manager import Manager


def names_of_blocks(app: flask.Flask, manager: Manager) -> list[str]:
    """The names of all limits that say ``unless blocked``."""
    return sorted(_names(app, manager, strategies_taking("block")))


def charges_on(
    app: flask.Flask,
    manager: Manager,
    naming: Naming,
    *,
    name: str,
    identity: str,
    strategies: tuple[str, ...],
) -> list[Charge]:
    """What a request of that identity would charge to the guards of that name: one charge a
    bucket. Raises ``ValueError`` where there is no such guard."""
    charges: dict[str, Charge] = {}
    for endpoint, methods, runtime in _guards(app, manager, strategies):
        if options_of(runtime.limit).name != name:
            continue
        if callable(runtime.scope):
            raise ValueError(  # noqa: TRY004 - the name is wrong for this, and no type is
                f"the scope of the limit {name!r} is a function of the request, and there is none; "
                "give the limit a scope that is a text, or none"
            )
        limit = limit_of(runtime.limit, naming.strategy)
        for method in methods if runtime.per_method else [""]:
            scope = runtime.scope_for(endpoint, method)
            key = bucket_key(naming.prefix(limit, scope), identity)
            charges[key] = Charge(limit, key)
    if not charges:
        known = ", ".join(map(repr, sorted(_names(app, manager, strategies)))) or "none"
        raise ValueError(
            f"no limit 'unless blocked' is called {name!r}; there are: {known}. Give the limit "
            "that name."
        )
    return list(charges.values())


def _names(app: flask.Flask, manager: Manager, strategies: tuple[str, ...]) -> set[str]:
    guards = _guards(app, manager, strategies)
    return {options_of(runtime.limit).name for _, _, runtime in guards} - {""}


def _guards(
    app: flask.Flask, manager: Manager, strategies: tuple[str, ...]
) -> Iterator[tuple[str, list[str], Any]]:
    """Every guard with each endpoint that it stands before, and that endpoint's methods."""
    for rule in app.url_map.iter_rules():
        endpoint, methods = rule.endpoint, sorted(rule.methods or ())
        view, blueprint = app.view_functions[endpoint], endpoint.rpartition(".")[0] or None
        found = manager.candidates(app, endpoint, blueprint, get_qualified_name(view))
        for definition in chain(found.shared, found.own):
            for runtime in _runtimes(definition):
                if options_of(runtime.limit).strategy in strategies:
                    yield endpoint, methods, runtime


def _runtimes(definition: Limit) -> Iterator[Any]:
    """The runtime limits that a definition states; none where a callable states them."""
    text: Any = definition.limit_provider
    options = getattr(definition, "options", None)
    if callable(text) or options is None:
        return
    try:
        items = items_of(text, options)
    except ValueError:  # logged when a request needs it
        return
    yield from runtime_limits(definition, items)
