"""The breaker opens when the storage is down, and closes when it serves; the deadline is total."""

import errno
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from limits.storage import storage_from_string

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import StorageFull, StorageUnavailable
from ratelimit_ext.core.events import StorageEvent
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.breaker import Breaker
from ratelimit_ext.engine.engine import Engine, Workers
from ratelimit_ext.engine.outage import OutageEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests import servers
from tests.engine.relay import Relay, whole
from tests.engine.replies import dripping
from tests.strategies.world import DAY

CHARGE = Charge(Limit(1000, DAY), "LIMITS:bucket")
DEADLINE_S = 0.5


class Scripted:
    """An engine that fails as the test says; every call is counted."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.probe_error: Exception | None = None
        self.calls = 0
        self.inside: Callable[[], object] = lambda: None

    def admit(self, charges: Any, **_: Any) -> Decision:
        self.calls += 1
        self.inside()
        if self.error is not None:
            raise self.error
        return Decision(admitted=True, now_us=0, verdicts=())

    def settle(self, *_: Any, **__: Any) -> int:
        self.admit(())
        return 0

    def probe(self) -> int:
        error = self.probe_error or self.error
        if error is not None:
            raise error
        return 10_000_000

    clear = reset = settle


def unavailable(cause: Exception) -> StorageUnavailable:
    error = StorageUnavailable(str(cause))
    error.__cause__ = cause
    return error


REFUSED = redis.ConnectionError("Error 111 connecting")
REFUSED.__cause__ = ConnectionRefusedError()
LATE = redis.TimeoutError("Timeout reading from socket")


@pytest.fixture
def inner() -> Scripted:
    return Scripted()


@pytest.fixture
def breaker(inner: Scripted, monkeypatch: pytest.MonkeyPatch) -> Breaker:
    """Over an engine that fails on purpose, without its thread."""
    monkeypatch.setattr(Breaker, "wake", lambda _: None)
    return Breaker(inner)


def test_what_the_caller_was_handling_is_no_reason(breaker: Breaker, inner: Scripted) -> None:
    """A request that waits because the storage refused a connection asks again later. Then a lost
    reply was taken for a refusal, too: what the storage had charged was not released."""
    inner.error = redis.TimeoutError("Timeout reading from socket")
    try:
        raise REFUSED
    except redis.ConnectionError:
        with pytest.raises(StorageUnavailable) as failure:
            breaker.admit([CHARGE])
    assert failure.value.may_have_charged
    assert not breaker.is_open


def fails(breaker: Breaker) -> None:
    with pytest.raises(StorageUnavailable):
        breaker.admit([CHARGE])


@pytest.mark.parametrize(
    "cause",
    [
        REFUSED,
        redis.ReadOnlyError("You can't write against a read only replica."),
        redis.BusyLoadingError("Redis is loading the dataset in memory"),
        redis.AuthenticationError("invalid username-password pair or user is disabled."),
        redis.exceptions.NoPermissionError("this user has no permissions"),
        redis.exceptions.ClusterDownError("CLUSTERDOWN The cluster is down"),
        redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but"),
        redis.ResponseError("BUSY Redis is busy running a script."),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_what_cannot_serve_opens_it_at_once(
    inner: Scripted, breaker: Breaker, cause: Exception
) -> None:
    """The next calls reach nothing."""
    inner.error = unavailable(cause)
    fails(breaker)
    assert breaker.is_open
    for _ in range(3):
        fails(breaker)
    with pytest.raises(StorageUnavailable):
        breaker.settle([])
    assert inner.calls == 1


@pytest.mark.parametrize(
    "cause",
    [
        redis.exceptions.MaxConnectionsError("Too many connections"),
        redis.ResponseError("WRONGTYPE Operation against a key"),
        redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_a_failure_of_one_call_never_opens_it(
    inner: Scripted, breaker: Breaker, cause: Exception
) -> None:
    """An exhausted pool, or one key that a script fails on."""
    inner.error = unavailable(cause)
    for _ in range(5):
        fails(breaker)
    assert not breaker.is_open


def test_a_lack_of_file_descriptors_is_logged_as_what_it_is(
    inner: Scripted, breaker: Breaker, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and without an outage: the storage is not down."""
    inner.error = redis.ConnectionError("Error 24 connecting to localhost:6379")
    inner.error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    for _ in range(5):
        fails(breaker)
    (record,) = caplog.records
    assert "no file descriptor left" in record.getMessage()
    assert not breaker.is_open


