"""The place of ``flask ratelimit``, beside Flask-Limiter's ``flask limiter``."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any, Final, cast

import click
import flask

#: The key of the extensions in ``app.extensions``, for the commands.
EXTENSION: Final = "ratelimit_ext"
GROUP: Final = "ratelimit"
#: `flask` finds Flask-Limiter's commands before the application, so they cannot be replaced.
POINTER: Final = (
    "See also `flask ratelimit show`, `inspect` and `reset`, which know the names, plans and "
    "options of limits, and users, addresses and API keys as callers."
)
#: What every application gets, by name. The package adds it: its commands are in a layer above.
COMMANDS: Final[dict[str, click.Command]] = {}


class LateGroup(click.Group):
    """A group that is imported from ``place``, "module:object", when a command of it is called."""

    def __init__(self, name: str, place: str, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self._place = place

    def invoke(self, ctx: click.Context) -> Any:
        return resolve_name(self._place).invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return cast(click.Group, resolve_name(self._place)).list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return cast(click.Group, resolve_name(self._place)).get_command(ctx, cmd_name)


def application() -> flask.Flask:
    """Return the current application itself, not its proxy."""
    return cast(flask.Flask, cast(Any, flask.current_app)._get_current_object())


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
    """Return whether this process is ``flask ratelimit check``, which reports the mistakes of the
    policy that would stop the application."""
    context = click.get_current_context(silent=True)
    return context is not None and f"{GROUP} check" in " ".join(sys.argv)


def point_at_ours() -> None:
    """Name our commands below the output of Flask-Limiter's, if one of those is running."""
    context = click.get_current_context(silent=True)
    stock = sys.modules.get("flask_limiter.commands")
    if context is None or stock is None or context.command not in (stock.limits, stock.clear):
        return
    if not context.meta.get(EXTENSION):
        context.meta[EXTENSION] = True
        context.call_on_close(lambda: click.echo(POINTER, err=True))
