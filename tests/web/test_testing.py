"""The fixtures for users' tests, as such a test uses them."""

from pathlib import Path

import pytest
from flask import Flask

from ratelimit_ext import Limiter
from ratelimit_ext.testing import RateLimits, limiter_of

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = """
import pytest
from flask import Flask
from ratelimit_ext import Limiter

pytest_plugins = ["ratelimit_ext.testing"]

@pytest.fixture(scope="session")
def app():
    app = Flask("users")
    limiter = Limiter(lambda: "someone", storage_uri="redis://localhost:1")
    limiter.init_app(app)

    @app.get("/search")
    @limiter.limit("30/minute", strategy="token-bucket", burst=3, name="pace")
    def search():
        return "found"

    return app

@pytest.fixture
def client(app):
    return app.test_client()
"""
TESTS = """
import pytest

def test_reset_and_disabled(client, rate_limits):
    for _ in range(4):
        answer = client.get("/search")
    rate_limits.assert_limited(answer)
    with rate_limits.disabled():
        assert client.get("/search").status_code == 200
    rate_limits.assert_limited(client.get("/search"))
    rate_limits.reset()
    rate_limits.assert_admitted(client.get("/search"))

def test_what_fails_says_why(client, rate_limits):
    with pytest.raises(AssertionError, match="not limited: 200 OK"):
        rate_limits.assert_limited(client.get("/search"))
    for _ in range(3):
        answer = client.get("/search")
    with pytest.raises(AssertionError, match="denied by 'pace', not by 'plan'"):
        rate_limits.assert_limited(answer, "plan")
    with pytest.raises(AssertionError, match="Retry-After is 2, not 3"):
        rate_limits.assert_limited(answer, "pace", retry_after=3)
    with pytest.raises(AssertionError, match="denied by 'pace': 429"):
        rate_limits.assert_admitted(answer)
    with pytest.raises(ValueError, match="found -1 seconds; allowed: 0 or more"):
        rate_limits.forward(-1)
"""


def test_a_users_tests_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an application whose own storage is away: its limits are in memory, and time stands
    still. docs/extension/testing.md has more such tests."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_the_extension_gets_its_storage_back() -> None:
    """An application that outlives a test is as it was."""
    app = Flask("example")
    limiter = Limiter(lambda: "someone", app=app, storage_uri="memory://")
    storage, listeners = limiter.storage, limiter._events.listeners
    limits = RateLimits(limiter)
    assert limiter.storage is not storage
    limits.close()
    assert limiter.storage is storage
    assert limiter._events.listeners == listeners


def test_an_application_without_an_extension_is_a_mistake() -> None:
    """The sentence says what to do."""
    with pytest.raises(LookupError, match=r"has 0 extensions .*; allowed: one. Call its init_app"):
        limiter_of(Flask("example"))
