"""A storage that is full of invented callers: known users are still counted and served."""

from collections.abc import Iterator

import pytest
import redis

from tests import servers
from tests.chatapp.conftest import AppMaker

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def storage() -> Iterator[tuple[str, redis.Redis]]:
    with servers.standalone() as server, server.client() as client:
        yield server.uri, client


def test_known_users_continue_and_new_ones_wait(
    make_app: AppMaker, storage: tuple[str, redis.Redis]
) -> None:
    """No caller gets new limits, neither from the server nor from a worker's memory."""
    uri, server = storage
    client = make_app(RATELIMIT_STORAGE_URI=uri).test_client()

    def chat(user: str, address: str) -> int:
        asked = {"message": "hi", "model": "offline", "user_id": user}
        environ = {"REMOTE_ADDR": address}
        return client.post("/chat", json=asked, environ_overrides=environ).status_code

    assert chat("ada", "10.0.0.1") == 200
    assert [chat("spent", "10.0.0.2") for _ in range(11)] == [200] * 10 + [429]
    server.config_set("maxmemory", 1)
    assert chat("ada", "10.0.0.3") == 200
    assert [chat("spent", "10.0.0.2") for _ in range(3)] == [429] * 3
    assert chat("eve", "10.0.0.4") == 503
    assert server.keys("*eve*") == []


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/v1/messages"])
def test_a_new_caller_gets_a_503_in_the_endpoints_format(
    make_app: AppMaker, storage: tuple[str, redis.Redis], path: str
) -> None:
    """With a wait, after which the SDKs retry."""
    uri, server = storage
    client = make_app(RATELIMIT_STORAGE_URI=uri).test_client()
    server.config_set("maxmemory", 1)
    asked = {"message": "hi"} if path == "/chat" else {"messages": MESSAGES, "max_tokens": 9}
    answer = client.post(path, json={"model": "offline", **asked})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "30"
    assert "storage_unavailable" in answer.text
    assert client.get("/healthz").status_code == 200
