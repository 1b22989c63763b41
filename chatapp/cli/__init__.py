"""`flask --app wsgi chat …`: the commands of an operator."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Final

import click
from flask import Flask

from chatapp.database.connection import Database
from chatapp.operators.callers import ChatCallers
from chatapp.operators.change_log import DatabaseChangeLog
from chatapp.server import valid_files
from chatapp.server.valid_files import POLICY
from ratelimit_ext import CheckedPolicy, Limiter
from ratelimit_ext.terminal import LateGroup

HELP: Final = "Manage users, teams, keys, plans, blocks and alerts; report usage; check files."
# Flask sets this if it was started from the command line, also by `flask run`.
FROM_COMMAND_LINE: Final = "FLASK_RUN_FROM_CLI"

#: Commands that need neither limits nor routes: both would take a quarter of their CPU time.
WITHOUT_LIMITS: Final = (
    *("chat admin-keys list ", "chat alerts ", "chat db ", "chat spend ", "chat keys list "),
    *("chat users list ", "chat users export ", "chat teams list ", "chat prices "),
    "chat ledger reconcile ",
    *(f"chat ledger {name} " for name in ("days", "calls", "outcomes", "estimates", "prune")),
)
#: Commands that need no upstream: they read no identity, of which an upstream's name is one.
WITHOUT_UPSTREAMS: Final = tuple(
    f"ratelimit {name} " for name in ("show", "log", "top", "near", "shadow", "simulate", "suggest")
)
NO_POLICY: Final = {**valid_files.WITHOUT_NAMES, POLICY: None}
#: What commands do not read: a file that they check, or one that they do not need.
UNREAD: Final[Mapping[str, Mapping[str, object]]] = {
    "ratelimit check ": {POLICY: None},
    "chat providers check ": {**valid_files.WITHOUT_PROVIDERS, **valid_files.WITHOUT_POLICY},
    **dict.fromkeys(WITHOUT_LIMITS, NO_POLICY),
    **dict.fromkeys(WITHOUT_UPSTREAMS, dict.fromkeys(valid_files.MODEL_SETTINGS)),
}


def install(app: Flask, limiter: Limiter, database: Database | None) -> None:
    """Add the commands to the application, and what `flask ratelimit` asks of it."""
    app.cli.add_command(LateGroup("chat", "chatapp.cli.chat:chat", help=HELP))
    if database is None:
        return
    operators = limiter.operators
    operators.callers = ChatCallers()
    operators.change_log = DatabaseChangeLog(database)
    operators.policy_checker(_checked_policy)


def _checked_policy(file: Path | None) -> CheckedPolicy:
    from chatapp.cli.maintenance import checked_policy  # noqa: PLC0415 - only a check needs it

    return checked_policy(file)


def from_command_line() -> bool:
    return os.environ.get(FROM_COMMAND_LINE) == "true"


def command_config() -> Mapping[str, object] | None:
    """Return the configuration of this `flask` command; None for a server."""
    if serves():
        return None
    return next((conf for text, conf in UNREAD.items() if command_line().startswith(text)), {})


def needs_routes() -> bool:
    """Return whether this process has requests, or limits of routes."""
    return serves() or not command_line().startswith(WITHOUT_LIMITS)


def needs_upstreams() -> bool:
    """Return whether this process calls models, or names upstreams."""
    return serves() or not command_line().startswith(WITHOUT_LIMITS + WITHOUT_UPSTREAMS)


def prints_help() -> bool:
    """Return whether this is `--help` of a command, and not a value of its options or arguments."""
    *_, before, last = "", *sys.argv
    return last == "--help" and before[:1] != "-" and "--" not in sys.argv and command_line() != " "


def command_line() -> str:
    words = dropwhile(lambda word: word not in ("chat", "ratelimit"), sys.argv[1:])
    return f"{' '.join(words)} "


def serves() -> bool:
    """Return whether this process will serve requests: every server, and of the commands `run`."""
    context = click.get_current_context(silent=True)
    return not from_command_line() or (context is not None and context.info_name == "run")
