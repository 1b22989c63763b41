"""What a process has queued survives it: the next process sends it, once."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import flask
import pytest
import redis

from ratelimit_ext import ConfigurationError, Limiter
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import KEPT_AFTER_LEASE_S, Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.events import Events
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.entry import Entry
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.settlements import journal
from ratelimit_ext.settlements.journal import (
    CELL,
    SUFFIX,
    Journal,
    JournalFile,
    journal_directory,
    storage_address,
)
from tests.servers import eventually, standalone
from tests.settlements.test_queue import DAY_US, LEASE_S, SLOTS, Bench

HERE = "redis://here/0"
ELSEWHERE = "redis://elsewhere/0"


class DiskBench(Bench):
    """A bench on Redis, and the directory of its processes' files."""

    def __init__(self, client: redis.Redis, directory: Path) -> None:
        super().__init__(RedisEngine(client, redis.RedisError))
        self.directory = directory


class Process:
    """A queue with a journal, as one process has it. It has no thread."""

    def __init__(self, bench: DiskBench, storage: str = HERE, **words: Any) -> None:
        clock = bench.clock
        self.queue = bench.new_queue(epoch=lambda: clock.now_s, **words)
        self.engine = bench.engine
        self.journal = Journal(bench.directory, storage)
        self.events = Events()
        self.queue.keep(self.engine, self.journal, events=self.events)

    def send(self, changes: list[Any]) -> None:
        self.queue.send(self.engine, changes, lease_s=LEASE_S)

    def die(self) -> None:
        """As after SIGKILL: the system unlocks its files, and nothing else happens."""
        self.journal.forget()
        self.queue._waiting.clear()

    def start(self) -> int:
        """Take over what is left; returns how many batches there are."""
        self.queue.take_over()
        return len(self.queue)


@pytest.fixture
def bench(redis_client: redis.Redis, tmp_path: Path) -> DiskBench:
    return DiskBench(redis_client, tmp_path / "instance" / "settlements")


@pytest.fixture(autouse=True)
def default_directory(monkeypatch: pytest.MonkeyPatch, no_file_of_an_earlier_test: None) -> None:
    """The applications of these tests have instance paths of their own."""
    monkeypatch.setattr(journal, "DEFAULT_DIRECTORY", "settlements")


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SUFFIX}"))


def lines(path: Path) -> list[bytes]:
    """What is in the file: its head, and what is to be sent."""
    with path.open("rb") as opened:
        return [text for _, text in JournalFile(path, opened.fileno()).read()]


def in_cells(*texts: bytes) -> bytes:
    return b"".join([text + bytes(-len(text) % CELL) for text in texts])


def left_by_a_dead_process(bench: DiskBench, calls: int = 1) -> None:
    process = Process(bench)
    bench.engine.is_away = True
    for _ in range(calls):
        process.send(bench.changes())
    process.die()
    bench.engine.is_away = False


