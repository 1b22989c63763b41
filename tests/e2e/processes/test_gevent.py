"""The extension in gunicorn's gevent worker, with the settings of docs/operate/recipes.md."""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import servers
from tests.e2e.apps.strategies import AMOUNT, IN_FLIGHT, STRATEGIES
from tests.e2e.load.test_exact_counts import PROCESSES, REQUESTS_PER_THREAD, volleys
from tests.e2e.load.volley import THREADS
from tests.gunicorn_master import ROOT, Answer, Master, served
from tests.servers import Server, eventually, free_port

RECIPE = re.search(
    r"^```text\n(# gunicorn\.conf\.py\n.*?)^```$",
    (ROOT / "docs" / "operate" / "recipes.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
DEGRADED = "x-ratelimit-degraded"


@contextmanager
def gevent_workers(storage: Server, directory: Path, *options: str) -> Iterator[Master]:
    """Two workers of the recipe, with the application of tests/e2e/apps/strategies.py."""
    assert RECIPE is not None
    settings = directory / "gunicorn.conf.py"
    settings.write_text(RECIPE[1])
    port = free_port()
    command = [
        *("gunicorn", "--config", str(settings), "--bind", f"127.0.0.1:{port}", *options),
        *("--no-control-socket", "tests.e2e.apps.strategies:create_app()"),
    ]
    variables = {
        "WEB_CONCURRENCY": "2",
        "RATELIMIT_STORAGE_URI": storage.uri,
        "RATELIMIT_SETTLEMENTS_DIR": str(directory / "settlements"),
        "RATELIMIT_DEADLINE_SECONDS": "5",  # a pause of a busy machine is no outage
    }
    log = directory / "log"
    with served(command, port=port, log=log, variables=variables) as master:
        eventually(lambda: len(master.workers()) == 2)
        yield master


@pytest.fixture(scope="module")
def storage() -> Iterator[Server]:
    """A storage that keeps each change on disk."""
    with servers.standalone("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture(scope="module")
def master(storage: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    """Workers that are forked from a master with the application."""
    with gevent_workers(storage, tmp_path_factory.mktemp("gevent"), "--preload") as each:
        yield each


def calls(master: Master, count: int, path: str, caller: str) -> list[Answer]:
    """The answers to simultaneous requests."""
    with ThreadPoolExecutor(count) as pool:
        sent = [pool.submit(master.request, path, headers={"X-Key": caller}) for _ in range(count)]
        return [each.result() for each in sent]


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_exactly_the_amount_is_admitted(master: Master, strategy: str) -> None:
    """64 simultaneous clients: the amount passes, the others get 429. The workers share no
    connection."""
    asked = PROCESSES * THREADS * REQUESTS_PER_THREAD
    assert volleys(master.port, f"/{strategy}") == {200: AMOUNT, 429: asked - AMOUNT}, master.log


def test_slots_are_released(master: Master) -> None:
    """As many calls are in flight as are allowed, and again when they have ended."""
    for _ in range(2):
        answers = calls(master, 5 * IN_FLIGHT, "/call", "in flight")
        assert {answer.status for answer in answers} == {200, 429}, master.log
        ran = [answer.body for answer in answers if answer.status == 200]
        at_once = [sum(begin <= at < end for begin, end in ran) for at, _ in ran]
        assert max(at_once) == IN_FLIGHT, master.log


def test_an_outage_ends(master: Master, storage: Server) -> None:
    """Without the storage, both workers together admit the amount; they return to it, and hand
    back what they have admitted."""
    storage.kill()
    during = calls(master, 200, "/token-bucket", "late")
    storage.relaunch()
    assert {answer.status for answer in during} == {200, 429}
    assert {answer.headers.get(DEGRADED) for answer in during} == {"local"}
    admitted = sum(answer.status == 200 for answer in during)
    assert admitted <= AMOUNT

    back = set[str]()

    def is_back() -> bool:
        answers = calls(master, 8, "/fixed-window", "other")
        back.update(each.headers["x-worker"] for each in answers if DEGRADED not in each.headers)
        return len(back) == 2

    eventually(is_back)
    after = calls(master, 200, "/token-bucket", "late")
    assert sum(answer.status == 200 for answer in after) == AMOUNT - admitted, master.log


@pytest.mark.slow
def test_a_settlement_survives_a_stop_without_the_storage(storage: Server, tmp_path: Path) -> None:
    """It is queued, left at the stop, and sent by the next start: the call has cost what it
    settled, once. These workers import the application themselves."""
    with storage.client() as client:
        client.flushall()
        with gevent_workers(storage, tmp_path) as master, ThreadPoolExecutor(1) as pool:
            call = pool.submit(master.request, "/call")
            eventually(client.dbsize)
            client.ping()  # the server writes replies in turn: by now the call has its own
            storage.kill()
            assert call.result().status == 200
        assert master.process.returncode == 0
        assert "settlements are left in" in master.log
    storage.relaunch()
    with gevent_workers(storage, tmp_path) as master:
        eventually(lambda: not list((tmp_path / "settlements").glob("*.journal")))
        answer = master.request("/call")
    assert "r=3750000" in answer.headers["ratelimit"], master.log


def test_chatapp_refuses_other_workers() -> None:
    """It needs its own worker, and says so at the start."""
    command = [sys.executable, "-m", "gunicorn", "--worker-class", "gevent", "wsgi:app"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "cannot run in the worker class gevent" in done.stderr
    assert "Traceback" not in done.stderr
