"""`flask --app wsgi chat …`: users' keys, plans and usage, blocks, policy, ledger, database."""

from __future__ import annotations

from flask import Flask
from flask.cli import AppGroup

from chatapp.cli.accounts import keys
from chatapp.cli.blocks import block, unblock
from chatapp.cli.db import db
from chatapp.cli.ledger import ledger
from chatapp.cli.maintenance import policy
from chatapp.cli.plans import plans
from chatapp.cli.usage import usage

chat = AppGroup("chat", help="Users, keys, plans, usage, blocks, the policy, the ledger.")
for command in (keys, plans, usage, block, unblock, policy, ledger, db):
    chat.add_command(command)


def install(app: Flask) -> None:
    """Give the application its commands."""
    app.cli.add_command(chat)
