"""Requests a second through gunicorn: bare Flask, Flask-Limiter and this extension.

    python -m benchmarks.throughput [--rounds N] [--seconds S]

One gunicorn, 2 workers of 8 threads, serves six applications side by side, told apart by path: a
bare route; one that calls an empty script on Redis; and the bare route under three fixed windows
with headers, by Flask-Limiter and by us, once with room for every request and once with none. An
embedded Valkey keeps the limits. Two processes with 8 connections each ask as fast as they are
answered, one application after the other, in alternating rounds.

The ratios to bare Flask are those of the best rounds, as others on the machine can only slow one
down, and beside them the median of each round's own ratio, as one lucky round is no measurement.

Client, workers and storage share the machine, which flatters whoever is slow. So the client is a
bare socket and no `http.client`, which takes as long to ask as Flask takes to answer; and the last
columns tell the workers' processor time a request, which the client has no part in.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import flask
import flask_limiter
import redis
from flask_limiter.util import get_remote_address

import ratelimit_ext
from ratelimit_ext.embedded.server import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
WORKERS, THREADS = 2, 8
CLIENTS, CONNECTIONS = 2, 8
PASSES = ("1000000/minute", "10000000/hour", "100000000/day")
DENIES = ("1000000/minute", "10000000/hour", "1/day")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

WSGI = Callable[[dict[str, Any], Any], Any]


# -- what gunicorn serves --------------------------------------------------------------------------


def application() -> WSGI:
    """All contenders in one, chosen by path, so that they run in the same processes."""
    warnings.simplefilter("ignore")
    ours, stock = ratelimit_ext.Limiter, flask_limiter.Limiter
    apps = {
        "/bare": limited("bare", None, ()),
        "/script": script("script"),
        "/ours": limited("ours", ours, PASSES),
        "/ours-denied": limited("ours-denied", ours, DENIES),
        "/stock": limited("stock", stock, PASSES),
        "/stock-denied": limited("stock-denied", stock, DENIES),
        "/worker": worker(),
    }
    return lambda environ, start_response: apps[environ["PATH_INFO"]](environ, start_response)


def limited(name: str, limiter_class: type[Any] | None, limits: tuple[str, ...]) -> flask.Flask:
    """One route, with as many limits as are given."""
    app = flask.Flask(name)

    def view() -> str:
        return "ok"

    if limiter_class is not None:
        limiter = limiter_class(
            get_remote_address,
            app=app,
            storage_uri=os.environ["RATELIMIT_STORAGE_URI"],
            headers_enabled=True,
            key_prefix=name,
        )
        for limit in limits:
            view = limiter.limit(limit)(view)
    app.add_url_rule(f"/{name}", "view", view)
    return app


def script(name: str) -> flask.Flask:
    """One route that asks Redis once: the least that shared limits can cost."""
    app = flask.Flask(name)
    uri = os.environ["RATELIMIT_STORAGE_URI"].replace("redis+unix", "unix")
    client = redis.from_url(uri)
    sha = client.script_load("return 1")

    def view() -> str:
        client.evalsha(sha, 3, "a", "b", "c")
        return "ok"

    app.add_url_rule(f"/{name}", "view", view)
    return app


def worker() -> flask.Flask:
    """Answers with the process that answers."""
    app = flask.Flask("worker")
    app.add_url_rule("/worker", "worker", lambda: str(os.getpid()))
    return app


# -- what asks -------------------------------------------------------------------------------------


def asked(port: int, path: str, status: int, seconds: float) -> int:
    """How many answers one client had on its connections. Another status ends the benchmark."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    expected = f"HTTP/1.1 {status} ".encode()
    poll, answered = select.epoll(), 0
    connections = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(CONNECTIONS)]
    by_number = {connection.fileno(): connection for connection in connections}
    received = dict.fromkeys(by_number, b"")
    for number, connection in by_number.items():
        poll.register(number, select.EPOLLIN)
        connection.sendall(request)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for number, _ in poll.poll(1):
            piece = by_number[number].recv(65_536)
            answer = received[number] = received[number] + piece
            if not piece or not answer.startswith(expected[: len(answer)]):
                raise SystemExit(f"{path} was answered {answer[:200]!r}, not {status}")
            if complete(answer):
                received[number] = b""
                answered += 1
                by_number[number].sendall(request)
    for connection in connections:
        connection.close()
    poll.close()
    return answered