@pytest.mark.parametrize("cause", [LATE, redis.exceptions.MaxConnectionsError("Too many")])
def test_single_requests_without_the_storage_are_logged(
    inner: Scripted, breaker: Breaker, caplog: pytest.LogCaptureFixture, cause: Exception
) -> None:
    """With the reason when that begins, and with their number when the storage decides again."""
    breaker.outage = OutageEngine(breaker, lambda _: "local", Workers(2))
    inner.error = unavailable(cause)
    fails(breaker)
    assert breaker.outage.admit([CHARGE]).admitted
    inner.error = None
    while breaker._look_again() is not None:
        pass
    first, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("The storage did not decide a request")
    assert str(cause) in first
    assert last == "The storage decides again; requests decided without it: local 1"
    breaker.admit([CHARGE])
    assert len(caplog.records) == 2


def test_a_full_server_is_no_failure(inner: Scripted, breaker: Breaker) -> None:
    """Its error passes through."""
    inner.error = StorageFull("bucket")
    for _ in range(5):
        with pytest.raises(StorageFull):
            breaker.admit([CHARGE])
    assert not breaker.is_open


def test_single_failures_are_charged_to_the_storage_at_once(inner: Scripted) -> None:
    """It decides other requests of the caller. A probe would need a connection, too."""
    breaker = Breaker(inner)
    breaker.outage = OutageEngine(breaker, lambda _: "local", Workers(2), wake=breaker.wake)
    no_connection = unavailable(redis.exceptions.MaxConnectionsError("Too many connections"))
    inner.error, inner.probe_error = no_connection, no_connection
    fails(breaker)
    inner.error = None
    for calls in (2, 3):
        assert breaker.outage.admit([CHARGE]).admitted
        servers.eventually(lambda: breaker._thread is None)
        assert (inner.calls, breaker.outage.is_handed_back) == (calls, True)


def test_one_slow_call_does_not_open_it(inner: Scripted, breaker: Breaker) -> None:
    """Nor two with a success between them."""
    for _ in range(3):
        inner.error = unavailable(LATE)
        fails(breaker)
        inner.error = None
        breaker.admit([CHARGE])
    assert not breaker.is_open


def test_two_in_a_row_do(inner: Scripted, breaker: Breaker) -> None:
    """The second began after the first had failed."""
    inner.error = unavailable(LATE)
    fails(breaker)
    assert not breaker.is_open
    fails(breaker)
    assert breaker.is_open


def test_a_pause_that_holds_up_many_calls_does_not_open_it(
    inner: Scripted, breaker: Breaker
) -> None:
    """All of them began before the first failed."""
    inner.error, all_began = unavailable(LATE), threading.Barrier(8)
    inner.inside = all_began.wait
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fails, [breaker] * 8))
    assert inner.calls == 8
    assert not breaker.is_open