def test_the_next_process_sends_what_a_dead_one_left(
    bench: DiskBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Settlement, slot and refund; then no file is left."""
    left_by_a_dead_process(bench)
    assert bench.left() == (600, 1, 9)
    following = Process(bench)
    assert following.start() == 1
    assert following.queue.send_waiting() == 0
    assert bench.left() == (850, 2, 10)
    assert files(bench.directory) == []
    assert "Sending 1 settlements of an earlier process" in caplog.text


def test_there_is_no_file_while_the_storage_answers(bench: DiskBench) -> None:
    """Not even a bench.directory. After an outage the file is gone, too."""
    process = Process(bench)
    process.send(bench.changes())
    assert not bench.directory.exists()
    bench.engine.is_away = True
    for _ in range(2):
        process.send(bench.changes())
    assert len(files(bench.directory)) == 1
    bench.engine.is_away = False
    assert process.queue.send_waiting() == 0
    assert list(bench.directory.iterdir()) == []


def test_the_end_of_a_process_leaves_only_files_of_what_waits(bench: DiskBench) -> None:
    """That of its calls, which are over, is not left for a next process to look at."""
    process, hold = Process(bench), Hold(1, DAY_US)
    process.queue.begin(process.engine, hold, [Charge(SLOTS, "S:{a}")])
    process.queue.end(process.engine, hold)
    assert len(files(bench.directory)) == 1
    process.queue.close(0)
    assert files(bench.directory) == []


def test_files_are_private(bench: DiskBench) -> None:
    """They name callers."""
    left_by_a_dead_process(bench)
    (file,) = files(bench.directory)
    assert (bench.directory.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


def test_the_file_of_a_living_process_is_left_alone(bench: DiskBench) -> None:
    """After a reload, old workers finish their calls beside new ones."""
    old, new = Process(bench), Process(bench)
    bench.engine.is_away = True
    old.send(bench.changes())
    assert new.start() == 0
    assert new.journal.has_others()  # it looks again, also without a request
    old.die()
    assert new.start() == 1


def test_a_living_process_without_settlements_is_not_watched(bench: DiskBench) -> None:
    """Its calls in flight are no reason, before and after an outage."""
    old, new = Process(bench), Process(bench)
    old.queue.begin(old.engine, Hold(1, 1), [Charge(SLOTS, "S:{a}")])
    assert not new.journal.has_others()
    bench.engine.is_away = True
    old.send(bench.changes())
    assert new.journal.has_others()
    bench.engine.is_away = False
    assert old.queue.send_waiting() == 0
    assert len(files(bench.directory)) == 1
    assert not new.journal.has_others()


def test_one_of_many_starting_processes_takes_a_file(bench: DiskBench) -> None:
    """Eight start at once: every batch is taken once."""
    for _ in range(20):
        left_by_a_dead_process(bench)
    processes = [Process(bench) for _ in range(8)]
    together = threading.Barrier(len(processes))

    def start(process: Process) -> None:
        together.wait(60)
        process.start()

    with ThreadPoolExecutor(len(processes)) as pool:
        list(pool.map(start, processes))
    assert sum(len(process.queue) for process in processes) == 20


def test_a_file_that_was_removed_meanwhile_is_not_taken(bench: DiskBench) -> None:
    """It was opened before its owner removed it, and locked afterwards."""
    left_by_a_dead_process(bench)
    (path,) = files(bench.directory)
    opened = os.open(path, os.O_RDWR)
    path.unlink()
    path.symlink_to(f"/proc/self/fd/{opened}")
    assert JournalFile.claim(path) is None
    os.close(opened)


def test_a_process_may_die_again_before_it_has_sent_all(bench: DiskBench) -> None:
    """The file stays as it is; what was sent changes nothing the second time."""
    left_by_a_dead_process(bench, calls=2)
    second = Process(bench)
    assert second.start() == 2
    second.queue._waiting[0].entry.send(second.engine)
    second.die()
    third = Process(bench)
    assert third.start() == 2
    assert third.queue.send_waiting() == 0
    assert bench.left() == (700, 2, 10)


def test_a_lost_reply_applies_nothing_twice_after_a_restart(bench: DiskBench) -> None:
    """The marker survives with the changes."""
    first, _running = bench.changes(), bench.changes()
    dying = Process(bench)
    bench.engine.loses_replies = True
    dying.send(first)
    assert bench.left() == (450, 1, 9)
    dying.die()
    bench.engine.loses_replies = False
    following = Process(bench)
    assert following.start() == 1
    assert following.queue.send_waiting() == 0
    assert bench.left() == (450, 1, 9)


def test_deadlines_are_of_the_calendar(bench: DiskBench, caplog: pytest.LogCaptureFixture) -> None:
    """A process that starts too late drops what it finds, with its amounts."""
    left_by_a_dead_process(bench)
    bench.clock.forward(LEASE_S + KEPT_AFTER_LEASE_S)
    late = Process(bench)
    outcomes: list[str] = []
    late.events.add(lambda event: outcomes.append(event.outcome))
    assert late.start() == 1
    assert late.queue.send_waiting() == 0
    assert late.queue.lost == {"tokens": 150, "calls": 1, "requests": 1}
    assert outcomes == ["lost"]
    assert "T:{a} actual 150 tokens" in caplog.text
    assert files(bench.directory) == []
    assert bench.left()[0] == 600


def test_a_clock_that_was_set_back_prolongs_nothing(bench: DiskBench) -> None:
    """A change is sent for its lease and ten minutes at most, for as long as its marker lives."""
    left_by_a_dead_process(bench)
    bench.clock.forward(-3600)
    following = Process(bench)
    following.start()
    bench.engine.is_away = True
    bench.clock.forward(LEASE_S + KEPT_AFTER_LEASE_S - 1)
    assert following.queue.send_waiting() == 1
    bench.clock.forward(1)
    assert following.queue.send_waiting() == 0


def test_another_storage_gets_nothing(bench: DiskBench, caplog: pytest.LogCaptureFixture) -> None:
    """The log names both, once; the file stays for a start with its own storage."""
    left_by_a_dead_process(bench)
    (path,) = files(bench.directory)
    caplog.clear()
    moved = Process(bench, ELSEWHERE)
    assert [moved.start(), moved.start()] == [0, 0]
    (record,) = caplog.records
    for named in (str(path), HERE, ELSEWHERE):
        assert named in record.getMessage()
    assert Process(bench).start() == 1


def test_what_another_storage_can_no_longer_take_is_counted_as_lost(bench: DiskBench) -> None:
    """The file does not stay for ever."""
    left_by_a_dead_process(bench)
    bench.clock.forward(LEASE_S + KEPT_AFTER_LEASE_S)
    moved = Process(bench, ELSEWHERE)
    assert moved.start() == 1
    bench.engine.calls = 0
    moved.queue.send_waiting()
    assert (bench.engine.calls, files(bench.directory)) == (0, [])
    assert moved.queue.lost["tokens"] == 150


DAMAGES = {
    "torn": lambda line: line[: len(line) // 2],
    "no json": lambda _: b"\1\xff\n",
    "another value": lambda _: b"[1]\n",
    "deep": lambda _: b"[" * 100_000 + b"\n",
    "no end": lambda line: line.replace(b'"until":1', b'"until":NaN,"no":1'),
    "no number": lambda line: line.replace(b",150]", b',"150"]'),
    "no key": lambda line: line.replace(b'"key":"T:{a}"', b'"key":7'),
    "endless marker": lambda line: line.replace(b'"marker_us":', b'"marker_us":1' + b"0" * 400),
    "unknown verb": lambda line: line.replace(b'"settle"', b'"forgive"'),
    "unknown strategy": lambda line: line.replace(b'"concurrency"', b'"luck"'),
    "unknown field": lambda line: line.replace(b'"amount"', b'"amounts"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_costs_no_other_and_is_kept(
    bench: DiskBench, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """One line of the log says where; the file is kept under another name."""
    left_by_a_dead_process(bench, calls=2)
    (path,) = files(bench.directory)
    head, first, second = lines(path)
    damaged = DAMAGES[damage](first)
    assert damaged != first
    content = in_cells(head, damaged, second)
    path.write_bytes(content)
    caplog.clear()
    following = Process(bench)
    assert following.start() == 1
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.getMessage().startswith(f"1 of 2 settlements in {path} are unreadable")
    assert following.queue.send_waiting() == 0
    (kept,) = bench.directory.iterdir()
    assert (kept.suffix, kept.read_bytes()) == (".damaged", content)
    assert Process(bench).start() == 0


@pytest.mark.parametrize(
    "text", [b"", b"hello\n", b"[1]\n", b'{"settlements": 2, "storage": "redis://here/0"}\n{}\n']
)
def test_an_unknown_file_is_left_where_it_is(
    bench: DiskBench, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    """A later release may have written it. The log says so once."""
    bench.directory.mkdir(parents=True)
    path = bench.directory / f"1-2{SUFFIX}"
    path.write_bytes(text)
    process = Process(bench)
    assert [process.start(), process.start()] == [0, 0]
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert path.read_bytes() == text
    assert not process.journal.has_others()


def test_a_file_of_any_size_is_not_read(
    bench: DiskBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it would take the memory of the process."""
    left_by_a_dead_process(bench)
    monkeypatch.setattr(journal, "MOST_BYTES", 100)
    assert Process(bench).start() == 0
    assert "bytes" in caplog.text


def test_a_file_system_without_locks_costs_no_descriptors(
    bench: DiskBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there stays, and is reported."""
    left_by_a_dead_process(bench)
    (path,) = files(bench.directory)

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(journal.fcntl, "flock", flock)
    for _ in range(2):
        with pytest.raises(OSError, match="No locks"):
            JournalFile.claim(path)
    descriptors = Path("/proc/self/fd").iterdir()
    assert path.resolve() not in [each.resolve() for each in descriptors]


def test_a_file_that_cannot_be_opened_now_is_tried_again(
    bench: DiskBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process may have no descriptor left for a moment; that is logged once."""
    left_by_a_dead_process(bench)
    following = Process(bench)

    def no_descriptor(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(journal.os, "open", no_descriptor)
        assert (following.start(), following.start()) == (0, 0)
    assert following.start() == 1
    assert caplog.text.count("Too many open files") == 1


def test_a_file_has_room_for_what_waits_at_once(bench: DiskBench) -> None:
    """It does not grow with the outage: what is sent or lost leaves its cell to others."""
    process = Process(bench, most_waiting=4)
    changes = bench.changes()
    bench.engine.is_away = True
    for _ in range(10):
        process.send(changes)
    (path,) = files(bench.directory)
    assert (len(process.queue), len(lines(path))) == (4, 5)
    assert path.stat().st_size <= 6 * CELL
    assert process.queue.lost == {"tokens": 6 * 150, "calls": 6, "requests": 6}


def test_a_long_line_has_several_cells(bench: DiskBench) -> None:
    """Also beside others, and in cells that another has left."""
    process = Process(bench)
    bench.engine.is_away = True
    long = [Charge(Limit(9, DAY_US), f"K:{{{number}{'x' * 900}}}") for number in range(9)]
    verdicts = [Verdict(charge, True, 0, 0, 0, 0) for charge in long]
    corrections = [Change.adjust(verdict, -1) for verdict in verdicts]
    for changes in (bench_changes := bench.changes()), corrections, bench_changes, corrections:
        process.send(changes)
    process.queue._drop(1, "test")
    process.send(corrections)
    process.queue._drop(3, "test")
    process.die()
    (path,) = files(bench.directory)
    assert path.stat().st_size <= (1 + 2 * 1 + 2 * 4) * CELL
    following = Process(bench)
    assert following.start() == 3
    sent = [len(batch.entry.changes) for batch in following.queue._waiting.values()]
    assert sorted(sent) == [3, 3, 9]
    bench.engine.is_away = False
    assert following.queue.send_waiting() == 0
    assert files(bench.directory) == []


def test_taking_over_leaves_room_for_own_settlements(bench: DiskBench) -> None:
    """Half of the queue; the rest stays for others, or for later."""
    for _ in range(3):
        left_by_a_dead_process(bench, calls=2)
    process = Process(bench, most_waiting=4)
    assert process.start() == 4
    assert process.journal.has_others()
    assert process.queue.send_waiting() == 0
    assert process.start() == 2
    assert process.queue.lost == {}


def test_a_directory_that_cannot_be_written_is_logged_once(
    bench: DiskBench, caplog: pytest.LogCaptureFixture
) -> None:
    """The queue works without it."""
    bench.directory.parent.mkdir(parents=True)
    bench.directory.write_text("a file")
    process = Process(bench)
    bench.engine.is_away = True
    for _ in range(2):
        process.send(bench.changes())
    assert caplog.text.count(f"cannot write to {bench.directory}") == 1
    bench.engine.is_away = False
    assert process.queue.send_waiting() == 0
    assert bench.left() == (700, 2, 10)


def test_a_full_disk_leaves_no_half_line(bench: DiskBench) -> None:
    """What is in the file stays readable."""
    process = Process(bench)
    bench.engine.is_away = True
    changes = bench.changes()
    process.send(changes)
    (path,) = files(bench.directory)
    before = lines(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * CELL + 50, hard))
    try:
        process.send(changes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lines(path) == before
    process.send(changes)
    assert len(lines(path)) == 3
    assert len(process.queue) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_its_parents_files(bench: DiskBench) -> None:
    """Else they would stay locked as long as the child lives."""
    process = Process(bench)
    bench.engine.is_away = True
    process.send(bench.changes())
    reads, writes = os.pipe()
    waits, ends = os.pipe()
    child = os.fork()
    if child == 0:
        process.queue.forget()
        os.write(writes, b"1")
        os.close(ends)
        os.read(waits, 1)
        os._exit(0)
    os.read(reads, 1)
    process.die()
    assert Process(bench).start() == 1
    for descriptor in (ends, waits, reads, writes):
        os.close(descriptor)
    os.waitpid(child, 0)


LIMITS = [
    Limit(100, 60_000_000),
    Limit(5, 1_000_000, "token-bucket", burst=10, name="é ☃"),
    Limit(10**12, 2**48, "sliding-window", unit="usd", mode="shadow"),
    Limit(1, 86_400_000_000, "fixed-window", anchor="day", timezone="Europe/Berlin"),
    Limit(4, 60_000_000, "concurrency", unit="calls"),
    Limit(7, 60_000_000, "surge", multiple=3, name="surge"),
    Limit(100, 60_000_000, keep=(("chat", 20), ("batch", 5))),
]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_a_line_is_read_as_it_was_written(limit: Limit) -> None:
    """All that engines read of a change."""
    charge = Charge(limit, "K:{ä\n\0}", 2**50)
    verdict = Verdict(charge, True, 0, 0, 0, 2**52)
    changes = [
        Change.settle(verdict._replace(receipt=None), Hold(2**48 - 1, 10**9), 0),
        Change.settle(verdict._replace(receipt=None), Hold(2**48 - 1, 10**9), 0, unseen=True),
        Change.release(charge, Hold(2**48 - 1, 10**9)),
        Change.release(charge, Hold(2**48 - 1, 10**9), undone=True),
        Change.adjust(verdict, -(2**50)),
        Change.adjust(verdict._replace(receipt=None), 5),
        Change.resume(charge, Hold(7, 10**9), 5, 3)._replace(expiry_us=2**52),
    ]
    line = Entry(changes, "K:once:1", 10**11, 1_800_000_000.125)
    encoded = line.encode()
    assert encoded.count(b"\n") == 1
    read = [change._replace(receipt=None) for change in changes]
    assert Entry.decode(encoded) == line._replace(changes=read)
    assert Entry.decode(line._replace(marker=None).encode()).marker is None


def test_equal_limits_are_read_as_one_object(bench: DiskBench) -> None:
    """Engines prepare a limit by its identity."""
    line = Entry(bench.changes(), None, 1, 1.0).encode()
    first, second = Entry.decode(line).changes[0], Entry.decode(line).changes[0]
    assert first.charge.limit is second.charge.limit


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("redis://user:p%40ss@host:6379/1", "redis://host:6379/1"),
        ("redis://:p@ss@host:6379?db=3&password=x", "redis://host:6379?db=3"),
        ("redis+unix:///run/redis.sock", "redis+unix:///run/redis.sock"),
        ("redis+sentinel://:pw@a:1,b:2/mymaster", "redis+sentinel://a:1,b:2/mymaster"),
    ],
)
def test_an_address_has_no_secrets(uri: str, address: str) -> None:
    """A changed password is no other storage."""
    assert storage_address(uri) == address


def test_the_directory_is_configurable(tmp_path: Path) -> None:
    """Relative to the instance path; none for an empty string."""
    instance = str(tmp_path)
    assert journal_directory({}, instance) == tmp_path / "settlements"
    own = {"RATELIMIT_SETTLEMENTS_DIR": "own"}
    assert journal_directory(own, instance) == tmp_path / "own"
    assert journal_directory({"RATELIMIT_SETTLEMENTS_DIR": Path("/a")}, instance) == Path("/a")
    assert journal_directory({"RATELIMIT_SETTLEMENTS_DIR": ""}, instance) is None
    with pytest.raises(ConfigurationError, match="RATELIMIT_SETTLEMENTS_DIR: found 5"):
        journal_directory({"RATELIMIT_SETTLEMENTS_DIR": 5}, instance)


# -- an application, its storage and its processes --------------------------------------------

SERVES = """
import flask, os, signal, sys
from ratelimit_ext import Limiter
uri, instance, storage, end = sys.argv[1:]
app = flask.Flask("shop", instance_path=instance)
limiter = Limiter(lambda: "ada", app=app, storage_uri=uri, storage_options={"socket_timeout": 1})
@app.get("/")
@limiter.limit("5 usd/day", cost=lambda: "0.5", name="budget")
@limiter.limit("2 in flight", name="slots")
def view():
    os.kill(int(storage), signal.SIGKILL)
    limiter.settle(usd="0.125")
    return "ok"
assert app.test_client().get("/").status_code == 200
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def shop(uri: str, instance: Path) -> tuple[flask.Flask, Limiter]:
    """The same application, without the outage."""
    app = flask.Flask("shop", instance_path=str(instance))
    limiter = Limiter(lambda: "ada", app=app, storage_uri=uri)
    budget = limiter.limit("5 usd/day", cost=lambda: "0.5", name="budget")
    slots = limiter.limit("2 in flight", name="slots")
    app.add_url_rule("/", "view", budget(slots(lambda: "ok")))
    return app, limiter


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_a_charge_survives_its_storage_and_its_process(
    tmp_path: Path, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The storage is killed during a call, and comes back with its data after the process has
    ended: the next one charges the call and frees its slot, before any request."""
    with standalone("--appendonly", "yes", "--appendfsync", "always") as server:
        words = [server.uri, str(tmp_path), str(server.pid), end]
        done = subprocess.run(
            [sys.executable, "-c", SERVES, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == (0 if end == "exit" else -signal.SIGKILL), done.stderr
        if end == "exit":
            assert f"1 settlements are left in {tmp_path / 'settlements'}" in done.stderr
        server.process.wait(60)
        (path,) = files(tmp_path / "settlements")
        head, *others = lines(path)
        assert json.loads(head) == {"settlements": 1, "storage": server.uri}
        assert len(others) == 1
        server.relaunch()
        app, limiter = shop(server.uri, tmp_path)
        eventually(lambda: not files(tmp_path / "settlements"))
        with app.test_request_context("/"):
            slots, budget = limiter.current.peek("view")
        assert (slots.remaining, budget.remaining) == (2, Decimal("4.875"))
        assert limiter.operators.lost_settlements() == {}
