"""The errors of chatapp's own endpoints."""

from collections.abc import Callable
from typing import get_args

import pytest
from flask import Flask
from flask.testing import FlaskClient

from chatapp.upstreams import ErrorKind, UpstreamError
from chatapp.web import errors
from tests.chatapp.conftest import AppMaker, json_of


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
def test_an_unknown_address_is_answered_in_json(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    """404 and 405 have the format of all other errors."""
    response = client.open(path, method=method)
    assert response.status_code == status
    assert json_of(response)["code"] == code
    assert response.json["error"]


def test_a_500_shows_no_internals() -> None:
    """It has the same format, and neither the exception nor its text."""
    app = Flask(__name__)
    errors.install(app)

    @app.get("/fails")
    def fails() -> str:
        raise RuntimeError("the secret is 42")

    response = app.test_client().get("/fails")
    assert response.status_code == 500
    assert response.json == {"error": errors.MESSAGES[500], "code": "internal_error"}


def test_an_invalid_host_is_no_500(make_app: AppMaker) -> None:
    """Any value of the Host header is handled."""
    response = make_app().test_client().get("/healthz", headers={"Host": "a b\\<>"})
    assert response.status_code < 500


@pytest.mark.parametrize("kind", get_args(ErrorKind))
@pytest.mark.parametrize("report", [errors.upstream_report, errors.sdk_report])
def test_a_providers_trouble_forbids_no_retry(
    kind: ErrorKind, report: Callable[[UpstreamError], errors.ErrorReport]
) -> None:
    """Except after a key that rests, for ten minutes or more, after a spent budget, and after an
    answer that may be billed. A load that is over in a minute names its wait."""
    headers = report(UpstreamError(kind, retry_after_s=60)).headers
    is_final = kind in {"auth", "quota", "overspent", "malformed"}
    assert headers.get("x-should-retry") == ("false" if is_final else None)
    is_load = kind in {"rate_limited", "overloaded"}
    assert headers.get("Retry-After") == ("60" if is_load else None)


@pytest.mark.parametrize("kind", ["rate_limited", "overloaded"])
def test_a_wait_above_a_minute_is_not_retried(kind: ErrorKind) -> None:
    """An SDK would sleep for it, or try again at once."""
    headers = errors.sdk_report(UpstreamError(kind, retry_after_s=61)).headers
    assert headers == {"Retry-After": "61", "x-should-retry": "false"}
