"""Generated requests over sockets to a real gunicorn: no 500, no traceback, and no hang. Some of
them in every run; CHATAPP_FUZZ_REQUESTS=50000 sends a tenth of that over sockets."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chatapp.application.bad_input.odd_requests import OddRequest, OddRequests
from tests.gunicorn_master import Master, gunicorn

REQUESTS = int(os.environ.get("CHATAPP_FUZZ_REQUESTS") or 2_000) // 10
BOUND_S = 20.0
#: More than the limit of one address lets through: refusals are answered like all else.
UNLIMITED = {"RATELIMIT_ENABLED": "false"}


@pytest.fixture(params=["limited", "unlimited"])
def master(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Master]:
    own = UNLIMITED if request.param == "unlimited" else {}
    with gunicorn("wsgi:app", tmp_path, **own) as master:
        yield master


def status_of(port: int, asked: OddRequest) -> str:
    """The status; "" if the server closes without one, "hangs" if it does not."""
    with socket.create_connection(("127.0.0.1", port), timeout=BOUND_S) as connection:
        head = asked.head().replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        try:
            connection.sendall(head + asked.body)
            if asked.declared != str(len(asked.body)):  # or it would wait for the rest
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has refused, and reads no further
        answer = b""
        try:
            while piece := connection.recv(65_536):
                answer += piece
        except TimeoutError:
            return "hangs"
        except OSError:
            pass  # what it did not read resets the connection
        return answer[9:12].decode("latin-1")


def test_no_request_makes_a_500_or_hangs(master: Master) -> None:
    """Eight at a time."""
    made = OddRequests(seed=9)
    requests = [made.next() for _ in range(REQUESTS)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda asked: status_of(master.port, asked), requests))
    print(f"\n{REQUESTS} requests: {sorted(Counter(statuses).items())}")  # noqa: T201
    bad = {"500", "502", "504", "hangs"}
    wrong = [pair for pair in zip(statuses, requests, strict=True) if pair[0] in bad]
    assert not wrong, (wrong[:3], master.log[-3000:])
    assert "Traceback" not in master.log
    assert master.request("/healthz").status == 200
