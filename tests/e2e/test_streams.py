"""Streams through gunicorn and its threads, as they run in production."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chatapp import provider_server
from tests.chatapp.provider_server import ProviderServer, Stream, Wait, openai_chunks
from tests.e2e.gunicorn_master import Master, gunicorn

ASKED = {"message": "ping", "model": "gpt-5.4-mini", "stream": True}
CONTENT = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with provider_server.running() as server:
        yield server


@pytest.fixture(scope="module")
def master(provider: ProviderServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    """One worker with two threads before `provider`."""
    directory: Path = tmp_path_factory.mktemp("streams")
    with gunicorn(
        "wsgi:app",
        state=directory / "state",
        log=directory / "log",
        workers=1,
        GUNICORN_THREADS="2",
        OPENAI_API_KEY="sk-openai-test",
        OPENAI_BASE_URL=f"{provider.url}/v1",
        NO_PROXY="127.0.0.1",
        DATABASE_URL=f"sqlite:///{directory / 'chatapp.db'}",
    ) as running:
        yield running


def begun(master: Master) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", master.port, timeout=10)
    connection.request("POST", "/chat", json.dumps(ASKED), CONTENT)
    response = connection.getresponse()
    assert response.readline() == b"event: delta\n"
    return connection, response


def test_the_first_word_comes_while_the_next_is_not_made(
    master: Master, provider: ProviderServer
) -> None:
    """Nothing between the provider and the client holds it back."""
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:2], Wait(), *pieces[2:]]))
    connection, response = begun(master)
    assert provider.waiting.wait(10)
    provider.go_on()
    rest = response.read()
    assert rest.endswith(b"\n\n")
    assert b"event: done" in rest
    connection.close()


def test_who_leaves_frees_the_provider_and_the_thread(
    master: Master, provider: ProviderServer
) -> None:
    """At once, though the provider is silent: as many as there are threads, and one more is
    served."""
    provider.rest()
    for _ in range(3):
        provider.hung_up.clear()
        provider.waiting.clear()
        provider.script(Stream([*openai_chunks()[:2], Wait()]))
        connection, response = begun(master)
        assert provider.waiting.wait(10)
        left_at = time.monotonic()
        response.close()
        connection.close()
        assert provider.hung_up.wait(5)
        assert time.monotonic() - left_at < 2
    assert master.request("/chat", {"message": "ping", "model": "gpt-5.4-mini"}).status == 200
    assert "Traceback" not in master.log
