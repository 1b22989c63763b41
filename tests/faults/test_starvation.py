"""The workers wait for the processor, and the storage is well; and it hangs while they do not."""

import multiprocessing
import os
import signal
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
from flask import Flask
from limits.storage import storage_from_string

from ratelimit_ext import Limiter
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.redis import RedisEngine
from tests.faults import traffic
from tests.faults.callers import report
from tests.faults.conftest import Record, Start
from tests.faults.load import Load
from tests.faults.traffic import IS_LONG
from tests.gunicorn_master import Master
from tests.servers import Server, eventually

#: Processes that take all of the core of two workers and their storage.
HUNGRY = 24
STARVED_S = 60.0 if IS_LONG else 6.0
PER_S = 60
#: A hang that is found later than this was not found by the deadline.
FOUND_S = 2.0
DEADLINE_S = 0.1
#: How the hammer asks.
HAMMERS, HAMMER_THREADS, HAMMER_CALLS, HAMMER_ROUNDS = 4, 8, 25, 20
#: Of the log of a worker that misses the storage.
LOST = ("storage is down", "storage failed", "cannot", "torage unavailable", "Traceback")


@contextmanager
def starving(master: Master, server: Server) -> Iterator[None]:
    """Within the block, the workers and the storage share one core with busy processes."""
    core = {min(os.sched_getaffinity(0))}
    own = [master.pid, *master.workers(), server.pid]
    every = {pid: os.sched_getaffinity(pid) for pid in own}
    with ExitStack() as stack:
        for pid in own:
            pin(pid, core)
        for _ in range(HUNGRY):
            busy = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
            os.sched_setaffinity(busy.pid, core)
        yield
    for pid in own:
        pin(pid, every[pid])


def pin(pid: int, cores: set[int]) -> None:
    """Let all threads of a process run on these cores only."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


@pytest.mark.fault(
    breaks="Busy processes take all of the core of the workers and of Redis",
    to_do="Give them a core: answers are late, but the limits hold.",
    before="161 × 503, and 406 lines said that the storage was unavailable",
)
def test_the_workers_starve(storage: Server, start: Start, record: Record) -> None:
    """The storage decides every request: a reply that the worker is late to read is no outage."""
    with (
        start(storage.uri, workers=2) as master,
        Load(master.port, traffic.traffic, per_s=PER_S) as load,
    ):
        load.run(traffic.BEFORE_S)
        with load.fault(), starving(master, storage):
            load.run(STARVED_S)
        load.run(traffic.AFTER_S)
    assert not any(map(traffic.is_degraded, load.answers)), load.answers.statuses
    assert not [line for line in master.log.splitlines() if any(each in line for each in LOST)]
    assert traffic.counts(load.answers) == "exact"
    record(load)


def hammer(uri: str, caller: str) -> Counter[str]:
    """One process of a round: how many requests were admitted, and how many were decided how."""
    os.environ |= {"RATELIMIT_STORAGE_URI": uri, "RATELIMIT_DEADLINE_SECONDS": str(DEADLINE_S)}
    app = Flask(__name__)
    limiter = Limiter(lambda: caller, app=app, storage_uri=uri, headers_enabled=True)
    app.add_url_rule("/", view_func=limiter.limit("100/day")(lambda: "admitted"))
    at_once = threading.Barrier(HAMMER_THREADS)

    def calls(_: int) -> Counter[str]:
        client = app.test_client()
        at_once.wait(60)
        answers = [client.get("/") for _ in range(HAMMER_CALLS)]
        decided = Counter(answer.headers.get(traffic.DEGRADED, "") for answer in answers)
        return decided + Counter(admitted=sum(answer.status_code == 200 for answer in answers))

    with ThreadPoolExecutor(HAMMER_THREADS) as threads:
        return sum(threads.map(calls, range(HAMMER_THREADS)), Counter[str]())


def test_a_storage_that_hangs_is_found(storage: Server) -> None:
    """After its deadline, and a little more if this thread itself is late."""
    client = storage_from_string(storage.uri, socket_timeout=DEADLINE_S).get_connection()
    engine, charge = RedisEngine(client, redis.RedisError), Charge(Limit(10**6, 10**9), "bucket")
    took_s = []
    for _ in range(10):
        engine.admit([charge])
        os.kill(storage.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(StorageUnavailable):
            engine.admit([charge])
        took_s.append(time.monotonic() - began)
        os.kill(storage.pid, signal.SIGCONT)
        eventually(storage.answers)
    ordered = " ".join(f"{each * 1000:.0f}" for each in sorted(took_s))
    report(f"found after {ordered} ms")
    assert min(took_s) < FOUND_S


def test_the_hammer_beside_busy_loops(storage: Server) -> None:
    """Processes whose threads all ask at once, and connect for it, while both cores are busy: each
    round admits exactly the amount, and the storage decides all of it."""
    context = multiprocessing.get_context("spawn")
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(2)]
    try:
        with context.Pool(HAMMERS) as hammers:
            for number in range(HAMMER_ROUNDS):
                work = [(storage.uri, f"round {number}")] * HAMMERS
                counts = sum(hammers.starmap(hammer, work, chunksize=1), Counter[str]())
                assert counts == {"": HAMMERS * HAMMER_THREADS * HAMMER_CALLS, "admitted": 100}
    finally:
        for process in busy:
            process.kill()
            process.wait()
