"""`flask --app wsgi chat …`: the commands of an operator."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import dropwhile
from typing import Final

import click
from flask import Flask

from chatapp.cli.accounts import keys, plans, teams, users
from chatapp.cli.admin_keys import admin_keys
from chatapp.cli.alerts import alerts
from chatapp.cli.blocks import block, unblock
from chatapp.cli.ledger import give_credit, ledger, spend, usage
from chatapp.cli.maintenance import checked_policy, db, providers
from chatapp.database.connection import Database
from chatapp.database.migration import COMMAND
from chatapp.operators.amounts import COUNTED
from chatapp.operators.callers import ChatCallers
from chatapp.operators.changes import Changes
from chatapp.operators.errors import operator_error
from chatapp.server.valid_files import POLICY, WITHOUT_NAMES, WITHOUT_PROVIDERS
from ratelimit_ext import Limiter, OperatorError
from ratelimit_ext.terminal import OperatorGroup

# Flask sets this if it was started from the command line, also by `flask run`.
FROM_COMMAND_LINE: Final = "FLASK_RUN_FROM_CLI"

#: Commands that need no limits: to read their policy would be 6 % of their CPU time.
WITHOUT_LIMITS: Final = (
    *(
        "chat admin-keys list",
        "chat alerts",
        "chat db",
        "chat spend",
        "chat keys list",
        "chat users list",
    ),
    *("chat users export", "chat teams list"),
    *(f"chat ledger {name}" for name in ("show", "calls", "outcomes", "estimates", "prune")),
)
NO_POLICY: Final = {**WITHOUT_NAMES, POLICY: None}
#: What commands do not read: a file that they check, or one that they do not need.
UNREAD: Final[Mapping[str, Mapping[str, object]]] = {
    "ratelimit check": {POLICY: None},
    "chat providers check": {**WITHOUT_PROVIDERS, **NO_POLICY},
    **dict.fromkeys(WITHOUT_LIMITS, NO_POLICY),
}

#: What to do about an error, by its code.
HINTS: Final[Mapping[str, str]] = {
    **{f"unknown_{each}": f"`chat {each}s list` lists the {each}s." for each in COUNTED},
    "unknown_team": "`chat teams list` lists the teams; `chat teams create` creates one.",
    "unknown_caller": "`chat users list` and `chat ledger show` list the users.",
    "unknown_admin_key": "`chat admin-keys list` lists them.",
    "other_plan": "`chat plans set` changes it.",
    "other_team": "`chat users set-team` moves a user.",
    "existing_team": "`chat teams set-amount` changes its budgets.",
    "deactivated_user": "`chat users activate` does that.",
    "has_keys": "`chat keys revoke` revokes a key.",
    "unusable_key": "`create` of keys or admin-keys creates another.",
    "no_amount": "`list` of users, keys and teams lists the amounts.",
    "no_name": "Write `chat block KIND NAME`.",
    "database": f"If it is new, or of another version, run `{COMMAND}`.",
}


class ChatGroup(OperatorGroup):
    """Commands that change accounts and limits."""

    def operator_error(self, error: Exception) -> OperatorError | None:
        return operator_error(error) or super().operator_error(error)


chat = ChatGroup(
    "chat",
    hints=HINTS,
    help="Manage users, teams, keys, plans, blocks and alerts; report usage; check files.",
)
for command in (
    *(keys, users, teams, plans, usage, spend, give_credit, block, unblock),
    *(providers, ledger, alerts, db, admin_keys),
):
    chat.add_command(command)


def install(app: Flask, limiter: Limiter, database: Database) -> None:
    """Add the commands to the application, and what `flask ratelimit` asks of it."""
    app.cli.add_command(chat)
    operators = limiter.operators
    operators.callers = ChatCallers()
    operators.change_log = Changes(database)
    operators.policy_checker(checked_policy)


def from_command_line() -> bool:
    return os.environ.get(FROM_COMMAND_LINE) == "true"


def command_config() -> Mapping[str, object] | None:
    """Return the configuration of this `flask` command; None for a server."""
    if serves():
        return None
    words = dropwhile(lambda word: word not in ("chat", "ratelimit"), sys.argv[1:])
    line = f"{' '.join(words)} "
    return next((each for command, each in UNREAD.items() if line.startswith(f"{command} ")), {})


def serves() -> bool:
    """Return whether this process will serve requests: every server, and of the commands `run`."""
    context = click.get_current_context(silent=True)
    return not from_command_line() or (context is not None and context.info_name == "run")
