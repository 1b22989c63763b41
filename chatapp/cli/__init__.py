"""`flask --app wsgi chat …`: the commands of an operator."""

from __future__ import annotations

import os
import sys
from typing import Final

import click
from flask import Flask
from flask.cli import AppGroup

from chatapp.cli.accounts import keys, plans, teams, users
from chatapp.cli.alerts import alerts
from chatapp.cli.blocks import block, unblock
from chatapp.cli.ledger import ledger, spend, usage
from chatapp.cli.maintenance import checked_policy, db, providers
from chatapp.operators.callers import ChatCallers
from chatapp.valid_policy import POLICY, PROVIDERS
from ratelimit_ext import Limiter

# Flask sets this if it was started from the command line, also by `flask run`.
FROM_COMMAND_LINE: Final = "FLASK_RUN_FROM_CLI"

# What may depend on the file that a command checks.
UNCHECKED: Final = {
    "ratelimit": (POLICY,),
    "chat providers": (PROVIDERS, "CHATAPP_DEFAULT_MODEL", "CHATAPP_FALLBACK_MODELS"),
}

chat = AppGroup(
    "chat", help="Manage users, teams, keys, plans, blocks and alerts; report usage; check files."
)
for command in (
    *(keys, users, teams, plans, usage, spend, block, unblock),
    *(providers, ledger, alerts, db),
):
    chat.add_command(command)


def install(app: Flask, limiter: Limiter) -> None:
    """Add the commands to the application, and what `flask ratelimit` asks of it."""
    app.cli.add_command(chat)
    limiter.callers = ChatCallers()
    limiter.policy_checker(checked_policy)


def from_command_line() -> bool:
    """Whether this process is a `flask` command."""
    return os.environ.get(FROM_COMMAND_LINE) == "true"


def checked_file() -> dict[str, None] | None:
    """The settings to leave out in `flask … ratelimit check` or `chat providers check`, which need
    an application without mistakes; None in any other process."""
    line = " ".join(sys.argv) if from_command_line() else ""
    found = (left for command, left in UNCHECKED.items() if f"{command} check" in line)
    return next((dict.fromkeys(left) for left in found), None)


def serves() -> bool:
    """Whether this process will serve requests: every server, and of the commands `run`."""
    context = click.get_current_context(silent=True)
    return not from_command_line() or (context is not None and context.info_name == "run")
