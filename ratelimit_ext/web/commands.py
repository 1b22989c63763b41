"""``flask limiter limits`` and ``flask limiter clear``, with strategies, plans and identities.

``flask`` finds Flask-Limiter's commands before it loads the application, so they cannot be
replaced. As soon as one of them reads limits from the manager, it is continued here. Its output
contains the phrases of Flask-Limiter.
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
from limits.storage import Storage
from limits.strategies import RateLimiter

from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.web.bound_limit import Naming
from ratelimit_ext.web.definitions import runtime_limits
from ratelimit_ext.web.identities import Identity, spellings
from ratelimit_ext.web.limits_adapter import limit_of
from ratelimit_ext.web.manager import Manager


@dataclass(frozen=True, slots=True)
class CommandParts:
    """What the commands use of an extension."""

    manager: Manager
    identities: Mapping[str, Identity]
    metas: Sequence[Definition]
    naming: Naming
    engine: Engine
    limiter: RateLimiter
    storage: Storage
    is_deferred: Callable[[str, Any, str | None], bool]


class Group(NamedTuple):
    """The limits under one title."""

    title: str
    definitions: Iterable[Definition]
    endpoint: str = ""
    methods: tuple[str, ...] = ("",)


class Row(NamedTuple):
    """A limit of an endpoint; with a ``method`` if each method has a bucket of its own."""

    runtime: RuntimeLimit
    limit: Limit
    plan: str
    method: str
    scope: str


def take_over(parts: CommandParts, app: flask.Flask) -> None:
    """Continue and end a command of Flask-Limiter's, if one is running."""
    context = click.get_current_context(silent=True)
    stock = sys.modules.get("flask_limiter.commands")
    if context is None or stock is None:
        return
    if context.command is stock.limits:
        LimitsCommand(parts, app, context.params).show()
        context.exit(0)
    if context.command is stock.clear:
        context.exit(LimitsCommand(parts, app, context.params).clear())


