"""An application that answers, and one of the commands: both share a database and a storage."""

from pathlib import Path

import pytest
from flask import Flask

from chatapp import POLICY_FILE
from tests.chatapp.conftest import AppMaker


@pytest.fixture
def worker(make_app: AppMaker, uri: str) -> Flask:
    """The application that answers."""
    return make_app(RATELIMIT_STORAGE_URI=uri)


@pytest.fixture
def console(make_app: AppMaker, uri: str) -> Flask:
    """The application of the command: another process, in effect."""
    return make_app(RATELIMIT_STORAGE_URI=uri)


@pytest.fixture
def rolling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Applications that are made after it have a sliding window in dollars, too."""
    policy = tmp_path / "policy.toml"
    limit = '[[groups.calls.limits]]\nname = "rolling"\nlimit = "5 usd/day"\nkey = "user"\n'
    policy.write_text(f'{POLICY_FILE.read_text()}\n{limit}strategy = "sliding-window"\n')
    monkeypatch.setenv("RATELIMIT_POLICY_FILE", str(policy))
