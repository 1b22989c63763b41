"""Exact counts: many processes, one key, a real server."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.apps.strategies import AMOUNT, STRATEGIES
from tests.e2e.load import volley
from tests.gunicorn_master import Master, gunicorn

PROCESSES = 8
REQUESTS_PER_THREAD = 5


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    directory = tmp_path_factory.mktemp("exact")
    with gunicorn("tests.e2e.apps.strategies:create_app()", directory, workers=8) as master:
        yield master


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exactly_the_amount_is_admitted(master: Master, strategy: str) -> None:
    """8 client processes with 8 threads each, on 8 workers with 8 threads each: 137 pass, the
    others get 429."""
    asked = PROCESSES * volley.THREADS * REQUESTS_PER_THREAD
    assert volleys(master.port, f"/{strategy}") == {200: AMOUNT, 429: asked - AMOUNT}, master.log


def volleys(port: int, path: str) -> Counter[int]:
    """The number of answers by status, from processes that began together."""
    command = [sys.executable, volley.__file__, str(port), path, str(REQUESTS_PER_THREAD)]
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    total: Counter[int] = Counter()
    for client in clients:
        output, _ = client.communicate(timeout=60)
        for line in output.splitlines():
            status, count = line.split()
            total[int(status)] += int(count)
    return total
