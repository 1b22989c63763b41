"""Script calls on prepared connections."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from hashlib import sha1
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import redis
import valkey
from limits.storage import storage_from_string
from redis._parsers.hiredis import _HiredisParser
from redis.backoff import NoBackoff
from redis.retry import Retry

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import StorageFull, StorageUnavailable
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine import connection
from ratelimit_ext.engine.arguments import Script, composed
from ratelimit_ext.engine.connection import PoolQueue, ScriptConnections, comes_late
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies import strategy_of
from tests import servers
from tests.engine.relay import Relay
from tests.engine.replies import late
from tests.strategies.world import HOUR

SCRIPT = Script(
    text="return {1, 2}",
    sha=sha1(b"return {1, 2}", usedforsecurity=False).hexdigest(),
    library="#!lua name=one_two\nredis.register_function('one_two', function() return {1, 2} end)",
    function="one_two",
)
UNKNOWN = SCRIPT._replace(sha="0" * 40, library="", function="unknown")
CHARGE = Charge(Limit(1000, HOUR), "bucket")


def client_at(uri: str, **options: Any) -> redis.Redis:
    """The client as an application gets it."""
    return storage_from_string(uri, **options).get_connection()


@pytest.fixture
def client(redis_uri: str) -> Iterator[redis.Redis]:
    client = client_at(redis_uri)
    yield client
    client.close()


def remaining(engine: RedisEngine) -> int:
    return engine.admit([CHARGE]).verdicts[0].remaining


def engine_of(client: redis.Redis) -> RedisEngine:
    return RedisEngine(client, redis.RedisError)


def test_a_call_is_one_command(client: redis.Redis, redis_client: redis.Redis) -> None:
    """One FCALL on the same connection each time, without a PING or a SELECT."""
    connections = ScriptConnections(client)
    connections.run(SCRIPT, ["a"], [1])
    redis_client.config_resetstat()
    assert [connections.run(SCRIPT, ["a"], [1, "ü"]) for _ in range(10)] == [[1, 2]] * 10
    counted = {
        name: each["calls"]
        for name, each in redis_client.info("commandstats").items()
        if name != "cmdstat_config|resetstat"
    }
    assert counted == {"cmdstat_fcall": 10}
    assert redis_client.info("stats")["total_connections_received"] == 0


def test_an_unknown_script_keeps_the_connection(
    client: redis.Redis, redis_client: redis.Redis
) -> None:
    """NOSCRIPT is raised as redis-py's error; the engine loads the script and counts once."""
    with pytest.raises(redis.exceptions.NoScriptError):
        ScriptConnections(client).run(UNKNOWN, [], [])
    engine = engine_of(client)
    assert remaining(engine) == 999
    redis_client.script_flush()
    redis_client.function_flush()
    redis_client.config_resetstat()
    assert remaining(engine) == 998
    assert redis_client.info("stats")["total_connections_received"] == 0


