"""``flask limiter limits`` and ``flask limiter clear`` for our limits.

Flask-Limiter's commands know amounts per period and identities as they are stored. They are found
by ``flask`` before the application is loaded, so they cannot be replaced: as soon as one of them
asks the manager for limits, it is continued here.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import click
import flask
from flask_limiter import Limit as Definition
from flask_limiter._limits import RuntimeLimit
from flask_limiter.util import get_qualified_name

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.limit import NO_OPTIONS, Limit
from ratelimit_ext.engine.protocol import Engine
from ratelimit_ext.web.bound_limit import Naming
from ratelimit_ext.web.definitions import runtime_limits
from ratelimit_ext.web.identities import Identity, spellings
from ratelimit_ext.web.limits_adapter import items_of, limit_of
from ratelimit_ext.web.manager import Applicable, Manager

STOCK = "flask_limiter.commands"


@dataclass(frozen=True, slots=True)
class Extension:
    """What the commands use of the extension."""

    manager: Manager
    identities: Mapping[str, Identity]
    metas: Sequence[Any]
    naming: Naming
    engine: Engine
    is_deferred: Callable[[str, Any, str | None], bool]


class Listed(NamedTuple):
    """A limit before an endpoint. ``prefix`` is the name of its buckets up to the identity."""

    definition: Definition
    runtime: RuntimeLimit
    limit: Limit
    method: str
    prefix: str


def take_over(extension: Extension, app: flask.Flask) -> None:
    """Continue a command of Flask-Limiter's that is running, and end it."""
    context, stock = click.get_current_context(silent=True), sys.modules.get(STOCK)
    if context is None or stock is None:
        return
    if context.command is stock.limits:
        _show(extension, app, context.params)
        context.exit(0)
    if context.command is stock.clear:
        context.exit(_clear(extension, app, context.params))


def _show(extension: Extension, app: flask.Flask, options: dict[str, Any]) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            text = "\n".join(_lines(extension, app, options))
            if options["watch"]:
                click.clear()
            click.echo(text)
            if not options["watch"]:
                return
            time.sleep(1)


def _lines(extension: Extension, app: flask.Flask, options: dict[str, Any]) -> Iterator[str]:
    for title, definitions, endpoint, methods in _places(extension, app, options):
        yield title
        for definition in definitions:
            try:
                listed = list(_listed(extension, definition, endpoint, methods))
            except Exception as error:  # noqa: BLE001 - a function of the application
                yield f"  given by {_name(definition.limit_provider)} at each request ({error})"
                continue
            for each in listed:
                state = _state(extension, each, options["key"]) if options["key"] else ""
                yield f"  {_described(extension, each)}{state}"


def _clear(extension: Extension, app: flask.Flask, options: dict[str, Any]) -> int:
    """Clear what is counted for a caller; the status of the command."""
    key = options["key"]
    if not options["y"] and not click.confirm(f"Clear all limits of {key!r}?"):
        return 1
    buckets: dict[str, None] = {}
    for _, definitions, endpoint, methods in _places(extension, app, options):
        for definition in definitions:
            with contextlib.suppress(Exception):  # a function that needs a request
                for each in _listed(extension, definition, endpoint, methods):
                    names = (bucket_key(each.prefix, name) for name in spellings(key))
                    buckets.update(dict.fromkeys(names))
    cleared = extension.engine.clear(list(buckets))
    if not cleared:
        click.echo(
            f"Nothing is counted for {key!r}: nothing was cleared. Write the identity as the key "
            "function returns it, such as an address, a user's name or an API key.",
            err=True,
        )
        return 1
    click.echo(f"Cleared {cleared} {'count' if cleared == 1 else 'counts'} of {key!r}.")
    return 0


def _places(
    extension: Extension, app: flask.Flask, options: dict[str, Any]
) -> Iterator[tuple[str, Iterable[Definition], str, list[str]]]:
    """A title, the definitions, the endpoint and its methods, of each place with limits."""
    manager = extension.manager
    only = _filtered(app, options)
    if only is None:
        if manager._application_limits:
            yield "Application", manager._application_limits, "", [""]
        if extension.metas:
            yield "Denials", extension.metas, "", [""]
    for rule in sorted(app.url_map.iter_rules(only), key=str):
        if rule.endpoint == "static":
            continue
        methods = sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}) or ["GET"]
        shared, own = _applicable(extension, app, rule.endpoint, methods[0])
        definitions = [each for each in shared if each not in manager._application_limits]
        yield f"{rule.endpoint}: {rule}", [*own, *definitions], rule.endpoint, methods