class LimitsCommand:
    """A running command with its options."""

    def __init__(self, parts: CommandParts, app: flask.Flask, options: dict[str, Any]) -> None:
        self._parts = parts
        self._app = app
        self._options = options

    def show(self) -> None:
        """Print the limits, and what they leave to the key if one is given."""
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                text = "\n".join(self._lines())
                if not self._options["watch"]:
                    click.echo(text)
                    return
                click.clear()
                click.echo(text)
                time.sleep(1)

    def clear(self) -> int:
        """Clear what is counted for the key, and return the status of the command."""
        key = self._options["key"]
        if not self._options["y"] and not click.confirm(f"Clear all limits of {key!r}?"):
            return 1
        buckets: dict[str, None] = {}
        lines: list[str] = []
        for group in self._groups():
            cleared: dict[str, None] = {}
            for definition in group.definitions:
                with contextlib.suppress(Exception):  # a function that needs a request
                    for row in self._rows(definition, group):
                        prefix = self._parts.naming.prefix(row.limit, row.scope)
                        names = (bucket_key(prefix, name) for name in spellings(key))
                        buckets.update(dict.fromkeys(names))
                        cleared[self._describe(row._replace(method=""), ": Cleared")] = None
            lines += _tree(group.title, cleared)
        count = self._parts.engine.clear(list(buckets))
        click.echo("\n".join(lines))
        if not count:
            click.echo(
                f"Nothing was counted for {key!r}. Write the identity as the key function returns "
                "it, such as an address, a user name or an API key.",
                err=True,
            )
            return 1
        click.echo(f"Cleared {count} {'count' if count == 1 else 'counts'} of {key!r}.")
        return 0

    def _lines(self) -> Iterator[str]:
        is_available = not self._options["key"] or self._parts.storage.check()
        manager = self._parts.manager
        for group in self._groups():
            entries = []
            for definition in group.definitions:
                try:
                    rows = list(self._rows(definition, group))
                except Exception as error:  # noqa: BLE001 - a function of the application
                    name = _function_name(definition.limit_provider)
                    entries.append(f"returned by {name} at each request ({error})")
                    continue
                for row in rows:
                    state = self._state(row) if is_available else ": Storage not available"
                    entries.append(self._describe(row, state))
            blueprint = group.endpoint.rpartition(".")[0] or None
            if not entries and manager.exemption_scope(self._app, group.endpoint, blueprint):
                entries = ["Exempt"]
            yield from _tree(group.title, entries)

    def _groups(self) -> Iterator[Group]:
        app, parts = self._app, self._parts
        manager, endpoint = parts.manager, self._options["endpoint"]
        if not endpoint and self._options["path"]:
            # Flask-Limiter's command has already refused a path that does not exist.
            adapter = app.url_map.bind("localhost")
            endpoint, _ = adapter.match(self._options["path"], method=self._options["method"])
        if not endpoint and manager._application_limits:
            yield Group("Application Limits", manager._application_limits)
        if not endpoint and parts.metas:
            yield Group("Meta Limits", parts.metas)
        for rule in sorted(app.url_map.iter_rules(endpoint), key=str):
            name = rule.endpoint
            if name == "static":
                continue
            methods = tuple(sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})) or ("GET",)
            view, blueprint = app.view_functions[name], name.rpartition(".")[0] or None
            if parts.is_deferred(name, view, blueprint):
                function = get_qualified_name(view)
                found = manager.at_callable(app, name, blueprint, function, method=methods[0])
            else:
                found = manager.before_view(app, name, blueprint, method=methods[0])
            shared = [each for each in found.shared if each not in manager._application_limits]
            yield Group(f"{name}: {rule}", [*found.own, *shared], name, methods)

    def _rows(self, definition: Definition, group: Group) -> Iterator[Row]:
        plan = getattr(definition, "plan", "")
        stated = runtime_limits(definition, definition.limit_provider) if plan else definition
        for runtime in stated:
            for each in (runtime, *(runtime.meta_limits or ())):
                limit = limit_of(each.limit, self._parts.naming.strategy)
                for method in group.methods if each.per_method else ("",):
                    yield Row(each, limit, plan, method, each.scope_for(group.endpoint, method))

    def _describe(self, row: Row, state: str) -> str:
        limit, runtime = row.limit, row.runtime
        identities = self._parts.identities.items()
        keys = [name for name, identity in identities if identity is runtime.key_func]
        words = [
            limit.strategy,
            f"burst {limit.burst}" if limit.burst else "",
            limit.unit if limit.unit not in ("requests", "usd", "calls") else "",
            f"anchor {limit.anchor}" if limit.anchor else "",
            f"key {keys[0] if keys else _function_name(runtime.key_func)}",
            f"plan {row.plan}" if row.plan else "",
            f"methods {', '.join(sorted(runtime.methods)).upper()}" if runtime.methods else "",
            "" if limit.mode == "enforce" else limit.mode,
        ]
        name = f"{limit.name}: " if limit.name else ""
        method = f" ({row.method})" if row.method else ""
        return f"{name}{runtime.limit}{method}{state} [{', '.join(filter(None, words))}]"

    def _state(self, row: Row) -> str:
        """What is left to the key, in the spelling that has used most."""
        key, limiter = self._options["key"], self._parts.limiter
        if not key:
            return ""
        limit, item = row.limit, row.runtime.limit
        callers = [(name, row.scope) for name in spellings(key)]
        passes = all(limiter.test(item, *caller) for caller in callers)
        if not limit.visible:
            return ": Pass" if passes else ": Fail"
        left = min(limiter.get_window_stats(item, *caller)[1] for caller in callers)
        return (
            f": {'Pass' if passes and left else 'Fail'} "
            f"({limit.outside(left)} out of {limit.outside(limit.capacity)} remaining)"
        )


def _tree(title: str, entries: Iterable[str]) -> Iterator[str]:
    yield title
    entries = list(entries)
    for position, entry in enumerate(entries, 1):
        yield f"{'└──' if position == len(entries) else '├──'} {entry}"


def _function_name(function: object) -> str:
    return str(getattr(function, "__name__", function))
