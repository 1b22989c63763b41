"""gunicorn with its settings and the embedded storage, through the life of its masters."""

import math
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import redis

from chatapp.accounts.store import Accounts
from chatapp.database import migration
from chatapp.database.connection import Database
from tests.gunicorn_master import ROOT, Answer, Master, gunicorn
from tests.servers import Server, alive, eventually

#: What a proxy may read as /admin, or /admin as.
ODD_PATHS = ("//admin", "/%61dmin", "/admin;x", "/./admin", "/x/../admin")
COUNTER = "tests.e2e.apps.counter:app"

Start = Callable[..., AbstractContextManager[Master]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts gunicorn with the same state directory each time."""

    def start(app: str = COUNTER, **options: Any) -> AbstractContextManager[Master]:
        return gunicorn(app, tmp_path, **options)

    return start


@pytest.fixture
def master(start: Start) -> Iterator[Master]:
    with start() as master:
        yield master


def ask(master: Master, path: str = "/") -> dict[str, Any]:
    answer = master.request(path)
    assert answer.status == 200, master.log
    return answer.body


def seen_workers(master: Master) -> set[int]:
    """The workers that answer a burst of requests."""
    with ThreadPoolExecutor(16) as pool:
        return {answer["worker"] for answer in pool.map(lambda _: ask(master), range(64))}


def test_all_workers_share_one_private_server(master: Master, tmp_path: Path) -> None:
    """Two workers count in one storage, whose directory belongs to this user alone."""
    eventually(lambda: len(seen_workers(master)) == 2)
    before = ask(master)["count"]
    assert seen_workers(master) <= set(master.workers())
    assert ask(master)["count"] == before + 65
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_admin_has_one_path_and_no_other_spelling_of_its_header(start: Start) -> None:
    """A page is at the path as it was sent, and a header with underscores names no one: a proxy
    clears another one, and may read another path."""
    sign_on = {
        "CHATAPP_ADMIN_TOKEN": "a token of some length",
        "CHATAPP_ADMIN_SIGN_ON_HEADER": "X-Auth-Request-Email",
        "CHATAPP_ADMIN_SIGN_ON_FROM": "127.0.0.1",
        "CHATAPP_ADMIN_SIGN_ON": '{"*": "all"}',
    }
    with start("wsgi:app", workers=1, **sign_on) as master:
        for path, header, status in (
            *(("/admin", "X-Auth-Request-Email", 200), ("/admin", "X_Auth_Request_Email", 401)),
            *((each, "X-Auth-Request-Email", 404) for each in ODD_PATHS),
        ):
            with closing(HTTPConnection("127.0.0.1", master.port)) as connection:
                connection.request("GET", path, headers={header: "olga@example.com"})
                assert connection.getresponse().status == status, (path, header)


def test_a_reload_keeps_the_server(master: Master) -> None:
    """HUP replaces every worker, and the log says when the new ones serve; the server and its
    counts stay, and there is one server."""
    first = ask(master)
    old = set(master.workers())
    master.signal(signal.SIGHUP)
    eventually(lambda: not any(map(alive, old)))
    eventually(lambda: len(master.workers()) == 2)
    second = ask(master)
    assert second["server"] == first["server"]
    assert second["count"] == first["count"] + 1
    assert master.log.count("Storage: embedded server") == 1
    assert master.log.count("Reloaded: the new workers serve.") == 1


def test_a_reload_takes_new_code(start: Start, tmp_path: Path) -> None:
    """The master imports neither the application nor ratelimit_ext, so HUP loads new code."""
    source = ROOT / "tests" / "e2e" / "apps" / "counter.py"
    module = Path(shutil.copy(source, tmp_path / "changing.py"))
    with start("changing:app", PYTHONPATH=str(tmp_path)) as master:
        assert ask(master)["imported"] == []
        module.write_text(source.read_text().replace("VERSION = 1", "VERSION = 2"))
        master.signal(signal.SIGHUP)
        eventually(lambda: ask(master)["version"] == 2)


def test_a_killed_worker_costs_nothing(master: Master) -> None:
    """After SIGKILL of every worker, their successors use the same server and counts."""
    first = ask(master)
    for pid in master.workers():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(master.workers()) == 2)
    eventually(master.is_serving)
    second = ask(master)
    assert second["server"] == first["server"]
    assert second["count"] > first["count"]


def test_more_and_fewer_workers_share_the_server(master: Master) -> None:
    """TTIN and TTOU only change the number of workers."""
    first = ask(master)
    master.signal(signal.SIGTTIN)
    eventually(lambda: len(master.workers()) == 3)
    for fewer in (2, 1):
        master.signal(signal.SIGTTOU)
        eventually(lambda fewer=fewer: len(master.workers()) == fewer)
    assert ask(master)["server"] == first["server"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_the_server_ends_with_gunicorn_and_its_state_stays(
    start: Start, number: signal.Signals
) -> None:
    """After an orderly stop no server runs; the next start restores its state."""
    with start() as master:
        first = ask(master)
        master.signal(number)
        assert master.process.wait(60) == 0
        assert not alive(first["server"])
    with start() as master:
        assert ask(master)["count"] > first["count"]


def test_a_worker_that_is_starting_can_be_stopped(start: Start) -> None:
    """A TERM between the fork and the worker's own handlers is not lost, so a deployment that is
    stopped at once does not wait for graceful_timeout."""
    config = "tests/e2e/apps/stop_at_start.py"
    with start(GUNICORN_CMD_ARGS=f"--config {config}") as master:
        first, second = re.findall(r"Booting worker with pid: (\d+)", master.log)[:2]
        eventually(lambda: f"Worker exiting (pid: {first})" in master.log)
        eventually(lambda: len(master.workers()) == 2)
        assert int(second) in master.workers()


def test_a_worker_that_hands_a_request_over_can_be_stopped(start: Start) -> None:
    """A QUIT, as of Ctrl-C, at the moment when the worker gives a request to a thread."""
    config = "tests/e2e/apps/stop_at_handover.py"
    with start(GUNICORN_CMD_ARGS=f"--config {config}") as master:
        first = re.findall(r"Booting worker with pid: (\d+)", master.log)[0]
        eventually(lambda: master.is_serving() and f"Worker exiting (pid: {first})" in master.log)


def test_the_server_ends_with_a_master_that_is_killed(start: Start) -> None:
    """SIGKILL of the master leaves no server behind, and no state is lost."""
    with start() as master:
        first = ask(master)
        workers = master.workers()
        master.process.kill()
        eventually(lambda: not any(map(alive, [first["server"], *workers])))
    with start() as master:
        assert ask(master)["count"] > first["count"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_call_in_flight_keeps_its_storage(master: Master, number: signal.Signals) -> None:
    """Whether the master is stopped or killed, a call that has begun can still settle."""
    ask(master)
    with ThreadPoolExecutor(1) as pool, storage(master) as client:
        call = pool.submit(ask, master, "/slow")
        eventually(lambda: client.get("slow"))
        master.signal(number)
        assert call.result()["count"] > 1


def test_an_upgrade_hands_the_server_over(start: Start) -> None:
    """USR2 after a HUP: the new master takes over the old one's server, and stops it in the end."""
    with start() as old, ExitStack() as cleanup:
        first = ask(old)
        old.signal(signal.SIGHUP)
        eventually(lambda: "Handling signal: hup" in old.log and len(old.workers()) == 2)
        old.signal(signal.SIGUSR2)
        eventually(lambda: old.log.count("Listening at") == 2)
        new = int(re.findall(r"Listening at: .* \((\d+)\)", old.log)[-1])
        cleanup.callback(lambda: alive(new) and os.kill(new, signal.SIGKILL))
        old.signal(signal.SIGTERM)
        assert old.process.wait(60) == 0
        second = ask(old)  # the same port, the new master's workers
        assert second["server"] == first["server"]
        assert second["count"] > first["count"]
        os.kill(new, signal.SIGTERM)
        eventually(lambda: not alive(new))
        eventually(lambda: not alive(first["server"]))


def test_an_upgrade_that_is_taken_back_leaves_the_server(start: Start) -> None:
    """USR2 and a TERM to the new master: the old one keeps its server."""
    with start() as old:
        first = ask(old)
        old.signal(signal.SIGUSR2)
        eventually(lambda: old.log.count("Listening at") == 2)
        new = int(re.findall(r"Listening at: .* \((\d+)\)", old.log)[-1])
        os.kill(new, signal.SIGTERM)
        eventually(lambda: not alive(new))
        assert ask(old)["server"] == first["server"]


def test_a_reload_replaces_a_killed_supervisor(master: Master, tmp_path: Path) -> None:
    """HUP starts the storage again."""
    first = ask(master)
    os.kill(int((tmp_path / "state" / "lock").read_text()), signal.SIGKILL)
    eventually(lambda: not alive(first["server"]))
    master.signal(signal.SIGHUP)
    eventually(lambda: master.request("/").status == 200)
    assert ask(master)["count"] > first["count"]


def test_a_configured_storage_is_used(
    start: Start, redis_server: Server, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """With RATELIMIT_STORAGE_URI set, nothing is started and nothing is written."""
    with start(RATELIMIT_STORAGE_URI=redis_server.unix_uri) as master:
        assert ask(master)["server"] == redis_server.pid
    assert not (tmp_path / "state").exists()


def test_a_second_gunicorn_on_one_directory_ends(master: Master, start: Start) -> None:
    """It prints the reason, and the first one is not affected."""
    first = ask(master)
    with (
        pytest.raises(AssertionError, match=r"another application .*RATELIMIT_EMBEDDED_DIR"),
        start(),
    ):
        pass
    assert ask(master)["server"] == first["server"]


def test_the_loop_of_the_readme(start: Start) -> None:
    """15 calls of one user on 4 workers: 10 × 200, 5 × 429 with a wait; then 5 more in 10 s."""
    with start("wsgi:app", workers=4) as master:

        def chat() -> Answer:
            return master.request("/chat", {"message": "hello", "user_id": "test-user-1"})

        eventually(lambda: len(master.workers()) == 4)
        began = time.monotonic()
        asked, answers = list[float](), list[Answer]()
        for _ in range(15):
            asked.append(time.monotonic())
            answers.append(chat())
        denied = time.monotonic()
        passed = [answer for answer in answers if answer.status == 200]
        assert passed[:10] == answers[:10], master.log
        assert len(passed) <= 10 + (denied - began) / 2  # on a slow machine, a token has come back
        for asked_at, answer in zip(asked, answers, strict=True):
            if answer.status == 200:
                continue
            assert answer.status == 429
            wait_ms = float(answer.headers["retry-after-ms"])
            assert 0 < wait_ms <= 2000  # one token comes every two seconds
            assert int(answer.headers["retry-after"]) == math.ceil(wait_ms / 1000)
            assert answer.body["code"] == "rate_limited"
            sixth_at = asked_at + wait_ms / 1000 + 10

        time.sleep(10)
        assert [chat().status for _ in range(5)] == [200] * 5
        # The sixth comes when the last denial's wait has passed, too; a slow machine may be there.
        assert chat().status == 429 or time.monotonic() > sixth_at


@pytest.fixture
def guarded(start: Start, tmp_path: Path) -> Iterator[Master]:
    """The application with API keys required."""
    database = Database(f"sqlite:///{tmp_path / 'chatapp.db'}")
    migration.upgrade(database)
    Accounts(database).create_key("alice", plan=None, default_plan="starter")
    database.close()
    with start("wsgi:app", workers=1) as master:
        yield master


def test_a_long_key_is_refused_by_the_application(guarded: Master) -> None:
    """Up to 16 kB it is a 401 in the endpoint's format. gunicorn rejects longer headers."""

    def asked(path: str, characters: int) -> Answer:
        return guarded.request(path, {}, headers={"Authorization": "Bearer " + "a" * characters})

    codes: dict[str, Callable[[Any], str]] = {
        "/chat": lambda body: body["code"],
        "/v1/chat/completions": lambda body: body["error"]["code"],
        "/v1/messages": lambda body: body["error"]["details"]["error_code"],
    }
    for path, code in codes.items():
        for characters in (10_000, 16_000):
            answer = asked(path, characters)
            assert answer.status == 401, guarded.log
            assert code(answer.body) == "invalid_api_key"
    assert asked("/chat", 17_000).status == 431


def storage(master: Master) -> redis.Redis:
    """A client of the server that `master` runs."""
    (path,) = re.findall(r"embedded server, redis\+unix://(\S+)", master.log)
    return redis.Redis(unix_socket_path=path)


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "Script-Name"])
def test_a_header_does_not_move_the_application(master: Master, name: str) -> None:
    """gunicorn would accept SCRIPT_NAME from a peer on this machine, and fail if it does not match
    the path."""
    assert master.request("/", headers={name: "/x"}).status == 200
