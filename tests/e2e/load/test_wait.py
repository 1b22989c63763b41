"""Requests that wait for their turn, in real workers of gunicorn on a real server."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from flask import Flask, request

from ratelimit_ext import Limiter, RateLimitExceeded
from tests import servers
from tests.servers import Server, eventually, free_port

RATE, BURST, WAIT_S = 100, 10, 2
WORKERS, THREADS = 4, 32
LASTS_S = 5.0
APP = """
import os, threading, time
from flask import Flask, g, request
from ratelimit_ext import Limiter
from ratelimit_ext.web.request import waiting_room

app = Flask(__name__)

@app.before_request
def note():
    g.asked = time.time()

limiter = Limiter(lambda: "all", app=app, storage_uri=os.environ["URI"], key_prefix="wait")
sleep, lock, waiting = waiting_room._sleep, threading.Lock(), [0, 0]

def watched(seconds, woken):
    g.promised, g.asked = time.time() + seconds, g.asked + seconds
    with lock:
        waiting[0] += 1
        waiting[1] = max(waiting)
    try:
        return sleep(seconds, woken)
    finally:
        with lock:
            waiting[0] -= 1

waiting_room._sleep = watched

@app.get("/")
@limiter.limit("RATE/second", strategy="token-bucket", burst=BURST, wait="WAIT_S seconds")
def view():
    return [g.asked, g.get("promised"), time.time(), waiting[1]]

@app.get("/slow")
@limiter.limit("12/minute", strategy="token-bucket", burst=1, name="slow", wait="2 minutes")
def slow():
    return "ok"
@app.get("/slots")
@limiter.limit("4 in flight", name="slots", wait="30 seconds")
def slots():
    begin = time.time()
    time.sleep(0.1)
    return [begin, time.time(), os.getpid()]
"""
HELD_S = 15
#: Calls that go on until their process is killed.
ENDLESS = f"""
import os, time
from flask import Flask
from ratelimit_ext import Limiter

app = Flask(__name__)
app.config["RATELIMIT_LEASE_SECONDS"] = {HELD_S}
limiter = Limiter(lambda: "all", app=app, storage_uri=os.environ["URI"], key_prefix="wait")

@app.get("/")
@limiter.limit("4 in flight", name="slots", wait="{HELD_S} seconds")
def view():
    time.sleep(600)
