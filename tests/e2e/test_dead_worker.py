"""A worker that is killed in the middle of its streams leaves nothing pinned."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chatapp import provider_server
from tests.chatapp.provider_server import ProviderServer, Stream, Wait, openai_chunks
from tests.e2e.gunicorn_master import Master, gunicorn

LEASE_S = 3
STREAMS = 4  # the plan has four at once
ASKED = {"message": "ping", "model": "gpt-5.4-mini", "stream": True}
CONTENT = {"Content-Type": "application/json"}


@pytest.fixture
def provider() -> Iterator[ProviderServer]:
    """A provider whose streams stop after their first word."""
    with provider_server.running() as server:
        pieces = openai_chunks()
        server.script(*[Stream([*pieces[:2], Wait(), *pieces[2:]]) for _ in range(STREAMS)])
        yield server


@pytest.fixture
def master(provider: ProviderServer, tmp_path: Path) -> Iterator[Master]:
    """One worker with room for all of them, and a short lease."""
    with gunicorn(
        "wsgi:app",
        state=tmp_path / "state",
        log=tmp_path / "log",
        workers=1,
        GUNICORN_THREADS="8",
        RATELIMIT_LEASE_SECONDS=str(LEASE_S),
        OPENAI_API_KEY="sk-openai-test",
        OPENAI_BASE_URL=f"{provider.url}/v1",
        NO_PROXY="127.0.0.1",
        DATABASE_URL=f"sqlite:///{tmp_path / 'chatapp.db'}",
    ) as running:
        yield running


def left(master: Master) -> dict[str, float]:
    """What the caller has left of each limit."""
    with urllib.request.urlopen(f"http://127.0.0.1:{master.port}/usage", timeout=10) as response:
        return {limit["name"]: limit["remaining"] for limit in json.load(response)["limits"]}


def begun(master: Master) -> tuple[Any, Any]:
    """A stream of which the first word has come."""
    connection = http.client.HTTPConnection("127.0.0.1", master.port, timeout=10)
    connection.request("POST", "/chat", json.dumps(ASKED), CONTENT)
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline() == b"event: delta\n"
    return connection, response


def test_within_the_lease_nothing_is_held(master: Master) -> None:
    """Slots and dollars come back by the server's own clock, without a restart."""
    streams = [begun(master) for _ in range(STREAMS)]
    held = left(master)
    assert held["at-once"] == 0
    assert held["usd-day"] < 5.0
    (worker,) = master.workers()
    os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + LEASE_S + 10
    while left(master)["at-once"] < STREAMS:
        assert time.monotonic() < deadline, "the slots are still taken"
        time.sleep(0.7)  # slower than the pace of an address
    after = left(master)
    assert after["usd-day"] == 5.0  # none of it was known to be spent
    assert after["plan"] == 100 - STREAMS  # the calls were made
    assert streams