def complete(answer: bytes) -> bool:
    """Whether headers and body are all there."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)


class Volley(NamedTuple):
    """One contender's round: answers a second, and the workers' processor time an answer."""

    per_second: float
    cpu_us: float


def volley(pool: Pool, port: int, workers: list[int], path: str, seconds: float) -> Volley:
    status = 429 if path.endswith("denied") else 200
    before = processor_seconds(workers)
    counts = pool.starmap(asked, [(port, path, status, seconds)] * CLIENTS, chunksize=1)
    spent = processor_seconds(workers) - before
    return Volley(sum(counts) / seconds, spent / sum(counts) * 1e6)


def processor_seconds(processes: list[int]) -> float:
    """User and system time of the processes, from Linux's own account."""
    ticks = 0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_A_SECOND


# -- the run ---------------------------------------------------------------------------------------


@contextmanager
def storage(folder: Path) -> Iterator[str]:
    server = EmbeddedServer(folder)
    server.start()
    try:
        yield server.uri
    finally:
        server.stop()


@contextmanager
def gunicorn(uri: str, folder: Path) -> Iterator[tuple[int, list[int]]]:
    """The port, and the workers' process ids. In that folder it reads no gunicorn.conf.py."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--bind 127.0.0.1:{port} --workers {WORKERS} --threads {THREADS} --keep-alive 75"
    command = [sys.executable, "-m", "gunicorn", *options.split(), "--no-control-socket"]
    command += ["--log-level", "warning", "--pythonpath", str(ROOT)]
    environment = {**os.environ, "RATELIMIT_STORAGE_URI": uri}
    master = subprocess.Popen(
        [*command, "benchmarks.throughput:application()"], cwd=folder, env=environment
    )
    try:
        yield port, booted(master, port)
    finally:
        master.terminate()
        master.wait(20)


def booted(master: subprocess.Popen[bytes], port: int) -> list[int]:
    """The workers' process ids, once each of them has answered."""
    workers: set[int] = set()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if master.poll() is not None:
            raise SystemExit("gunicorn ended; see above")
        try:
            workers.add(int(asked_once(port, "/worker")))
        except OSError:
            time.sleep(0.05)
        if len(workers) == WORKERS:
            return sorted(workers)
    raise SystemExit("gunicorn's workers did not come up within 30 s")


def asked_once(port: int, path: str) -> bytes:
    """The body of one answer, on a connection of its own, so that any worker may take it."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while not complete(answer):
            piece = connection.recv(65_536)
            if not piece:
                raise ConnectionError(f"{path} was answered {answer!r}")
            answer += piece
    return answer.partition(b"\r\n\r\n")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contender in a round")
    options = parser.parse_args()
    paths = ("/bare", "/script", "/ours", "/stock", "/ours-denied", "/stock-denied")
    results: dict[str, list[Volley]] = {path: [] for path in paths}
    with (
        TemporaryDirectory() as folder,
        storage(Path(folder)) as uri,
        gunicorn(uri, Path(folder)) as (port, workers),
        get_context("fork").Pool(CLIENTS) as pool,
    ):
        for path in paths:  # uses up the one call a day of those that deny
            asked_once(port, path)
        for path in paths:
            volley(pool, port, workers, path, 1)
        for _ in range(options.rounds):
            for path in paths:
                results[path].append(volley(pool, port, workers, path, options.seconds))
    report(results)


def report(results: dict[str, list[Volley]]) -> None:
    bare = results["/bare"]
    best_bare = max(each.per_second for each in bare)
    bare_cpu = min(each.cpu_us for each in bare)
    title = f"best of {len(bare)} rounds (median)"
    print(f"{title:26} {'requests/s':>15} {'of bare':>14} {'worker µs':>10} {'added':>6}")
    for path, volleys in results.items():
        rates = [each.per_second for each in volleys]
        pairs = zip(volleys, bare, strict=True)
        ratio = statistics.median(each.per_second / other.per_second for each, other in pairs)
        cpu = min(each.cpu_us for each in volleys)
        shown = f"{max(rates):6.0f} ({statistics.median(rates):6.0f})"
        print(
            f"{path:26} {shown:>15} {max(rates) / best_bare:7.0%} ({ratio:4.0%})"
            f" {cpu:10.0f} {cpu - bare_cpu:6.0f}"
        )
    print("must: ours >= 70 % of bare, ours-denied >= 85 %")


if __name__ == "__main__":
    main()
