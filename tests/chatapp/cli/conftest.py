"""An application that answers, and one of the commands: both share a database and a storage."""

from __future__ import annotations

import pytest
from flask import Flask

from tests.chatapp.conftest import AppMaker


@pytest.fixture
def worker(make_app: AppMaker, uri: str) -> Flask:
    """The application that answers."""
    return make_app(RATELIMIT_STORAGE_URI=uri)


@pytest.fixture
def console(make_app: AppMaker, uri: str) -> Flask:
    """The application of the command: another process, in effect."""
    return make_app(RATELIMIT_STORAGE_URI=uri)
