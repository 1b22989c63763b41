"""The storage dies, hangs, or refuses, and comes back."""

import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import redis

from tests import servers
from tests.faults import traffic
from tests.faults.application import AMOUNT
from tests.faults.conftest import Record, Start
from tests.faults.load import Load
from tests.faults.traffic import FAULT_S, PATIENT
from tests.servers import Server, eventually

FLUSHES_PER_S = 20
LOCKED_S = 8.0
PASSWORD = "right"


@pytest.mark.fault(breaks="Redis is killed, and restarted with its data", to_do="Restart Redis.")
def test_killed(durable: Server, start: Start, record: Record) -> None:
    """Each worker decides for its share of the amount, and gives it back."""
    with start(durable.uri, workers=3) as master, traffic.around(master, durable.kill) as load:
        load.run(FAULT_S)
        durable.relaunch()
    traffic.assert_bridged(load)
    record(load)


@pytest.mark.fault(
    breaks="Redis is killed, and restarted without data",
    to_do="Restart Redis. Callers begin with full amounts: `appendonly yes` would keep them.",
)
def test_restarted_without_data(storage: Server, start: Start, record: Record) -> None:
    """What was admitted in the outage is known afterwards, what was before is lost."""
    with start(storage.uri) as master, traffic.around(master, storage.kill) as load:
        load.run(FAULT_S)
        storage.relaunch()
    traffic.assert_bridged(load)
    record(load)


@pytest.mark.fault(
    breaks="Redis hangs (`SIGSTOP`)",
    to_do="Find out what blocks it: a slow command, swapping, a stopped virtual machine.",
)
def test_stopped(storage: Server, start: Start, record: Record) -> None:
    """A server that hangs is as harmless as a dead one."""
    stop = partial(storage.process.send_signal, signal.SIGSTOP)
    with start(storage.uri) as master, traffic.around(master, stop) as load:
        load.run(FAULT_S)
        storage.process.send_signal(signal.SIGCONT)
    traffic.assert_bridged(load)
    record(load)


@pytest.mark.fault(
    breaks="Redis is killed, and the file that the workers then share is locked for 8 s",
    to_do="Find what holds it: nothing else needs `instance/settlements`.",
    before="each worker went on alone for good: 45 and 56 of 1,800 too many",
)
def test_the_common_file_is_locked(
    durable: Server, start: Start, record: Record, tmp_path: Path
) -> None:
    """Requests wait for five seconds, then each worker has its own share until the file is free."""
    with start(durable.uri, workers=2) as master, traffic.around(master, durable.kill) as load:
        load.run(FAULT_S)
        (file,) = (tmp_path / "settlements").glob("*.sqlite")
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            load.run(LOCKED_S)
            other.execute("COMMIT")
        load.run(FAULT_S)
        eventually(lambda: master.log.count("is free again") == master.log.count("has been locked"))
        durable.relaunch()
    assert "is free again" in master.log
    traffic.assert_bridged(load, most=2 * AMOUNT)
    record(load)


@pytest.mark.fault(
    breaks="Redis loads its data (`LOADING`)",
    to_do="Wait. A replica with Sentinel takes over without loading.",
)
def test_loading(durable: Server, start: Start, record: Record) -> None:
    """A server that refuses everything for a while is down for that time."""
    with durable.client() as client, client.pipeline() as pipeline:
        for number in range(2000):
            pipeline.set(f"unrelated:{number}", "")
        pipeline.execute()
    delay_us = int(FAULT_S * 1e6 / 2000)
    with start(durable.uri) as master, traffic.around(master, durable.kill) as load:
        durable.relaunch("--key-load-delay", str(delay_us))
    traffic.assert_bridged(load)
    record(load)


@pytest.mark.fault(
    breaks="Redis becomes a replica (`READONLY`)",
    to_do="Promote it (`REPLICAOF NO ONE`), or use `redis+sentinel://`.",
)
def test_read_only(storage: Server, start: Start, record: Record) -> None:
    """A storage that cannot be written to is down."""
    with (
        start(storage.uri) as master,
        storage.client() as client,
        traffic.around(master, lambda: client.replicaof("127.0.0.1", servers.free_port())) as load,
    ):
        load.run(FAULT_S)
        client.replicaof("NO", "ONE")
    traffic.assert_bridged(load)
    record(load)


@pytest.mark.fault(
    breaks="Redis refuses the password",
    to_do="Set the password in `RATELIMIT_STORAGE_URI` and reload gunicorn, or set Redis's back.",
)
def test_wrong_password(storage: Server, start: Start, record: Record) -> None:
    """A storage that lets no worker in is down."""
    with storage.client() as client:
        client.config_set("requirepass", PASSWORD)

    def change() -> None:
        client.config_set("requirepass", "another")
        client.client_kill_filter(_type="normal", skipme=True)

    with (
        storage.client(password=PASSWORD) as client,
        start(f"redis://:{PASSWORD}@127.0.0.1:{storage.port}") as master,
        traffic.around(master, change) as load,
    ):
        load.run(FAULT_S)
        client.config_set("requirepass", PASSWORD)
    traffic.assert_bridged(load)
    record(load)


@pytest.mark.fault(
    breaks="Redis is full (`OOM`)",
    to_do="Raise `maxmemory`. Known callers continue, new ones get 503 until keys expire.",
)
def test_full(storage: Server, start: Start, record: Record) -> None:
    """Callers whose usage is known continue exactly; others get a 503 with a wait, not a new
    amount in a worker's memory."""
    with (
        start(storage.uri, **PATIENT) as master,
        storage.client() as client,
        traffic.around(master, lambda: client.config_set("maxmemory", 1)) as load,
    ):
        load.run(FAULT_S)
        new = load.answers.of(traffic.LATE)
        client.config_set("maxmemory", 0)
    answers = load.answers
    assert set(answers.of(traffic.ROOMY).statuses) == {200}
    assert set(new.statuses) == {503}
    assert new.values("retry-after") == {"30"}
    assert set(answers.statuses) == {200, 429, 503}
    assert traffic.counts(answers) == "exact"
    record(load)


@pytest.mark.fault(
    breaks=f"Scripts are flushed, {FLUSHES_PER_S} times a second (`SCRIPT FLUSH`)",
    to_do="Nothing: they are loaded again.",
)
def test_scripts_are_flushed(storage: Server, start: Start, record: Record) -> None:
    """Every request is decided by the storage, exactly."""
    load = under_flushes(storage, start, redis.Redis.script_flush)
    traffic.assert_unnoticed(load)
    record(load)


@pytest.mark.fault(
    breaks=f"Functions are flushed, {FLUSHES_PER_S} times a second (`FUNCTION FLUSH`)",
    to_do="Nothing: they are loaded again.",
)
def test_functions_are_flushed(storage: Server, start: Start, record: Record) -> None:
    """Every request is decided by the storage, exactly."""
    load = under_flushes(storage, start, redis.Redis.function_flush)
    traffic.assert_unnoticed(load)
    record(load)


def under_flushes(storage: Server, start: Start, flush: Callable[[redis.Redis], object]) -> Load:
    """The load of a fault in which the storage is flushed again and again."""
    with (
        start(storage.uri, **PATIENT) as master,
        traffic.around(master) as load,
        storage.client() as client,
    ):
        for _ in range(int(FAULT_S * FLUSHES_PER_S)):
            flush(client)
            load.run(1 / FLUSHES_PER_S)
    return load