def _filtered(app: flask.Flask, options: dict[str, Any]) -> str | None:
    """The one endpoint that is meant; Flask-Limiter's command has refused unknown ones."""
    if options["endpoint"] or not options["path"]:
        return options["endpoint"]  # type: ignore[no-any-return]
    adapter = app.url_map.bind("localhost")
    endpoint, _ = adapter.match(options["path"], method=options["method"])
    return str(endpoint)


def _applicable(extension: Extension, app: flask.Flask, endpoint: str, method: str) -> Applicable:
    view, blueprint = app.view_functions[endpoint], endpoint.rpartition(".")[0] or None
    manager, name = extension.manager, get_qualified_name(view)
    if extension.is_deferred(endpoint, view, blueprint):
        return manager.at_callable(
            app, endpoint, blueprint, name, method=method, yields=lambda _: True
        )
    return manager.before_view(app, endpoint, blueprint, method=method, yields=lambda _: True)


def _listed(
    extension: Extension, definition: Definition, endpoint: str, methods: list[str]
) -> Iterator[Listed]:
    for runtime in _runtimes(definition):
        for each in (runtime, *(runtime.meta_limits or ())):
            limit = limit_of(each.limit, extension.naming.strategy)
            for method in methods if each.per_method else [""]:
                prefix = extension.naming.prefix(limit, each.scope_for(endpoint, method))
                yield Listed(definition, each, limit, method, prefix)


def _runtimes(definition: Definition) -> Iterable[RuntimeLimit]:
    """The runtime limits; of a plan's, whoever has the plan."""
    if getattr(definition, "items", None) is None:
        return definition
    options = getattr(definition, "options", NO_OPTIONS)
    return runtime_limits(definition, items_of(definition.limit_provider, options))


def _described(extension: Extension, listed: Listed) -> str:
    limit, runtime = listed.limit, listed.runtime
    plan = getattr(listed.definition, "plan", "")
    words = [
        limit.strategy,
        f"burst {limit.burst}" if limit.burst else "",
        limit.unit if limit.unit not in ("requests", "usd", "calls") else "",
        f"anchor {limit.anchor}" if limit.anchor else "",
        f"key {_key_name(extension, runtime.key_func)}",
        f"plan {plan}" if plan else "",
        f"methods {', '.join(sorted(runtime.methods)).upper()}" if runtime.methods else "",
        "" if limit.mode == "enforce" else limit.mode,
    ]
    name = f"{limit.name}: " if limit.name else ""
    method = f" ({listed.method})" if listed.method else ""
    return f"{name}{runtime.limit}{method} [{', '.join(filter(None, words))}]"


def _key_name(extension: Extension, function: Callable[..., Any]) -> str:
    for name, identity in extension.identities.items():
        if identity is function:
            return name
    return _name(function)


def _name(function: object) -> str:
    return str(getattr(function, "__name__", function))


def _state(extension: Extension, listed: Listed, key: str) -> str:
    """What is left for a caller: for the spelling that has used most."""
    limit = listed.limit
    verdicts = [_look(extension, listed, name) for name in spellings(key)]
    if not limit.told:
        return ": Pass" if all(verdict.allowed for verdict in verdicts) else ": Fail"
    left = min(verdict.remaining for verdict in verdicts)
    passes = "Pass" if left else "Fail"
    return f": {passes} ({limit.outside(left)} out of {limit.outside(limit.capacity)} remaining)"


def _look(extension: Extension, listed: Listed, identity: str) -> Verdict:
    # A block is no block for a cost of 0.
    cost = 0 if listed.limit.told else 1
    charge = Charge(listed.limit, bucket_key(listed.prefix, identity), cost)
    return extension.engine.admit([charge], take=False).verdicts[0]
