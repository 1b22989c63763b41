"""An application whose operators have a token."""

import pytest
from flask import Flask

from chatapp.accounts.store import Accounts
from chatapp.services import services_of
from tests.chatapp.conftest import AppMaker

TOKEN = "a token of some length"


@pytest.fixture
def app(make_app: AppMaker, uri: str, accounts: Accounts) -> Flask:
    """With a shared storage, and an edge limit that tests do not reach."""
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_ADMIN_TOKEN=TOKEN)
    services_of(app).limiter.request_filter(lambda: True)
    return app
