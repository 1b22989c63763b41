"""``flask limiter limits`` and ``flask limiter clear``, with strategies, plans and identities; and
the place of ``flask ratelimit``.

``flask`` finds Flask-Limiter's commands before it loads the application, so they cannot be
replaced. As soon as one of them reads limits from the manager, it is continued here. Its output
contains the phrases of Flask-Limiter.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import click
import flask
from limits.storage import Storage
from limits.strategies import RateLimiter

from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.web.identities import spellings
from ratelimit_ext.web.operators.inventory import Group, Inventory, Row, function_name

#: The key of the extensions in ``app.extensions``, for the commands.
EXTENSION: Final = "ratelimit_ext"
GROUP: Final = "ratelimit"
#: What every application gets, by name. The package adds it: its commands are in a layer above.
COMMANDS: Final[dict[str, click.Command]] = {}


class LateGroup(click.Group):
    """A group that is imported by ``load`` when one of its commands is called."""

    def __init__(self, name: str, load: Callable[[], click.Group], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self._load = load

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._load().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._load().get_command(ctx, cmd_name)


def install(app: flask.Flask, limiter: object) -> None:
    """Add the commands to the application, unless it has others of these names."""
    limiters = app.extensions.setdefault(EXTENSION, [])
    if limiter not in limiters:
        limiters.append(limiter)
    for name, command in COMMANDS.items():
        if name not in app.cli.commands:
            app.cli.add_command(command)


@contextlib.contextmanager
def quiet_commands() -> Iterator[None]:
    """Suppress Flask-Limiter's warning that no storage is configured, if ``flask limiter`` or
    ``flask ratelimit`` loads the application: they count nothing."""
    words, values = sys.argv[1:], ("--app", "-A", "--env-file", "-e")
    named = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in values
    ]
    if click.get_current_context(silent=True) is None or named[:1] not in (["limiter"], [GROUP]):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using the in-memory storage")
        yield


def is_checked() -> bool:
    """Whether this process is ``flask ratelimit check``, which reports the mistakes of the policy
    that would stop the application."""
    context = click.get_current_context(silent=True)
    return context is not None and f"{GROUP} check" in " ".join(sys.argv)


@dataclass(frozen=True, slots=True)
class CommandParts:
    """What the commands use of an extension."""

    inventory: Inventory
    engine: Engine
    limiter: RateLimiter
    storage: Storage


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
                    for row in self._parts.inventory.rows(definition, group):
                        names = (bucket_key(row.prefix, name) for name in spellings(key))
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
        inventory = self._parts.inventory
        for group in self._groups():
            entries = []
            for definition in group.definitions:
                try:
                    rows = list(inventory.rows(definition, group))
                except Exception as error:  # noqa: BLE001 - a function of the application
                    name = function_name(definition.limit_provider)
                    entries.append(f"returned by {name} at each request ({error})")
                    continue
                for row in rows:
                    state = self._state(row) if is_available else ": Storage not available"
                    entries.append(self._describe(row, state))
            blueprint = group.endpoint.rpartition(".")[0] or None
            manager = inventory.manager
            if not entries and manager.exemption_scope(self._app, group.endpoint, blueprint):
                entries = ["Exempt"]
            yield from _tree(group.title, entries)

    def _groups(self) -> Iterator[Group]:
        endpoint = self._options["endpoint"]
        if not endpoint and self._options["path"]:
            # Flask-Limiter's command has already refused a path that does not exist.
            adapter = self._app.url_map.bind("localhost")
            endpoint, _ = adapter.match(self._options["path"], method=self._options["method"])
        return self._parts.inventory.groups(self._app, endpoint or "")

    def _describe(self, row: Row, state: str) -> str:
        limit, runtime = row.limit, row.runtime
        words = [
            limit.strategy,
            f"burst {limit.burst}" if limit.burst else "",
            limit.unit if limit.unit not in ("requests", "usd", "calls") else "",
            f"anchor {limit.anchor}" if limit.anchor else "",
            f"key {row.key}",
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
