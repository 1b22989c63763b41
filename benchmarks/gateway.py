"""What chatapp adds to a call: a direct gateway, chatapp without limits, chatapp with all of them.

    python -m benchmarks.gateway [--rounds N] [--seconds S]

Each is a gunicorn of 2 workers with 8 threads, by the settings of gunicorn.conf.py, before one
provider that answers at once (`mock_upstream`). The direct gateway is one Flask route that calls
OpenAI's SDK, once as it is and once with an empty script on Redis before the call and after it.
chatapp has its own policy with so much room that nothing is denied, an embedded Valkey, a ledger in
SQLite and an API key, which every request shows. A process of its own asks them in turn, in rounds:
over one connection, which tells how long a call takes, then over 16, which tells how many they can
answer.

What chatapp adds is the difference of the medians of one round; the least over all rounds of each
stands first, and in brackets the median of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.mock_upstream import mock_upstream
from benchmarks.throughput import (
    ROOT,
    THREADS,
    WORKERS,
    booted,
    complete,
    processor_seconds,
    storage,
)

CONNECTIONS = 16
ROOM = 1_000_000
ASKED = {"message": "Say something kind about rate limits, please.", "model": "gpt-5.4-mini"}
DIRECT, SCRIPTED = "direct gateway", "direct, two empty scripts"
UNLIMITED, LIMITED = "chatapp without limits", "chatapp"


# -- what is asked ---------------------------------------------------------------------------------


class Gateway(NamedTuple):
    """One that runs: where, in which processes, and what it is sent."""

    port: int
    workers: list[int]
    request: bytes


def roomy(policy: str) -> str:
    """The same limits, each with room for all that a benchmark can ask."""
    return re.sub(r'^(limit = "|burst = )\d+', rf"\g<1>{ROOM}", policy, flags=re.MULTILINE)


def request(key: str) -> bytes:
    body = json.dumps(ASKED).encode()
    head = (
        "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def chat_environment(folder: Path, upstream: str, limits_in: str) -> dict[str, str]:
    """All that any of the gateways is told; nothing of this shell's own settings."""
    policy = folder / "policy.toml"
    policy.write_text(roomy((ROOT / "chatapp" / "policy.toml").read_text()))
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(ROOT),
        "OPENAI_API_KEY": "sk-mock",
        "OPENAI_BASE_URL": upstream,
        "RATELIMIT_STORAGE_URI": limits_in,
        "RATELIMIT_POLICY_FILE": str(policy),
        "DATABASE_URL": f"sqlite:///{folder / 'chatapp.db'}",
        "WEB_CONCURRENCY": str(WORKERS),
        "GUNICORN_THREADS": str(THREADS),
    }


