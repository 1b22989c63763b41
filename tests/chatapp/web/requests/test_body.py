"""Bodies that are cut off, have a wrong length, or never end, through a real gunicorn."""

import contextlib
import gzip
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from chatapp.web.requests import json_body as request_body
from tests.chatapp.conftest import NO_LIMITS, AppMaker, json_of

ROOT = Path(__file__).parents[4]
HEAD = (
    b"POST /chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\n"
)
GOOD = b'{"message": "hi"}'


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a gunicorn with the production worker."""
    ours = ("CHATAPP_", "RATELIMIT_", "OPENAI_", "ANTHROPIC_", "GUNICORN_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment["RATELIMIT_STORAGE_URI"] = "memory://"
    environment["CHATAPP_MAX_BODY_BYTES"] = "1000000"
    environment["DATABASE_URL"] = f"sqlite:///{tmp_path_factory.mktemp('body') / 'chatapp.db'}"
    command = [sys.executable, "-m", "gunicorn", "--workers", "1", "--threads", "4"]
    command += ["-b", "127.0.0.1:0", "chatapp:create_app()"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as gunicorn:
        try:
            yield _port(gunicorn)
        finally:
            gunicorn.terminate()
            gunicorn.communicate(timeout=20)


def _port(gunicorn: subprocess.Popen[str]) -> int:
    assert gunicorn.stderr is not None
    log = []
    for line in gunicorn.stderr:
        log.append(line)
        if found := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise AssertionError("gunicorn did not start:\n" + "".join(log))


def exchange(port: int, sent: bytes, *, ends: bool = True) -> tuple[int, dict[str, object]]:
    """Send these bytes, and close this direction unless the client stays. Returns the status and
    the JSON of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 50\r\n\r\n" + GOOD,
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + GOOD[:5],
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + GOOD[:7] + b"\r\n0\r\n\r\n",
    ],
    ids=["too short", "a chunk breaks off", "no chunk size", "a chunk too long"],
)
def test_an_incomplete_body_is_a_400(port: int, rest: bytes) -> None:
    """Even if the received part is valid JSON."""
    status, body = exchange(port, HEAD + rest)
    assert status == 400
    assert set(body) == {"error", "code"}


def test_a_chunked_body_is_accepted(port: int) -> None:
    """A client need not announce the length."""
    chunked = b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + GOOD + b"\r\n0\r\n\r\n"
    assert exchange(port, HEAD + chunked, ends=False)[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_ten_megabytes_can_read_the_413(port: int, chunked: bool) -> None:
    """It may write to the end before it reads, and can continue."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    huge = json.dumps({"message": "a" * 10_000_000}).encode()
    headers = {"Content-Type": "application/json"}
    with contextlib.closing(connection):
        body = iter([huge[:5_000_000], huge[5_000_000:]]) if chunked else huge
        connection.request("POST", "/chat", body, headers, encode_chunked=chunked)
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["code"] == "body_too_large"
        connection.request("POST", "/chat", GOOD, headers)
        assert connection.getresponse().status == 200


class _Broken:
    """A stream of a client that has disconnected."""

    def read(self, *_: object) -> bytes:
        raise RuntimeError("connection lost")

    readline = readinto = read


@pytest.mark.parametrize("length", [None, "30", "40000000"])
def test_any_servers_error_is_a_broken_body(client: FlaskClient, length: str | None) -> None:
    """Servers raise different errors; the answer is the same."""
    overrides: dict[str, object] = {"wsgi.input": _Broken(), "wsgi.input_terminated": True}
    if length is not None:
        overrides["CONTENT_LENGTH"] = length
    response = client.post("/chat", content_type="application/json", environ_overrides=overrides)
    assert response.status_code == (413 if length == "40000000" else 400)
    assert set(json_of(response)) == {"error", "code"}


class _Reads:
    """A stream that counts reads."""

    count = 0

    def read(self, *_: object) -> bytes:
        self.count += 1
        return b""

    readline = readinto = read


LARGE: dict[str, dict[str, object]] = {
    "announced": {"CONTENT_LENGTH": "1000000"},
    "chunked": {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"},
    "compressed, which may be large": {"CONTENT_LENGTH": "100", "HTTP_CONTENT_ENCODING": "gzip"},
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_body_is_read_after_the_edge_limits(make_app: AppMaker, kind: str) -> None:
    """For an address over its limit nothing is read: the answer is 429."""
    of_view = {"anthropic_api": ["9/year"]}
    limits = {"RATELIMIT_APPLICATION": "1/year", "RATELIMIT_BLUEPRINTS": of_view}
    client, body = make_app(**NO_LIMITS, **limits).test_client(), _Reads()
    assert client.get("/usage").status_code == 200
    stream = {"wsgi.input": body, "wsgi.input_terminated": True}
    response = client.post(
        "/v1/messages", content_type="application/json", environ_overrides={**stream, **LARGE[kind]}
    )
    assert (response.status_code, body.count) == (429, 0)


def test_a_large_body_is_charged_once(client: FlaskClient) -> None:
    """The edge limits that were charged before the body was read are not charged again."""
    body = {"model": "offline", "messages": [{"role": "user", "content": "hi"}], "x": "a" * 100_000}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    assert re.search(r'"ip";r=(\d+)', response.headers["RateLimit"])[1] == "19"  # type: ignore[index]


@pytest.mark.parametrize("compressed", [False, True])
def test_large_bodies_share_a_memory_budget(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    """Above it, another large body is refused with a wait. The memory is free again when the
    responses are closed."""
    monkeypatch.setattr(request_body, "WAIT_S", 0)
    room = request_body.LargeBodies(200_000)
    monkeypatch.setattr(request_body, "large_bodies", room)
    fields = {"model": "offline", "messages": [{"role": "user", "content": "hi"}]}
    body = json.dumps({**fields, "x": "a" * 150_000}).encode()
    headers = {"Content-Type": "application/json"}
    if compressed:
        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"

    def ask() -> tuple[int, str | None]:
        with client.post("/v1/chat/completions", data=body, headers=headers) as response:
            return response.status_code, response.headers.get("Retry-After")

    assert ask() == (200, None)
    room.take(100_000)
    assert ask() == (503, "2")
    room.give_back(100_000)
    assert ask() == (200, None)
    room.take(200_000)


@pytest.mark.parametrize(
    ("messages", "parts"), [(10_001, 1), (1, 20_001)], ids=["messages", "parts"]
)
def test_messages_and_parts_are_bounded(client: FlaskClient, messages: int, parts: int) -> None:
    """The error names the bounds."""
    said = {"role": "user", "content": [0] * parts}
    fields = {"model": "offline", "messages": [said] * messages}
    response = client.post("/v1/chat/completions", json=fields)
    assert response.status_code == 400
    assert "at most 10000 with 20000" in response.json["error"]["message"]  # type: ignore[index]