"""


def paced_app() -> str:
    text = APP
    for word, value in {"RATE": RATE, "BURST": BURST, "WAIT_S": WAIT_S}.items():
        text = text.replace(word, str(value))
    return text


@contextmanager
def served(
    directory: Path, uri: str, *options: str, text: str = ""
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    (directory / "waiting_app.py").write_text(text or paced_app())
    port = free_port()
    master = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gunicorn",
            "--bind",
            f"127.0.0.1:{port}",
            *options,
            "waiting_app:app",
        ],
        cwd=directory,
        env={**os.environ, "URI": uri, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    try:
        eventually(lambda: accepts(port))
        yield port, master
    finally:
        master.terminate()
        master.wait()


def commands(server: Server) -> int:
    return int(redis.Redis.from_url(server.uri).info("stats")["total_commands_processed"])


def accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_starts_of_many_workers(redis_server: Server, tmp_path: Path) -> None:
    """They never exceed the limit; no worker has more than a quarter of its threads waiting."""
    options = ("--workers", str(WORKERS), "--threads", str(THREADS))
    os.environ["RATELIMIT_WAITING_MAX"] = str(THREADS // 4)
    try:
        with served(tmp_path, redis_server.uri, *options) as (port, _):
            starts, refused = _hammered(port)
    finally:
        del os.environ["RATELIMIT_WAITING_MAX"]
    late_ms = sorted(1000 * (begin - promised) for _, promised, begin, _ in starts if promised)
    p99_ms = late_ms[int(0.99 * len(late_ms))]
    took_s = max(begin for *_, begin, _ in starts) - min(begin for *_, begin, _ in starts)
    print(  # noqa: T201
        f"{len(starts)} started in {took_s:.2f} s, {len(late_ms)} after a wait, {refused} refused; "
        f"later than promised: median {late_ms[len(late_ms) // 2]:.1f} ms, p99 {p99_ms:.1f} ms"
    )
    assert late_ms[0] >= -1
    assert refused
    assert max(most for *_, most in starts) <= THREADS // 4
    # The storage has given each its turn between these moments: a worker may read the answer late.
    turns = [(earliest, promised or begin) for earliest, promised, begin, _ in starts]
    for begin, _ in turns:
        within = [each for each in turns if begin <= each[0] and each[1] <= begin + 1]
        assert len(within) <= BURST + RATE + 2  # clocks of two processes differ by a little


def ask(port: int, path: str = "/") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def _hammered(port: int) -> tuple[list[tuple[float, float | None, float, int]], int]:
    """The starts of 128 clients in five seconds, and how many calls were refused."""
    starts, refused = list[tuple[float, float | None, float, int]](), [0]
    warm = threading.Barrier(WORKERS * THREADS)

    def call() -> None:
        ask(port)  # a worker may have to import the application first
        warm.wait()
        ends = time.monotonic() + LASTS_S
        while time.monotonic() < ends:
            status, body = ask(port)
            if status == 200:
                starts.append(tuple(json.loads(body)))
            else:
                refused[0] += 1
                time.sleep(0.5)

    threads = [threading.Thread(target=call) for _ in range(WORKERS * THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return starts, refused[0]


@pytest.mark.parametrize("how", ["disconnect", "kill"])
def test_twenty_wait_and_are_gone(
    redis_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Clients that disconnect free their places at once; a worker that is killed loses them until
    their turns would have come. While they wait, no one asks the storage."""
    monkeypatch.setenv("RATELIMIT_WAITING_MAX", "20")
    app = Flask("operator")
    limiter = Limiter(lambda: "all", app=app, storage_uri=redis_server.uri, key_prefix="wait")
    options = {"strategy": "token-bucket", "burst": 1, "name": "slow", "wait": "2 minutes"}
    app.add_url_rule("/slow", "slow", limiter.limit("12/minute", **options)(lambda: "ok"))  # type: ignore[arg-type]
    limiter.reset()

    def in_line() -> int:
        with app.app_context():
            [state] = limiter.operators.states("all")
        return state.in_line

    with served(tmp_path, redis_server.uri, "--threads", "80") as (port, master):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(21)]
        for client in clients:
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: in_line() >= 19)
        time.sleep(1)
        began, before = time.monotonic(), commands(redis_server)
        time.sleep(1)
        asked = commands(redis_server) - before
        # Those of this test, and of overrides that workers look for.
        assert asked <= 10 * (time.monotonic() - began)
        waiting = in_line()
        began = time.monotonic()
        if how == "kill":
            kill_workers(master)
        for client in clients:
            client.close()
        if how == "disconnect":
            eventually(lambda: in_line() == 0)
            print(f"{waiting} places free after {time.monotonic() - began:.2f} s")  # noqa: T201
        else:
            with app.app_context():
                [state] = limiter.operators.states("all")
            assert 0 < (state.free_us or 0) <= 120_000_000


def kill_workers(master: subprocess.Popen[bytes], *, with_master: bool = False) -> None:
    children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text()
    if with_master:
        master.kill()
    for worker in children.split():
        os.kill(int(worker), signal.SIGKILL)


@pytest.mark.parametrize("has_successor", [True, False])
def test_twenty_wait_for_a_slot_and_are_killed(
    redis_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_successor: bool
) -> None:
    """Its successor frees the four slots and the twenty places in line; without one they are free
    when their lease ends. The count is exact then: four new calls run, and no fifth."""
    monkeypatch.setenv("RATELIMIT_WAITING_MAX", "20")
    monkeypatch.setenv("RATELIMIT_SETTLEMENTS_DIR", str(tmp_path))
    app = Flask("operator")
    limiter = Limiter(lambda: "all", app=app, storage_uri=redis_server.uri, key_prefix="wait")
    slots = limiter.limit("4 in flight", name="slots", wait=f"{HELD_S} seconds")
    app.add_url_rule("/", "view", slots(lambda: "ok"))
    limiter.reset()

    def count() -> tuple[int, int]:
        with app.app_context():
            [state] = limiter.operators.states("all")
        return int(state.used), state.in_line

    options = "--threads", "40"
    with served(tmp_path, redis_server.uri, *options, text=ENDLESS) as (port, master):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(24)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: count() == (4, 20))
        began = time.monotonic()
        kill_workers(master, with_master=not has_successor)
        eventually(lambda: count() == (0, 0), within_s=HELD_S + 5)
        print(f"free after {time.monotonic() - began:.1f} s")  # noqa: T201
        for client in clients:
            client.close()
    with app.app_context(), ExitStack() as running:
        for _ in range(4):
            running.enter_context(limiter.charge("slots", "all"))
        assert count() == (4, 0)
        with pytest.raises(RateLimitExceeded), limiter.charge("slots", "all"):
            pytest.fail("a fifth call runs")
    assert count() == (0, 0)


