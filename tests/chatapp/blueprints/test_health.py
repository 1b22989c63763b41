"""/healthz and /readyz."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient

from chatapp.services import services_of
from ratelimit_ext.operators import Operators
from tests import servers
from tests.chatapp.conftest import AppMaker


def test_alive_and_ready(client: FlaskClient) -> None:
    """Both are 200 if everything works."""
    assert client.get("/healthz").json == {"status": "alive"}
    assert client.get("/readyz").json == {"status": "ready", "storage": "up"}


def test_health_is_never_limited(client: FlaskClient) -> None:
    """A load balancer may probe at any rate."""
    for path in ("/healthz", "/readyz"):
        responses = [client.get(path) for _ in range(60)]
        assert {response.status_code for response in responses} == {200}
        assert "RateLimit" not in responses[-1].headers


def test_a_lost_storage_keeps_the_process_in_rotation(make_app: AppMaker) -> None:
    """All instances share it: if each took itself out of rotation, none would be left."""
    uri = f"redis://127.0.0.1:{servers.free_port()}"
    app = make_app(RATELIMIT_STORAGE_URI=uri)
    client = app.test_client()
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json == {"status": "ready", "storage": "down"}
    assert services_of(app).limiter.operators.storage_is_down  # before any request paid for it


@pytest.mark.usefixtures("stopped_clock")
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
    """While one probe waits for the storage, others do not."""
    app = make_app()
    client = app.test_client()
    assert client.get("/readyz").status_code == 200
    asked, answers = threading.Event(), threading.Event()

    def hangs(_: Operators) -> None:
        asked.set()
        assert answers.wait(60)

    monkeypatch.setattr(Operators, "check_storage", hangs)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: app.test_client().get("/readyz").status_code)
        assert asked.wait(60)
        assert client.get("/readyz").status_code == 200
        answers.set()
        assert first.result() == 200
