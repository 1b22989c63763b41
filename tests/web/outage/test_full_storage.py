"""A full storage is no outage: the worker's memory decides nothing, and unknown callers wait."""

from collections.abc import Iterator

import pytest
import redis
from flask import Flask

from ratelimit_ext import Limiter
from tests import servers
from tests.web.conftest import asked_key


@pytest.fixture
def full_server() -> Iterator[servers.Server]:
    with servers.standalone("--maxmemory-policy", "noeviction") as server:
        yield server


def made(server: servers.Server, **options: object) -> Flask:
    app = Flask("full")
    limiter = Limiter(
        asked_key,
        app=app,
        storage_uri=server.uri,
        headers_enabled=True,
        in_memory_fallback_enabled=True,
        application_limits=["10/minute"],
        **options,  # type: ignore[arg-type]
    )
    app.get("/")(limiter.limit("2/day", name="plan")(lambda: "ok"))
    return app


def fill(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)


@pytest.mark.parametrize("swallow", [False, True])
def test_an_exhausted_caller_stays_exhausted(full_server: servers.Server, swallow: bool) -> None:
    """The fallback would give a new allowance in each worker."""
    client = made(full_server, swallow_errors=swallow).test_client()
    ada = {"X-Key": "ada"}
    assert [client.get("/", headers=ada).status_code for _ in range(2)] == [200, 200]
    with full_server.client() as storage:
        fill(storage)
    assert [client.get("/", headers=ada).status_code for _ in range(3)] == [429] * 3


@pytest.mark.parametrize("swallow", [False, True])
def test_an_unknown_caller_is_told_to_come_back(full_server: servers.Server, swallow: bool) -> None:
    """503 with a wait, also where errors are swallowed; the body names the cause."""
    client = made(full_server, swallow_errors=swallow).test_client()
    with full_server.client() as storage:
        fill(storage)
    refused = client.get("/", headers={"X-Key": "eve"})
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "30"
    assert refused.json is not None
    assert (refused.json["code"], refused.json["policy"]) == ("storage_unavailable", "plan")


def test_an_unknown_caller_still_counts_at_the_edge(full_server: servers.Server) -> None:
    """A client that brings new names on a full server is limited by what is counted of it."""
    client = made(full_server).test_client()
    with full_server.client() as storage:
        fill(storage)
    answers = [client.get("/", headers={"X-Key": "eve"}).status_code for _ in range(12)]
    assert answers == [503] * 10 + [429] * 2
