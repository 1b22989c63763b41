"""`flask --app wsgi chat …`: the commands of an operator."""

from __future__ import annotations

import os
import sys
from typing import Final

import click
from flask import Flask
from flask.cli import AppGroup

from chatapp.cli.accounts import keys, plans
from chatapp.cli.blocks import block, unblock
from chatapp.cli.ledger import ledger, usage
from chatapp.cli.maintenance import db, policy

# Flask sets this if it was started from the command line, also by `flask run`.
FROM_COMMAND_LINE: Final = "FLASK_RUN_FROM_CLI"

chat = AppGroup("chat", help="Users, keys, plans, usage, blocks, the policy, the ledger.")
for command in (keys, plans, usage, block, unblock, policy, ledger, db):
    chat.add_command(command)


def install(app: Flask) -> None:
    """Add the commands to the application."""
    app.cli.add_command(chat)


def from_command_line() -> bool:
    """Whether this process is a `flask` command."""
    return os.environ.get(FROM_COMMAND_LINE) == "true"


def checks_policy() -> bool:
    """Whether this is `flask … chat policy check`, which needs an application with any policy."""
    return from_command_line() and "chat policy check" in " ".join(sys.argv)


def serves() -> bool:
    """Whether this process will serve requests: every server, and of the commands `run`."""
    context = click.get_current_context(silent=True)
    return not from_command_line() or (context is not None and context.info_name == "run")
