"""What the present application works with, for its commands."""

from __future__ import annotations

from typing import Any, cast

from flask import Flask, current_app

from chatapp import catalogue
from chatapp.accounts import store
from chatapp.database import connection
from chatapp.ledger import records
from ratelimit_ext import Limiter


def present_accounts() -> store.Accounts:
    """Its users and keys."""
    return cast(store.Accounts, current_app.extensions[store.EXTENSION_KEY])


def present_records() -> records.Records:
    """Its ledger, to be read."""
    return cast(records.Records, current_app.extensions[records.EXTENSION_KEY])


def present_catalogue() -> catalogue.Catalogue:
    """Its models and their prices."""
    return cast(catalogue.Catalogue, current_app.extensions[catalogue.EXTENSION_KEY])


def present_database() -> connection.Database:
    """Where both are kept."""
    return cast(connection.Database, current_app.extensions[connection.EXTENSION_KEY])


def present_limiter() -> Limiter:
    """Its limits. The name is the blueprints', which commands do not import."""
    return cast(Limiter, current_app.extensions["chatapp.limiter"])


def present_app() -> Flask:
    """The application itself, and not the proxy for it."""
    return cast(Flask, cast(Any, current_app)._get_current_object())