def test_an_old_failure_is_forgotten(
    inner: Scripted, breaker: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slow calls within an hour, and none in between, are no outage."""
    inner.error = unavailable(LATE)
    fails(breaker)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    fails(breaker)
    assert not breaker.is_open


def test_a_long_deadline_is_not_the_time_in_which_a_failure_is_forgotten(
    inner: Scripted, breaker: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server hangs, and each call waits ten seconds for it: the second opens the breaker."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def wait() -> None:
        nonlocal now
        now += 10

    inner.inside, inner.error = wait, unavailable(LATE)
    fails(breaker)
    assert not breaker.is_open
    fails(breaker)
    assert breaker.is_open


def test_a_failure_of_what_was_decided_here_does_not_end_the_thread(
    inner: Scripted, breaker: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, the next outage would never end."""

    looks = iter([True])

    def fails_at_the_second_look(_: object) -> bool:
        for each in looks:
            return each
        raise sqlite3.OperationalError("disk I/O error")

    breaker.outage = OutageEngine(breaker, lambda _: "local", Workers())
    breaker._thread = threading.current_thread()
    with monkeypatch.context() as patched:
        patched.setattr(OutageEngine, "is_handed_back", property(fails_at_the_second_look))
        assert breaker._look_again() is not None
    assert breaker._look_again() is None
    assert breaker._thread is None


# -- real servers ----------------------------------------------------------------------------------


class Guarded:
    """A breaker over a server, and what it and the worker did."""

    def __init__(self, uri: str, **options: Any) -> None:
        options = {"socket_timeout": DEADLINE_S, "socket_connect_timeout": DEADLINE_S, **options}
        storage: Any = storage_from_string(uri, **options)
        self.client = storage.get_connection()
        self.inner = RedisEngine(self.client, storage.base_exceptions)
        self.breaker = Breaker(self.inner)
        self.events: list[StorageEvent] = []
        self.breaker.changed = self.events.append
        self.outage = OutageEngine(
            self.breaker, lambda _: "local", Workers(2), wake=self.breaker.wake
        )
        self.breaker.outage = self.outage

    def admit(self) -> Decision:
        """As the extension does."""
        engine: Engine = self.outage if self.breaker.is_open else self.breaker
        try:
            return engine.admit([CHARGE])
        except StorageUnavailable:
            return self.outage.admit([CHARGE])

    def opens(self) -> None:
        servers.eventually(lambda: self.admit().degraded and self.breaker.is_open)

    def closes(self) -> None:
        servers.eventually(lambda: not self.breaker.is_open)
        servers.eventually(lambda: self.outage.is_handed_back)


def kill(server: servers.Server) -> Callable[[], object]:
    server.kill()

    def repair() -> None:
        server.relaunch()

    return repair


def stop(server: servers.Server) -> Callable[[], object]:
    os.kill(server.pid, signal.SIGSTOP)
    return lambda: os.kill(server.pid, signal.SIGCONT)


def make_replica(server: servers.Server) -> Callable[[], object]:
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)
    return lambda: server.client().replicaof("NO", "ONE")


def change_password(server: servers.Server) -> Callable[[], object]:
    with server.client() as client:
        client.config_set("requirepass", "secret")
        client.execute_command("CLIENT", "KILL", "SKIPME", "yes", "TYPE", "normal")
    return lambda: server.client(password="secret").config_set("requirepass", "")


@pytest.mark.parametrize("fault", [kill, stop, make_replica, change_password])
def test_it_opens_and_closes(fault: Callable[[servers.Server], Callable[[], object]]) -> None:
    """The worker decides meanwhile, and the storage is charged once it serves."""
    with servers.standalone() as server:
        guarded = Guarded(server.uri)
        assert guarded.admit().degraded == ""
        repair = fault(server)
        guarded.opens()
        assert guarded.admit().verdicts[0].remaining < 500
        repair()
        guarded.closes()
        assert [event.is_down for event in guarded.events] == [True, False]
        charged = 1000 - guarded.admit().verdicts[0].remaining
        known = 1 + sum(guarded.outage.decided.values()) + (fault is not kill)
        # A call that hung may have been charged, too.
        assert known <= charged <= known + 3 * (fault is stop)
        servers.eventually(lambda: guarded.breaker._thread is None)


@pytest.mark.parametrize("handshake", [{}, {"protocol": 2, "lib_name": None, "lib_version": None}])
@pytest.mark.parametrize(
    "call", [lambda engine: engine.admit([CHARGE]), RedisEngine.probe], ids=["admit", "probe"]
)
def test_a_reply_that_drips_ends_with_the_deadline(
    redis_server: servers.Server, call: Callable[[RedisEngine], object], handshake: dict[str, Any]
) -> None:
    """Each byte comes in time, all of them would take longer; also those of the handshake, and
    those of the breaker's probe."""
    with Relay(redis_server.port) as relay:
        relay.deliver = dripping(relay, DEADLINE_S / 5)
        guarded = Guarded(f"redis://127.0.0.1:{relay.port}", **handshake)
        received: list[int] = []
        recv_into = socket.socket.recv_into
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                socket.socket,
                "recv_into",
                lambda *words: received.append(recv_into(*words)) or received[-1],
            )
            with pytest.raises(StorageUnavailable, match="Timeout"):
                call(guarded.inner)
        assert 0 < len(received) < 50
        relay.deliver = whole


def test_a_forked_child_begins_closed() -> None:
    """It has no thread that could close it; it finds out for itself."""
    guarded = Guarded("redis://127.0.0.1:1")
    guarded.opens()
    child = os.fork()
    if child == 0:
        started_closed = not guarded.breaker.is_open and guarded.outage.is_handed_back
        guarded.opens()
        os._exit(0 if started_closed and guarded.breaker._thread is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert guarded.breaker.is_open