def test_functions_that_are_flushed_as_soon_as_they_are_loaded(
    client: redis.Redis, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is made as a script, and counts once."""
    engine = engine_of(client)
    load = engine._connections._load
    redis_client.function_flush()

    def load_and_flush(script: Script) -> bool:
        return load(script) and redis_client.function_flush()

    monkeypatch.setattr(engine._connections, "_load", load_and_flush)
    assert [remaining(engine) for _ in range(3)] == [999, 998, 997]


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("taken", [0, 7])
def test_a_command_that_does_not_fit_is_sent_on(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """The socket takes none of it at once, or a part: the client sends the rest, once."""
    engine = engine_of(client)
    assert remaining(engine) == 999
    monkeypatch.setattr(
        connection, "_written", lambda line, command: os.write(line.fileno(), command[:taken])
    )
    assert [remaining(engine) for _ in range(3)] == [998, 997, 996]


def test_only_the_kernel_ends_the_reads_of_an_idle_connection(redis_uri: str) -> None:
    """A read is one system call. The client gets the connection back as it was, and may read it."""
    client = client_at(redis_uri, socket_timeout=0.2)
    lines = ScriptConnections(client)
    line = lines._take()
    assert line is not None
    usual_s = line.connection.socket_timeout
    assert line.socket.gettimeout() is None
    began = time.monotonic()
    with pytest.raises(BlockingIOError):
        line.socket.recv(1)
    assert usual_s * 0.9 < time.monotonic() - began < usual_s + 1
    assert not line.connection._parser.read_from_socket(0.01, raise_on_timeout=False)
    assert line.socket.gettimeout() == usual_s  # also after such a read
    line.use_clients_timeout()
    client.connection_pool.release(line.connection)
    assert client.ping()
    messages = client.pubsub()  # a wait without a timeout has none of the kernel's
    messages.subscribe("channel")
    assert messages.connection is line.connection
    threading.Timer(2 * usual_s, client_at(redis_uri).publish, ("channel", 1)).start()
    assert [messages.parse_response()[2] for _ in "ab"] == [1, b"1"]
    line.socket.close()
    line.use_clients_timeout()


@pytest.mark.usefixtures("redis_client")
def test_signals_do_not_prolong_a_call(redis_server: servers.Server) -> None:
    """Also on a connection that another thread has used before. Python reads again after each."""
    with Relay(redis_server.port) as relay:
        lines = ScriptConnections(client_at(f"redis://127.0.0.1:{relay.port}", socket_timeout=0.4))
        thread = threading.Thread(target=lines.run, args=(SCRIPT, [], []))
        thread.start()
        thread.join()
        assert lines.run(SCRIPT, [], []) == [1, 2]
        relay.deliver = late(3.0)
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        try:
            began = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                lines.run(SCRIPT, [], [])
            assert time.monotonic() - began < 3
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


GEVENT = """
from gevent import monkey, spawn
monkey.patch_all()
import sys
import redis
from tests.engine.test_connection import SCRIPT, Relay, ScriptConnections, client_at, late
with Relay(int(sys.argv[1])) as relay:
    lines = ScriptConnections(client_at(f"redis://127.0.0.1:{relay.port}", socket_timeout=0.4))
    assert spawn(lines.run, SCRIPT, [], []).get() == [1, 2]
    relay.deliver = late(5.0)
    try:
        spawn(lines.run, SCRIPT, [], []).get()
    except redis.TimeoutError:
        print("in time")
"""


@pytest.mark.usefixtures("redis_client")
def test_a_greenlet_does_not_wait_for_ever(redis_server: servers.Server) -> None:
    """The kernel ends no wait in gevent's loop."""
    command = [sys.executable, "-c", GEVENT, str(redis_server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "in time\n", done.stderr


@pytest.mark.usefixtures("redis_client")
def test_a_reset_in_mid_reply_is_never_sent_again(redis_server: servers.Server) -> None:
    """The call counted once and is an outage; the next one has a new connection."""
    with Relay(redis_server.port) as relay:
        engine = engine_of(client_at(f"redis://127.0.0.1:{relay.port}", socket_timeout=2.0))
        assert remaining(engine) == 999
        relay.drops_replies.set()
        with pytest.raises(StorageUnavailable):
            engine.admit([CHARGE])
        relay.drops_replies.clear()
        assert remaining(engine) == 997


def test_a_restart_between_two_calls_is_no_outage(own_server: servers.Server) -> None:
    """What the server has closed is seen before anything is sent."""
    engine = engine_of(client_at(own_server.uri))
    assert remaining(engine) == 999
    own_server.kill()
    own_server.relaunch()
    assert remaining(engine) == 999
    assert remaining(engine) == 998


def test_a_forked_child_has_connections_of_its_own(client: redis.Redis) -> None:
    """A reply of the parent is never read by the child, nor the reverse."""
    connections = ScriptConnections(client)
    connections.run(SCRIPT, [], [])
    socket = connections._idle[0].socket
    child = os.fork()
    if child == 0:
        good = (
            connections.run(SCRIPT, [], []) == [1, 2] and connections._idle[0].socket is not socket
        )
        os._exit(0 if good else 1)
    assert all(connections.run(SCRIPT, [], []) == [1, 2] for _ in range(50))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connections._idle[0].socket is socket


def test_threads_do_not_share_a_connection(client: redis.Redis) -> None:
    """Each call gets the reply to its own command, and the count is exact."""
    engine = engine_of(client)
    with ThreadPoolExecutor(8) as pool:
        left = list(pool.map(lambda _: remaining(engine), range(400)))
    assert sorted(left) == list(range(600, 1000))


@pytest.mark.parametrize("most", [1, 2, 8])
def test_a_small_pool_keeps_connections_for_others(redis_server: servers.Server, most: int) -> None:
    """At most half of a pool is kept, so that other commands find one."""
    client = client_at(redis_server.uri, max_connections=most)
    connections = ScriptConnections(client)
    at_once = threading.Barrier(most)

    def call(_: int) -> None:
        at_once.wait(60)
        assert connections.run(SCRIPT, [], []) == [1, 2]

    with ThreadPoolExecutor(most) as pool:
        list(pool.map(call, range(most)))
    assert len(connections._idle) <= most // 2
    assert client.ping()


class Subclass(redis.Redis):
    """A client that may do anything."""


# -- a pool without a free connection --------------------------------------------------------------


def pooled(uri: str, kind: str, most: int, timeout_s: float = 20.0) -> Any:
    """A client with at most so many connections: one that scripts go around, and others."""
    if kind == "plain":
        client = client_at(uri, max_connections=most, socket_timeout=timeout_s)
        assert ScriptConnections(client)._usable
        return client
    port = int(uri.rpartition(":")[2])
    options: dict[str, Any] = {"max_connections": most, "socket_timeout": timeout_s, "port": port}
    if kind == "blocking":
        return redis.Redis(connection_pool=redis.BlockingConnectionPool(timeout=0.001, **options))
    if kind == "valkey":
        return valkey.Valkey(**options)
    return redis.Redis(retry=Retry(NoBackoff(), 3), **options)


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "retries", "blocking", "valkey"])
def test_more_threads_than_connections_wait_for_one(
    redis_uri: str, redis_client: redis.Redis, kind: str, most: int
) -> None:
    """16 at once, also while scripts are loaded: the storage decides each call, once."""
    client = pooled(redis_uri, kind, most)
    engine = RedisEngine(client, (redis.RedisError, valkey.ValkeyError))
    at_once = threading.Barrier(16)

    def calls(_: int) -> list[int]:
        at_once.wait(60)
        return [remaining(engine) for _ in range(25)]

    for first in (1000, 600):
        redis_client.function_flush()
        redis_client.script_flush()
        with ThreadPoolExecutor(16) as threads:
            left = [each for own in threads.map(calls, range(16)) for each in own]
        assert sorted(left) == list(range(first - 400, first))
    client.close()


@pytest.mark.parametrize("kind", ["plain", "retries"])
def test_a_connection_that_another_user_of_the_pool_has_is_waited_for(
    redis_uri: str, kind: str
) -> None:
    """At most as long as a call may take: then it fails without a charge. The next call does not
    wait behind it."""
    impatient, patient = [pooled(redis_uri, kind, 1, timeout_s) for timeout_s in (0.05, 20)]
    connections = [client.connection_pool.get_connection() for client in (impatient, patient)]
    with pytest.raises(StorageUnavailable, match="Too many connections"):
        engine_of(impatient).admit([CHARGE])
    impatient.connection_pool.release(connections[0])
    assert remaining(engine_of(impatient)) == 999
    engine = engine_of(patient)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(remaining, engine)
        servers.eventually(lambda: engine._connections._queue.waiting)
        patient.connection_pool.release(connections[1])
        assert call.result() == 998
    impatient.close()
    patient.close()


@pytest.mark.usefixtures("redis_client")
def test_the_wait_for_a_connection_takes_no_time_from_the_call(
    redis_server: servers.Server,
) -> None:
    """A reply takes more than half of the deadline, and two calls share a connection."""
    with Relay(redis_server.port) as relay:
        client = pooled(f"redis://127.0.0.1:{relay.port}", "plain", 1, timeout_s=1.0)
        engine = engine_of(client)
        assert remaining(engine) == 999
        relay.deliver = late(0.6)
        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(remaining, [engine] * 2)) == [997, 998]
        client.close()


