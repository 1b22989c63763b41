"""chatapp while the storage of its limits is down."""

from pathlib import Path
from typing import Any

import pytest

from chatapp import POLICY_FILE
from chatapp.services import services_of
from tests import servers
from tests.chatapp.conftest import AppMaker, policy_file

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def uri() -> str:
    """An address where nothing listens."""
    return f"redis://127.0.0.1:{servers.free_port()}"


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/v1/messages"])
def test_a_closed_budget_is_a_503_in_the_endpoints_format(
    make_app: AppMaker, uri: str, tmp_path: Path, path: str
) -> None:
    """With a wait, after which the SDKs retry: a policy that says nothing closes its budgets."""
    policy = policy_file(tmp_path, POLICY_FILE.read_text().replace('on_failure = "local"\n', ""))
    app = make_app(RATELIMIT_STORAGE_URI=uri, RATELIMIT_POLICY_FILE=policy)
    asked = {"message": "hi"} if path == "/chat" else {"messages": MESSAGES, "max_tokens": 9}
    answer = app.test_client().post(path, json={"model": "offline", **asked})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.headers["X-RateLimit-Degraded"] == "closed"
    assert "storage_unavailable" in answer.text
    assert "x-should-retry" not in answer.headers


@pytest.mark.usefixtures("stopped_clock")
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_users_continue_within_their_share(make_app: AppMaker, uri: str, scheme: str) -> None:
    """The policy's budgets, and what is left of them, are those of the worker."""
    uri = uri.replace("redis", scheme)
    app = make_app(RATELIMIT_STORAGE_URI=uri, RATELIMIT_WORKERS=2)
    client = app.test_client()
    asked = {"model": "offline", "message": "hi", "user_id": "ada"}
    answers = [client.post("/chat", json=asked) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert {answer.headers["X-RateLimit-Degraded"] for answer in answers} == {"local"}
    assert client.get("/usage", headers={"X-User-Id": "ada"}).status_code == 200


def test_no_part_of_a_request_asks_a_storage_that_is_down(
    make_app: AppMaker, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the limits, nor the estimate, nor the settlement, nor the usage page."""
    app = make_app(RATELIMIT_STORAGE_URI=uri)
    client, limiter = app.test_client(), services_of(app).limiter
    limiter.operators.check_storage()
    assert limiter.operators.storage_is_down
    storage: Any = limiter.storage
    asked_for: list[object] = []
    pool = storage.get_connection().connection_pool
    breaker: Any = limiter._components.engines.primary
    monkeypatch.setattr(breaker._engine, "_look", lambda: 1 / 0)  # its thread may ask
    monkeypatch.setattr(pool, "get_connection", asked_for.append)
    for model in ("offline", "gpt-4o"):
        body = {"model": model, "message": "hi", "user_id": "ada"}
        assert client.post("/chat", json=body).status_code in {200, 422, 502, 503}
    assert client.get("/usage").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert asked_for == []
