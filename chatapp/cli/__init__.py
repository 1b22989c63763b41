"""`flask --app wsgi chat …`: keys and plans of users, the ledger, the database."""

from __future__ import annotations

from flask import Flask
from flask.cli import AppGroup

from chatapp.cli.db import db
from chatapp.cli.keys import keys
from chatapp.cli.ledger import ledger
from chatapp.cli.plans import plans

chat = AppGroup("chat", help="Users, keys, plans, the ledger and its database.")
for group in (keys, plans, ledger, db):
    chat.add_command(group)


def install(app: Flask) -> None:
    """Give the application its commands."""
    app.cli.add_command(chat)
