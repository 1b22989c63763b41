"""Every error of the application has one shape."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient

from chatapp.web import errors
from tests.chatapp.conftest import AppMaker


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/no/such/place", 404, "not_found"),
        ("POST", "/chat/", 404, "not_found"),
        ("GET", "/%ff%00", 404, "not_found"),
        ("GET", "/static/../settings.py", 404, "not_found"),
        ("GET", "/chat", 405, "method_not_allowed"),
        ("DELETE", "/chat", 405, "method_not_allowed"),
        ("POST", "/", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_is_told_in_json(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    """404 and 405 too: a client parses one shape."""
    response = client.open(path, method=method)
    assert response.status_code == status
    assert response.json is not None
    assert response.json["code"] == code
    assert response.json["error"]


def test_a_405_still_says_what_is_allowed(client: FlaskClient) -> None:
    """The headers of the original error survive."""
    assert "POST" in client.get("/chat").headers["Allow"]


def test_a_failure_of_ours_tells_nothing_of_it() -> None:
    """A 500 has the shape, and neither the exception nor its text."""
    app = Flask(__name__)
    errors.install(app)

    @app.get("/fails")
    def fails() -> str:
        raise RuntimeError("the secret is 42")

    response = app.test_client().get("/fails")
    assert response.status_code == 500
    assert response.json == {"error": errors.MESSAGES[500], "code": "internal_error"}


def test_a_strange_host_is_no_failure_of_ours(make_app: AppMaker) -> None:
    """A Host header that is none does not become a 500."""
    response = make_app().test_client().get("/healthz", headers={"Host": "a b\\<>"})
    assert response.status_code < 500