def test_slots_of_two_workers(
    redis_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty calls share four slots: each has its turn, and never more than four run."""
    monkeypatch.setenv("RATELIMIT_WAITING_MAX", "40")
    options = ("--workers", "2", "--threads", "44")
    with served(tmp_path, redis_server.uri, *options) as (port, _), ThreadPoolExecutor(40) as pool:
        ask(port, "/slots")
        began = time.monotonic()
        answers = list(pool.map(lambda _: ask(port, "/slots"), range(40)))
        print(f"40 calls of 0.1 s in 4 slots: {time.monotonic() - began:.2f} s")  # noqa: T201
    assert {status for status, _ in answers} == {200}
    calls = [json.loads(body) for _, body in answers]
    for begin, _, _ in calls:
        assert len([1 for start, end, _ in calls if start <= begin < end]) <= 4


@pytest.mark.parametrize("fair", [True, False])
def test_ten_users_of_whom_one_has_fifty_threads(redis_server: Server, fair: bool) -> None:
    """Of 400 calls in four slots each user has its part, Jain's index; without members the one with
    fifty threads has it. Never more than four run. A call ends when all others run or are in line:
    no turn is given while a slow thread has yet to ask."""
    app, began, running, most = Flask("example"), list[str](), list[int](), [0]
    app.config["RATELIMIT_WAITING_MAX"] = 60
    limiter = Limiter(
        lambda: "all", app=app, storage_uri=redis_server.uri, key_prefix=f"ten-{fair}"
    )
    user = (lambda: request.headers["X-User"]) if fair else None

    @app.get("/")
    @limiter.limit("4 in flight", name="slots", wait="60 seconds", fair=user)
    def view() -> str:
        running.append(1)
        most.append(len(running))
        began.append(request.headers["X-User"])
        eventually(lambda: len(began) >= 400 or in_line() >= len(users) - 4)
        running.pop()
        return "ok"

    def in_line() -> int:
        [state] = limiter.operators.states("all")
        return state.in_line

    def calls(name: str) -> None:
        while len(began) < 400:
            assert app.test_client().get("/", headers={"X-User": name}).status_code == 200

    users = ["greedy"] * 50 + [f"user {number}" for number in range(9)]
    with ThreadPoolExecutor(len(users)) as pool:
        list(pool.map(calls, users))
    got = Counter(began[:400])
    index = 400**2 / (10 * sum(count**2 for count in got.values()))
    print(f"fair={fair}: Jain's index {index:.3f}, {sorted(got.values())}")  # noqa: T201
    assert max(most) == 4
    assert (index >= 0.95) is fair


def test_slots_on_a_cluster() -> None:
    """The release is on the node of the bucket, and wakes callers that listen to another node."""
    app, running, most = Flask("example"), list[int](), [0]
    app.config["RATELIMIT_WAITING_MAX"] = 20
    with servers.cluster() as cluster, ThreadPoolExecutor(20) as pool:
        limiter = Limiter(lambda: "all", app=app, storage_uri=cluster.uri)

        @app.get("/")
        @limiter.limit("4 in flight", name="slots", wait="30 seconds")
        @limiter.limit("1000/minute", name="calls")
        def view() -> str:
            running.append(1)
            most.append(len(running))
            time.sleep(0.1)
            running.pop()
            return "ok"

        statuses = list(pool.map(lambda _: app.test_client().get("/").status_code, range(20)))
        with app.app_context():
            states = limiter.operators.states("all")
    assert statuses == [200] * 20
    assert max(most) == 4
    assert {state.row.name: state.used for state in states} == {"slots": 0, "calls": 20}
