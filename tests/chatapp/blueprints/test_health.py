"""/healthz and /readyz."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient

from chatapp.services import services_of
from tests import servers
from tests.chatapp.conftest import AppMaker


def test_alive_and_ready(client: FlaskClient) -> None:
    """Both are 200 if everything works."""
    assert client.get("/healthz").json == {"status": "alive"}
    assert client.get("/readyz").json == {"status": "ready"}


def test_health_is_never_limited(client: FlaskClient) -> None:
    """A load balancer may probe at any rate."""
    for path in ("/healthz", "/readyz"):
        responses = [client.get(path) for _ in range(60)]
        assert {response.status_code for response in responses} == {200}
        assert "RateLimit" not in responses[-1].headers


def test_a_lost_storage_is_not_ready_and_still_alive(make_app: AppMaker) -> None:
    """The 503 of /readyz takes the process out of rotation; it is not restarted."""
    uri = f"redis://127.0.0.1:{servers.free_port()}"
    client = make_app(RATELIMIT_STORAGE_URI=uri).test_client()
    assert client.get("/healthz").status_code == 200
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json is not None
    assert response.json["code"] == "storage_unavailable"
    assert "RATELIMIT_STORAGE_URI" in response.json["error"]


def test_chat_works_without_its_storage(make_app: AppMaker) -> None:
    """Each worker counts in its own memory until the storage is back."""
    uri = f"redis://127.0.0.1:{servers.free_port()}"
    client = make_app(RATELIMIT_STORAGE_URI=uri).test_client()
    statuses = [
        client.post("/chat", json={"message": "hi", "user_id": "alice"}).status_code
        for _ in range(11)
    ]
    assert statuses == [200] * 10 + [429]
    assert client.get("/").status_code == 200


def test_without_limits_no_storage_is_needed(make_app: AppMaker) -> None:
    """It is ready with RATELIMIT_ENABLED=false."""
    answer = make_app(RATELIMIT_ENABLED=False).test_client().get("/readyz")
    assert answer.status_code == 200


def test_a_hanging_storage_occupies_one_thread(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one probe waits for the storage, others get the last result."""
    app = make_app()
    client = app.test_client()
    assert client.get("/readyz").status_code == 200
    storage = services_of(app).limiter.storage
    asked, answers = threading.Event(), threading.Event()

    def hangs() -> bool:
        asked.set()
        return answers.wait(10) and False

    monkeypatch.setattr(storage, "check", hangs)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: app.test_client().get("/readyz").status_code)
        assert asked.wait(10)
        assert client.get("/readyz").status_code == 200
        answers.set()
        assert first.result() == 503
