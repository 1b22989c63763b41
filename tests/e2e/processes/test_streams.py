"""Streams, and clients that disconnect, through gunicorn and its threads, as in production."""

import http.client
import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from benchmarks.gateway import roomy
from tests.chatapp.upstream_server import Stream, UpstreamServer, Wait, openai_chunks
from tests.gunicorn_master import ROOT, Master, gunicorn
from tests.servers import eventually

ASKED = {"message": "ping", "model": "gpt-5.4-mini", "stream": True}
CONTENT = {"Content-Type": "application/json"}
CALLS = 200


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamServer]:
    with UpstreamServer.running() as server:
        yield server


#: How often a call gives its processor away, in all threads of its worker: 20 before. Seen: 4 to 7.
MOST_SWITCHES = 10
#: Its clocks do so as well, however long a call takes. Seen: 7 to 11.5.
IDLE_SWITCHES_PER_S = 12


@pytest.fixture(scope="module")
def master(provider: UpstreamServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    """One worker with two threads in front of `provider`, and amounts that no test exhausts."""
    directory: Path = tmp_path_factory.mktemp("streams")
    policy = directory / "policy.toml"
    policy.write_text(roomy((ROOT / "chatapp" / "policy.toml").read_text()))
    with gunicorn(
        "wsgi:app",
        directory,
        workers=1,
        GUNICORN_THREADS="2",
        **provider.variables,
        RATELIMIT_POLICY_FILE=str(policy),
    ) as running:
        yield running


def begun(master: Master) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = master.begin("/chat", ASKED)
    response = connection.getresponse()
    assert response.readline() == b"event: delta\n"
    return connection, response


def test_the_first_word_arrives_before_the_second_is_generated(
    master: Master, provider: UpstreamServer
) -> None:
    """Nothing between provider and client buffers it."""
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:2], Wait(), *pieces[2:]]))
    connection, response = begun(master)
    assert provider.waiting.wait(60)
    provider.go_on()
    rest = response.read()
    assert rest.endswith(b"\n\n")
    assert b"event: done" in rest
    connection.close()


def test_a_call_makes_few_threads_wait(master: Master, provider: UpstreamServer) -> None:
    """Of its worker: the thread of the call waits for storage and provider, and none wakes for it
    that could look later."""
    provider.rest()
    [worker] = master.workers()
    body = json.dumps({**ASKED, "stream": False})
    with closing(http.client.HTTPConnection("127.0.0.1", master.port, timeout=30)) as connection:

        def call() -> None:
            connection.request("POST", "/chat", body, CONTENT)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()

        for _ in range(20):
            call()
        begin, before = time.monotonic(), voluntary_switches(worker)
        for _ in range(CALLS):
            call()
        idle = IDLE_SWITCHES_PER_S * (time.monotonic() - begin)
        assert 0 < voluntary_switches(worker) - before <= MOST_SWITCHES * CALLS + idle


def voluntary_switches(pid: int) -> int:
    """Of all threads of a process."""
    statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(
        int(status.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0]) for status in statuses
    )


def test_a_disconnect_frees_the_provider_and_the_thread(
    master: Master, provider: UpstreamServer
) -> None:
    """Although the provider is silent, for ten minutes if need be: as many clients as there are
    threads disconnect, and one more is served."""
    provider.rest()
    for _ in range(3):
        provider.hung_up.clear()
        provider.waiting.clear()
        provider.script(Stream([*openai_chunks()[:2], Wait()]))
        connection, response = begun(master)
        assert provider.waiting.wait(60)
        response.close()
        connection.close()
        assert provider.hung_up.wait(20)
    assert master.request("/chat", {"message": "ping", "model": "gpt-5.4-mini"}).status == 200
    assert "Traceback" not in master.log


def test_an_abandoned_request_is_not_sent(provider: UpstreamServer, tmp_path: Path) -> None:
    """Its client disconnected while the worker hung: the provider does not get the request, and the
    caller is charged nothing. One that has waited is answered."""
    with gunicorn("wsgi:app", tmp_path, workers=1, **provider.variables) as master:
        [worker] = master.workers()
        provider.calls.clear()
        os.kill(worker, signal.SIGSTOP)
        try:
            for number in range(24):
                body = {**ASKED, "stream": number % 2 == 0, "user_id": "eve"}
                master.begin("/chat", body).close()
            body = {"message": "still here", "model": "gpt-5.4-mini", "user_id": "bob"}
            waits = master.begin("/chat", body)
        finally:
            os.kill(worker, signal.SIGCONT)
        assert waits.getresponse().status == 200
        waits.close()

        def ledger() -> list[tuple[str, int]]:
            with closing(sqlite3.connect(tmp_path / "chatapp.db")) as database:
                query = "SELECT status, cost_micro_usd FROM calls WHERE \"user\" = 'user:eve'"
                return database.execute(query).fetchall()

        eventually(lambda: {status for status, _ in ledger()} == {"unavailable"})
        assert not any(cost for _, cost in ledger())
        limits = master.request("/usage?user_id=eve").body["limits"]
        left = {limit["name"]: limit["limit"] - limit["remaining"] for limit in limits}
        assert not any(left[name] for name in ("at-once", "plan", "tokens", "usd-hour", "usd-day"))
        assert "still here" in [call.body["messages"][-1]["content"] for call in provider.calls]
        assert len(provider.calls) == 1


@pytest.mark.parametrize(
    "reads",
    [pytest.param(False, id="nothing"), pytest.param(True, id="slowly", marks=pytest.mark.slow)],
)
def test_a_client_that_does_not_read_keeps_no_thread(
    provider: UpstreamServer, tmp_path: Path, reads: bool
) -> None:
    """As many clients as there are threads stop reading their streams, or read a few bytes at a
    time: each is disconnected, which the log says in a line, and the next caller is served."""
    megabyte = openai_chunks()[1].replace(b'"po"', b'"' + b"p" * 2**20 + b'"')
    with gunicorn(
        "wsgi:app",
        tmp_path,
        workers=1,
        GUNICORN_THREADS="2",
        CHATAPP_PROVIDER_TIMEOUT_S="2",
        **provider.variables,
    ) as master:
        body = json.dumps(ASKED).encode()
        head = f"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        clients = [socket.socket() for _ in range(2)]
        for client in clients:
            provider.script(Stream([megabyte] * 16))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", master.port))
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            assert client.recv(12) == b"HTTP/1.1 200"

        read_at = 0.0

        def served() -> bool:
            nonlocal read_at
            if reads and time.monotonic() >= read_at:
                read_at = time.monotonic() + 0.5  # 2 kB/s, however fast this asks
                for client in clients:
                    with suppress(ConnectionError):
                        client.recv(1000)
            return master.request("/chat", {"message": "hi", "user_id": "bob"}).status == 200

        assert not served()
        eventually(served)
        eventually(lambda: served() and master.log.count("does not read its answer") == 2)
        for client in clients:
            client.close()
        assert "Traceback" not in master.log
