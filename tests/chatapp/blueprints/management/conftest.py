"""An application with the management API, and a client that calls it."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from chatapp.accounts.store import Accounts
from chatapp.blueprints.management.routes import bp
from chatapp.database.connection import Database
from tests.chatapp.blueprints.conftest import TOKEN

#: Calls the API with the shared token, or another key: method, path below the prefix, body.
Api = Callable[..., TestResponse]


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    """With two teams, a member of each, and a user of none."""
    accounts = Accounts(Database(database_url))
    accounts.create_team("research", limits={"team-usd-day": "50 usd/day"})
    accounts.create_team("sales")
    for user, team in (("alice", "research"), ("bob", "sales"), ("carol", None)):
        accounts.create_key(user, plan=None, default_plan="starter", team=team)
    return accounts


@pytest.fixture
def api(app: Flask) -> Api:
    client = app.test_client()

    def call(
        method: str, path: str, body: Any = None, *, key: str = TOKEN, **headers: str
    ) -> TestResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        return client.open(
            f"{bp.url_prefix}{path}", method=method, json=body, headers={**authorization, **sent}
        )

    return call