def new_key(environment: Mapping[str, str], folder: Path) -> str:
    """The first API key, which turns accounts on."""
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "chat", "keys", "create"]
    made = subprocess.run(
        [*command, "--user", "benchmark"],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if made.returncode != 0:
        raise SystemExit(made.stderr)
    return made.stdout.strip()


@contextmanager
def gunicorn(application: str, environment: Mapping[str, str], folder: Path) -> Iterator[Gateway]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py")]
    command += ["--log-level", "error", f"benchmarks.applications:{application}()"]
    master = subprocess.Popen(command, cwd=folder, env={**environment, "PORT": str(port)})
    try:
        yield Gateway(port, booted(master, port), b"")
    finally:
        master.terminate()
        master.wait(60)


# -- what asks -------------------------------------------------------------------------------------


def answer_times(port: int, sent: bytes, connections: int, seconds: float) -> list[float]:
    """How long each answer took, in seconds, with so many requests on their way at any time."""
    poll, times = select.epoll(), []
    by_number = {each.fileno(): each for each in shared_out(port, connections)}
    received, since = dict.fromkeys(by_number, b""), {}
    until = time.perf_counter() + seconds
    for number, connection in by_number.items():
        poll.register(number, select.EPOLLIN)
        since[number] = time.perf_counter()
        connection.sendall(sent)
    # The last answers are waited for: a call that is cut off would reach into the next round.
    while since:
        for ready, _ in poll.poll(1):
            number = ready
            piece = by_number[number].recv(65_536)
            answer = received[number] = received[number] + piece
            if not piece or not answer.startswith(b"HTTP/1.1 200 "[: len(answer)]):
                raise RuntimeError(f"the answer was {answer[:2000]!r}")
            if complete(answer):
                now = time.perf_counter()
                times.append(now - since.pop(number))
                del received[number]
                if now >= until:
                    by_number.pop(number).close()
                    continue
                if is_last(answer):  # the worker is full and another has room
                    by_number.pop(number).close()
                    connection = connect(port)
                    number = connection.fileno()
                    by_number[number] = connection
                    poll.register(number, select.EPOLLIN)
                received[number], since[number] = b"", now
                by_number[number].sendall(sent)
    poll.close()
    return times


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def is_last(answer: bytes) -> bool:
    """Whether the worker closes the connection after this answer."""
    return b"\r\nconnection: close\r\n" in answer.partition(b"\r\n\r\n")[0].lower() + b"\r\n"


def shared_out(port: int, connections: int) -> list[socket.socket]:
    """Connections of which each worker has as many. The first that wakes up would accept all that
    come at once, and the other have none for the whole round."""
    kept: list[socket.socket] = []
    share: Counter[bytes] = Counter()
    for _ in range(100 * connections):
        connection = connect(port)
        worker = worker_of(connection)
        if share[worker] * WORKERS >= connections:
            connection.close()
            continue
        share[worker] += 1
        kept.append(connection)
        if len(kept) == connections:
            return kept
    raise RuntimeError(f"the workers took {dict(share)} of {connections} connections")


def worker_of(connection: socket.socket) -> bytes:
    """Which worker has accepted the connection."""
    connection.sendall(b"GET /worker HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not complete(answer):
        piece = connection.recv(65_536)
        if not piece:
            raise ConnectionError(f"/worker was answered {answer!r}")
        answer += piece
    return answer.partition(b"\r\n\r\n")[2]


class Round(NamedTuple):
    """One gateway's round; ``p50_ms`` is over one connection, the rest over all of them."""

    p50_ms: float
    per_second: float
    cpu_us: float


def measured(pool: Pool, gateway: Gateway, seconds: float) -> Round:
    """A round, which begins a moment after the one before has let go of its connections."""
    alone = pool.apply(answer_times, (gateway.port, gateway.request, 1, seconds))
    before = processor_seconds(gateway.workers)
    times = pool.apply(answer_times, (gateway.port, gateway.request, CONNECTIONS, seconds))
    spent = processor_seconds(gateway.workers) - before
    return Round(statistics.median(alone) * 1e3, len(times) / seconds, spent / len(times) * 1e6)


# -- the run ---------------------------------------------------------------------------------------


@contextmanager
def gateways() -> Iterator[dict[str, Gateway]]:
    """All of them, each with its workers up."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        upstream = stack.enter_context(mock_upstream())
        limits_in = stack.enter_context(storage(folder / "limits"))
        environment = chat_environment(folder, upstream, limits_in)
        sent = request(new_key(environment, folder))
        unlimited = {**environment, "RATELIMIT_ENABLED": "false"}
        applications = {
            DIRECT: ("direct", environment),
            SCRIPTED: ("scripted", environment),
            UNLIMITED: ("limited", unlimited),
            LIMITED: ("limited", environment),
        }
        yield {
            name: stack.enter_context(gunicorn(*application, folder))._replace(request=sent)
            for name, application in applications.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load in a round")
    options = parser.parse_args()
    with gateways() as running, get_context("fork").Pool(1) as pool:
        results: dict[str, list[Round]] = {name: [] for name in running}
        for gateway in running.values():
            measured(pool, gateway, 1)
        for _ in range(options.rounds):
            for name, gateway in running.items():
                results[name].append(measured(pool, gateway, options.seconds))
    report(results)


def report(results: dict[str, list[Round]]) -> None:
    direct = results[DIRECT]
    title = f"best of {len(direct)} rounds (median)"
    print(
        f"{title:26} {'p50 ms':>14} {'added':>14} {'requests/s':>14} {'of direct':>10}"
        f" {'worker µs':>10} {'added':>6}"
    )
    for name, rounds in results.items():
        p50s, rates, cpus = zip(*rounds, strict=True)
        added = statistics.median(
            each.p50_ms - other.p50_ms for each, other in zip(rounds, direct, strict=True)
        )
        best = [min(p50s), max(rates), min(cpus)]
        base = [min(column) for column in zip(*direct, strict=True)]
        print(
            f"{name:26} {best[0]:6.2f} ({statistics.median(p50s):5.2f})"
            f" {best[0] - base[0]:6.2f} ({added:5.2f})"
            f" {best[1]:6.0f} ({statistics.median(rates):5.0f})"
            f" {best[1] / max(each.per_second for each in direct):10.0%}"
            f" {best[2]:10.0f} {best[2] - base[2]:6.0f}"
        )
    print(f"must: {LIMITED} adds <= 1 ms, and answers >= 1,500 requests/s")


if __name__ == "__main__":
    main()