def test_a_forked_child_does_not_wait_behind_threads_of_its_parent(client: redis.Redis) -> None:
    """They do not exist there."""
    queue, is_over = PoolQueue(client.connection_pool), threading.Event()

    def call() -> bool:
        if not is_over.is_set():
            raise redis.exceptions.MaxConnectionsError("Too many connections")
        return True

    waiting = threading.Thread(target=queue.run, args=[call, time.monotonic() + 20])
    waiting.start()
    servers.eventually(lambda: queue.waiting)
    child = os.fork()
    if child == 0:
        is_over.set()
        os._exit(0 if queue.run(call, time.monotonic() + 20) and not queue.waiting else 1)
    is_over.set()
    waiting.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"retry": Retry(NoBackoff(), 3)},
        {"single_connection_client": True},
        {"encoding": "latin-1"},
        {"credential_provider": redis.UsernamePasswordCredentialProvider("", "")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_takes_part_in_a_call_is_left_to_the_client(
    redis_server: servers.Server, options: dict[str, Any]
) -> None:
    """Retries, encodings, credentials and subclasses: nothing is sent, and the client is used."""
    client = redis.Redis(port=redis_server.port, **{"retry": Retry(NoBackoff(), 0), **options})
    assert ScriptConnections(client).run(UNKNOWN, [], []) is None
    client = Subclass(port=redis_server.port, retry=Retry(NoBackoff(), 0))
    assert ScriptConnections(client).run(UNKNOWN, [], []) is None


def test_an_earlier_redis_py_is_left_to_the_client(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections cannot say whether they have to be made again: nothing is sent."""
    for name in ("AbstractConnection", "ConnectionInterface"):
        monkeypatch.delattr(f"redis.connection.{name}.should_reconnect")
    assert ScriptConnections(client).run(UNKNOWN, [], []) is None


@pytest.mark.parametrize("method", ["execute_command", "evalsha"])
def test_instrumentation_sees_every_call(
    client: redis.Redis, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Methods may be replaced on the class or on the client, before or after the first call."""
    seen: list[str] = []

    def instrument(owner: Any) -> None:
        original = getattr(owner, method)

        @wraps(original)
        def traced(*arguments: Any, **options: Any) -> Any:
            seen.append(next(each for each in arguments if isinstance(each, str)))
            return original(*arguments, **options)

        monkeypatch.setattr(owner, method, traced)

    engine = engine_of(client)
    engine.admit([CHARGE])
    script = composed("admit", (strategy_of(CHARGE.limit),))
    expected = "EVALSHA" if method == "execute_command" else script.sha
    for owner in (client, redis.Redis):
        instrument(owner)
        engine.admit([CHARGE])
        assert seen[0] == expected
        engine_of(client).admit([CHARGE])
        assert seen.pop() == expected
        monkeypatch.undo()
        seen.clear()


# -- functions, and where they are refused ---------------------------------------------------------


def commands(client: redis.Redis) -> dict[str, int]:
    """How often the server ran what calls and loads scripts; the statistics start over."""
    kinds = ("fcall", "function|load", "evalsha", "eval")
    found = client.info("commandstats")
    client.config_resetstat()
    return {
        kind: count
        for kind in kinds
        if (count := found.get(f"cmdstat_{kind}", {"calls": 0})["calls"])
    }


def test_a_library_is_loaded_once(client: redis.Redis, redis_client: redis.Redis) -> None:
    """By the first engine that misses it, and again after the server has lost it."""
    redis_client.function_flush()
    for left, expected in [(999, {"fcall": 2, "function|load": 1}), (998, {"fcall": 1})]:
        redis_client.config_resetstat()
        assert remaining(engine_of(client)) == left
        assert commands(redis_client) == expected


@pytest.mark.parametrize("rights", ["", "+fcall", "+function|load"])
def test_a_user_without_the_rights_has_evalsha(
    redis_server: servers.Server, redis_client: redis.Redis, rights: str
) -> None:
    """After the first refusal nothing else is tried, and every call counts once."""
    redis_client.function_flush()
    allowed = "+evalsha +eval +time +mget +set +setrange +ping +hello +client|setinfo"
    redis_client.acl_setuser(
        "plain", enabled=True, nopass=True, keys=["*"], commands=[*allowed.split(), *rights.split()]
    )
    try:
        engine = engine_of(client_at(f"redis://plain:-@127.0.0.1:{redis_server.port}"))
        assert remaining(engine) == 999
        commands(redis_client)
        assert [remaining(engine) for _ in range(3)] == [998, 997, 996]
        assert commands(redis_client) == {"evalsha": 3}
    finally:
        redis_client.acl_deluser("plain")


def test_a_server_without_functions_has_evalsha() -> None:
    """Redis before 7, and servers that speak its protocol."""
    with servers.standalone("--rename-command", "FCALL", "") as server:
        engine = engine_of(client_at(server.uri))
        assert [remaining(engine) for _ in range(3)] == [999, 998, 997]
        with server.client() as client:
            assert commands(client)["evalsha"] == 3


def test_a_server_before_redis_7_has_evalsha(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the unknown command between backticks."""
    send = ScriptConnections._call

    def before_7(self: ScriptConnections, *words: object) -> object:
        if words[0] == "FCALL":
            raise redis.ResponseError("unknown command `FCALL`, with args beginning with: `a`, ")
        return send(self, *words)

    monkeypatch.setattr(ScriptConnections, "_call", before_7)
    engine = engine_of(client)
    assert [remaining(engine) for _ in range(2)] == [999, 998]


@pytest.mark.parametrize("loaded", [True, False])
def test_a_full_server_is_asked_by_evalsha(loaded: bool) -> None:
    """It refuses functions altogether, but not scripts, which know what it may still store."""
    with servers.standalone("--maxmemory-policy", "noeviction") as server:
        engine = engine_of(client_at(server.uri))
        with server.client() as client:
            if loaded:
                remaining(engine)
            client.config_set("maxmemory", 1)
            with pytest.raises(StorageFull):
                engine.admit([CHARGE._replace(key="another")])
            assert engine.admit([CHARGE], take=False).admitted
            client.config_set("maxmemory", 0)
            assert remaining(engine) == (998 if loaded else 999)
            commands(client)
            remaining(engine)
            assert commands(client) == {"fcall": 1}


def test_an_error_in_a_function_is_never_sent_again(
    client: redis.Redis, redis_client: redis.Redis
) -> None:
    """It may have charged before it failed."""
    redis_client.lpush("list", "no string")
    redis_client.config_resetstat()
    script = SCRIPT._replace(
        function="fails",
        library="#!lua name=fails\nredis.register_function('fails', function(keys)\n"
        "redis.call('INCR', 'counted') return redis.call('INCR', keys[1]) end)",
    )
    with pytest.raises(redis.ResponseError, match="wrong kind"):
        ScriptConnections(client).run(script, ["list"], [])
    assert redis_client.get("counted") == b"1"
    assert commands(redis_client) == {"fcall": 2, "function|load": 1}


# -- replies that come after the deadline ----------------------------------------------------------


class Clock:
    """The clock of a thread that is delayed when the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.delays_s: Iterator[float] = repeat(0.0)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(connection, "_give_way", self.give_way)
        monkeypatch.setattr(connection._calm, "since", -connection.NEVER)
        monkeypatch.setattr(connection, "LOAD", Path("/nowhere"))

    def give_way(self) -> None:
        self.now_s += next(self.delays_s)


@pytest.mark.parametrize(
    ("comes_s", "delays_s", "is_taken"),
    [
        (0.02, [0.0], False),  # nothing waits here: the storage is late
        (0.03, [0.05, 0.0, 0.0, 0.0, 0.0], True),  # while the thread was waiting for a processor
        (0.3, [0.05] * 100, True),  # threads wait here, and so may the storage
        (2.0, [0.05] * 100, False),  # not for ever
        (0.3, [0.05, 0.0, 0.0, 0.0, 0.0], False),  # no longer
    ],
)
def test_a_late_reply(
    monkeypatch: pytest.MonkeyPatch, comes_s: float, delays_s: list[float], *, is_taken: bool
) -> None:
    """It is waited for as long as this thread is delayed, and a second at most."""
    clock = Clock(monkeypatch)
    clock.delays_s = iter(delays_s)

    def look(timeout_s: float) -> bool:
        clock.now_s += timeout_s
        return clock.now_s >= 100 + comes_s

    assert comes_late(look, 100.0, expected=100.0, since=99.9) is is_taken
    assert clock.now_s < 100 + connection.LATEST_S + 0.1


@pytest.mark.parametrize(
    ("load", "is_taken"),
    [("0.5 0.5 0.5 9999/9999 1\n", True), ("0.5 0.5 0.5 1/9999 1\n", False), ("", False)],
)
def test_a_storage_may_wait_for_a_processor_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: str, *, is_taken: bool
) -> None:
    """This thread is woken in time, but more of this machine want to run than it has processors."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(connection, "LOAD", tmp_path / "loadavg")
    connection.LOAD.write_text(load)

    def look(timeout_s: float) -> bool:
        clock.now_s += timeout_s
        return clock.now_s >= 100.15

    assert comes_late(look, 100.0, expected=100.0, since=99.9) is is_taken


class Starved:
    """A thread that waits for the interpreter at step ``at``: before it connects, sends or reads. A
    reply takes 20 ms by the clock after it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lost_s: float) -> None:
        self.clock, self.steps, self.at = Clock(monkeypatch), 0, -1
        self._lost_s, self._comes_at = lost_s, 0.0
        parser, line = _HiredisParser, redis.Connection
        read, write = parser.read_from_socket, connection._written
        connect, send = line._connect, line.send_packed_command
        never = read.__defaults__[0]

        def late_read(own: Any, timeout: Any = never, raise_on_timeout: bool = True) -> Any:
            self._step()
            wait_s = own._socket_timeout if timeout is never else timeout
            if self.clock.now_s + wait_s < self._comes_at:
                self.clock.now_s += wait_s
                if raise_on_timeout:
                    raise redis.TimeoutError("Timeout reading from socket")
                return False
            self.clock.now_s = max(self.clock.now_s, self._comes_at)
            return read(own, 20, raise_on_timeout)

        def step_before(run: Any) -> Any:
            def stepped(*words: Any, **options: Any) -> Any:
                self._step()
                self._comes_at = self.clock.now_s + 0.02
                return run(*words, **options)

            return stepped

        monkeypatch.setattr(parser, "read_from_socket", late_read)
        monkeypatch.setattr(connection, "_written", step_before(write))
        monkeypatch.setattr(line, "send_packed_command", step_before(send))
        monkeypatch.setattr(line, "_connect", step_before(connect))

    def _step(self) -> None:
        self.clock.now_s += self._lost_s * (self.steps == self.at)
        self.steps += 1


@pytest.mark.parametrize("lost_s", [0.05, 0.085, 0.0995, 0.104, 0.3])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_deadline_passes_while_the_thread_waits_for_the_interpreter(
    redis_uri: str, monkeypatch: pytest.MonkeyPatch, lost_s: float, *, is_first: bool
) -> None:
    """Wherever that is, it is no outage, and the call counts once: in the first call, which
    connects and greets, and in another one. So much is lost at each of the steps in turn."""
    thread = Starved(monkeypatch, lost_s)

    def steps(at: int) -> int:
        """The steps of a call that loses time at one of them."""
        client = pooled(redis_uri, "plain", 2, timeout_s=0.1)
        engine, charge = engine_of(client), CHARGE._replace(key=f"at {at}")
        thread.at = -1
        if not is_first:
            remaining(engine)
        thread.at, thread.steps = at, 0
        assert engine.admit([charge]).verdicts[0].remaining == 999
        client.close()
        return thread.steps

    steps(-1)  # loads the script
    places = range(steps(-2))
    assert is_first == (len(places) > 2)
    for at in places:
        steps(at)


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("kind", ["plain", "retries", "blocking"])
def test_a_starved_worker_takes_the_late_reply(
    redis_server: servers.Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is no outage, and counts once."""
    monkeypatch.setattr(connection, "DELAY_S", -1)  # each look is that of a delayed thread
    with Relay(redis_server.port) as relay:
        own = pooled(f"redis://127.0.0.1:{relay.port}", kind, 2, timeout_s=0.1)
        engine = engine_of(own)
        assert remaining(engine) == 999
        relay.deliver = late(0.3)
        assert [remaining(engine) for _ in range(2)] == [998, 997]
        own.close()
