"""No answer of the application is taken for anything else than its Content-Type says."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker

CHAT = {"message": "hi", "model": "offline"}
V1 = {"model": "offline", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/", None, 200),
        ("GET", "/static/chat.js", None, 200),
        ("GET", "/healthz", None, 200),
        ("GET", "/v1/models", None, 200),
        ("GET", "/nowhere", None, 404),
        ("DELETE", "/chat", None, 405),
        ("POST", "/chat", CHAT, 200),
        ("POST", "/chat", {}, 422),
        ("POST", "/chat", {**CHAT, "stream": True}, 200),
        ("POST", "/v1/chat/completions", {**V1, "stream": True}, 200),
        ("POST", "/v1/messages", {**V1, "stream": True}, 200),
        ("OPTIONS", "/chat", None, 200),
    ],
)
def test_every_answer_forbids_sniffing(
    client: FlaskClient, method: str, path: str, body: object, expected: int
) -> None:
    """Errors, files and streams as well."""
    answer = client.open(path, method=method, json=body)
    assert answer.status_code == expected
    assert answer.headers.getlist("X-Content-Type-Options") == ["nosniff"]


def test_a_refusal_forbids_it_too(make_app: AppMaker) -> None:
    """Also one that takes the place of a 404."""
    client = make_app().test_client()
    answers = [client.get("/nowhere") for _ in range(21)]
    assert answers[-1].status_code == 429
    assert answers[-1].headers.getlist("X-Content-Type-Options") == ["nosniff"]
