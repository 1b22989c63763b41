"""Many clients at once, some of them slow or silent on purpose, at a real gunicorn."""

import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import resource
import select
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from chatapp import POLICY_FILE
from chatapp.accounts.store import Accounts
from chatapp.database import migration
from chatapp.database.connection import Database
from tests.chatapp.upstream_server import Stream, UpstreamServer, Wait, openai_chunks
from tests.gunicorn_master import Master, gunicorn
from tests.servers import Server, alive, eventually

HEALTH = "/healthz"
PROBES = 24
ASKED = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "hi"}], "stream": True}
OFFLINE = {"message": "hi", "model": "offline"}
HALF_A_HEAD = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: app"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Master]]:
    """Starts chatapp under gunicorn."""

    def start(**options: Any) -> contextlib.AbstractContextManager[Master]:
        return gunicorn("wsgi:app", tmp_path, **options)

    return start


Start = Callable[..., contextlib.AbstractContextManager[Master]]


def keys(tmp_path: Path, count: int) -> list[str]:
    """The keys of that many users, on the plan team, in the database that `gunicorn` gives."""
    database = Database(f"sqlite:///{tmp_path / 'chatapp.db'}")
    migration.upgrade(database)
    accounts = Accounts(database)
    made = [
        accounts.create_key(f"user{n}", plan="team", default_plan="starter") for n in range(count)
    ]
    database.close()
    return [key.text for key in made]


def serving(master: Master) -> int:
    """The number of workers that have begun to serve."""
    return master.log.count("Worker is ready")


def begun(master: Master, key: str | None = None) -> http.client.HTTPResponse:
    """The answer of a stream, still unread."""
    headers = {"x-api-key": key} if key else {}
    return master.begin("/v1/chat/completions", ASKED, headers=headers).getresponse()


class Pulse:
    """Probes the health of a server continually."""

    def __init__(self, master: Master, path: str = HEALTH) -> None:
        self._master = master
        self._path = path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.statuses: Counter[int] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def await_answers(self) -> None:
        """Wait for so many that each worker has given some."""
        eventually(lambda: self.statuses.total() >= PROBES)

    def _run(self) -> None:
        while not self._end.wait(0.05):
            self.statuses[self._master.request(self._path).status] += 1


def test_streams_block_neither_each_other_nor_the_health_check(
    start: Start, provider: UpstreamServer, tmp_path: Path
) -> None:
    """60 streams at the default settings: all get their first byte before one of them ends, and
    health checks are answered meanwhile."""
    *users, first = keys(tmp_path, 9)
    pieces = openai_chunks()
    with start(**provider.variables) as master:
        eventually(lambda: serving(master) == 2)
        for _ in range(4):  # each worker has made its clients
            begun(master, first).read()
        provider.script(*[Stream([*pieces[:2], Wait(), *pieces[2:]])] * 60)
        with (
            Pulse(master) as pulse,
            Pulse(master, "/readyz") as ready,
            ThreadPoolExecutor(60) as pool,
        ):
            streams = list(pool.map(lambda n: begun(master, users[n % 8]), range(60)))
            assert [stream.status for stream in streams] == [200] * 60
            assert all(stream.readline() for stream in streams)
            pulse.await_answers()
            ready.await_answers()
            provider.go_on()
            for stream in streams:
                assert b"[DONE]" in stream.read()
    assert set(pulse.statuses) == set(ready.statuses) == {200}


def test_pages_are_answered_while_calls_occupy_all_threads(
    start: Start, provider: UpstreamServer, tmp_path: Path
) -> None:
    """Operators and users see what happens while further calls are refused."""
    (key,) = keys(tmp_path, 1)
    pieces = openai_chunks()
    held = Stream([*pieces[:2], Wait(), *pieces[2:]])
    settings = {"GUNICORN_THREADS": "2", "CHATAPP_ADMIN_TOKEN": "an admin token of some length"}
    with start(**provider.variables, **settings, workers=1) as master:
        provider.script(held, held)
        streams = [begun(master, key) for _ in range(2)]
        assert all(stream.readline() for stream in streams)
        for path, status in (("/usage", 200), ("/v1/models", 200), ("/admin", 401)):
            found = [master.request(path, headers={"x-api-key": key}).status for _ in range(3)]
            assert found == [status] * 3
        assert begun(master, key).status == 503
        provider.go_on()
        for stream in streams:
            assert b"[DONE]" in stream.read()


@pytest.mark.usefixtures("redis_client")
def test_a_lack_of_file_descriptors_is_no_outage(start: Start, redis_server: Server) -> None:
    """The worker says what it lacks, reads none of its files again, and recovers alone."""
    with start(RATELIMIT_STORAGE_URI=redis_server.uri, workers=1) as master:
        assert master.request("/chat", OFFLINE).status == 200
        (worker,) = master.workers()
        few = len(list(Path(f"/proc/{worker}/fd").iterdir())) + 12
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (few, few))
        with contextlib.ExitStack() as held, ThreadPoolExecutor(12) as pool:
            for _ in range(40):
                address = ("127.0.0.1", master.port)
                held.enter_context(socket.create_connection(address, timeout=15))
            list(pool.map(lambda _: status_or_none(master), range(240)))
        eventually(lambda: status_or_none(master) in {200, 429})
        assert "no file descriptor left" in master.log
        assert "Traceback" not in master.log
        assert ".lua" not in master.log


def status_or_none(master: Master) -> int | None:
    """The status of a call; None if the worker has ended the connection."""
    try:
        return master.request("/chat", OFFLINE).status
    except OSError:
        return None


@contextlib.contextmanager
def unfinished(master: Master) -> Iterator[list[socket.socket]]:
    """96 clients that have sent half a head, 96 half a body, and 320 nothing."""
    half_a_body = HALF_A_HEAD + b"lication/json\r\nContent-Length: 50\r\n\r\n{"
    with contextlib.ExitStack() as held:
        clients = []
        for sent in [HALF_A_HEAD] * 96 + [half_a_body] * 96 + [b""] * 320:
            address = ("127.0.0.1", master.port)
            clients.append(held.enter_context(socket.create_connection(address, timeout=15)))
            clients[-1].sendall(sent)
        yield clients


def test_slow_and_silent_clients_hold_no_thread(start: Start) -> None:
    """Behind many of them every probe and every call is answered, while none is disconnected."""
    with start(GUNICORN_THREADS="4", GUNICORN_REQUEST_TIMEOUT_S="600") as master:
        eventually(lambda: serving(master) == 2)
        with unfinished(master) as clients:
            with Pulse(master) as pulse:
                statuses = [master.request("/chat", OFFLINE).status for _ in range(4)]
                pulse.await_answers()
            assert statuses == [200] * 4
            assert set(pulse.statuses) == {200}
            assert select.select(clients, [], [], 0)[0] == []


def test_slow_and_silent_clients_are_disconnected_at_their_deadlines(start: Start) -> None:
    """Those that have begun a request get a 408."""
    with start(GUNICORN_REQUEST_TIMEOUT_S="1") as master, unfinished(master) as clients:
        last_words = [client.recv(1000) for client in clients]
    assert {words[:12] for words in last_words[:192]} == {b"HTTP/1.1 408"}
    assert set(last_words[192:]) == {b""}


@pytest.mark.parametrize(
    ("framing", "large_status"),
    [
        ("Content-Length: 60000", 200),
        ("Content-Length: 1000000", 200),
        ("Content-Length: 20000000", 503),
        ("Transfer-Encoding: chunked", 503),
    ],
)
def test_slow_bodies_leave_threads_for_others(
    start: Start, framing: str, large_status: int
) -> None:
    """More clients than there are threads send bodies as slowly as they may, in every size and
    framing: every call of others with up to 1 MB is answered. A larger one is refused while a
    quarter of the threads read slow bodies."""
    path = "/v1/chat/completions"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    begun = b'5\r\n{"a":\r\n' if "chunked" in framing else b"{" + b" " * 30_000

    body = json.dumps({**ASKED, "model": "offline", "stream": False}).encode()

    def ask(size: int) -> int:
        with contextlib.closing(master.begin(path, body.ljust(size))) as connection:
            return connection.getresponse().status

    with start(workers=1, GUNICORN_THREADS="8") as master, contextlib.ExitStack() as held:
        for _ in range(24):
            address = ("127.0.0.1", master.port)
            slow = held.enter_context(socket.create_connection(address, timeout=15))
            slow.sendall(f"{head}{framing}\r\n\r\n".encode() + begun)
        with Pulse(master) as pulse:
            assert [ask(size) for size in (10, 10, 200_000, 900_000)] == [200] * 4
            assert ask(1_200_000) == large_status
            pulse.await_answers()
        assert set(pulse.statuses) == {200}


def test_a_call_without_a_thread_is_refused_in_its_providers_format(
    start: Start, provider: UpstreamServer
) -> None:
    """Each stream goes to a worker with a free thread. Without one, a call is refused soon and
    costs nothing, health checks are answered, and calls are accepted again when a stream ends."""
    pieces = openai_chunks()
    provider.script(*[Stream([*pieces[:2], Wait(), *pieces[2:]])] * 2)
    with start(GUNICORN_THREADS="1", **provider.variables) as master:
        eventually(lambda: serving(master) == 2)
        streams = [begun(master) for _ in range(2)]
        assert [stream.status for stream in streams] == [200, 200]
        with Pulse(master) as pulse, ThreadPoolExecutor(12) as pool:
            paths = ["/v1/chat/completions"] * 11 + ["/chat"]
            refused = list(pool.map(lambda path: master.request(path, ASKED), paths))
        assert {answer.status for answer in refused} == {503}
        assert {answer.headers["retry-after"] for answer in refused} == {"2"}
        assert {answer.headers["connection"] for answer in refused} == {"close"}
        assert refused[0].body["error"]["code"] == "server_is_overloaded"
        assert refused[-1].body["code"] == "server_is_overloaded"
        assert "ratelimit" not in refused[0].headers
        assert set(pulse.statuses) == {200}
        provider.go_on()
        for stream in streams:
            stream.read()
        eventually(lambda: master.request("/chat", OFFLINE).status == 200)


@contextlib.contextmanager
def late(process: int) -> Iterator[None]:
    """Let the process run for a tenth of the time only, as on a machine with too much to do."""
    over = threading.Event()

    def pause() -> None:
        while not over.wait(0.05):
            os.kill(process, signal.SIGSTOP)
            over.wait(0.4)
            os.kill(process, signal.SIGCONT)

    thread = threading.Thread(target=pause)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(process, signal.SIGCONT)


def test_a_late_worker_refuses_calls_and_finishes_those_in_flight(
    start: Start, provider: UpstreamServer, tmp_path: Path
) -> None:
    """It has free threads, but its threads wake late. Each further call is refused with a reason
    and a wait, none is lost, no running stream is cut, and afterwards it takes calls again."""
    users, pieces = keys(tmp_path, 10), openai_chunks()
    provider.script(*[Stream([*pieces[:2], Wait(), *pieces[2:]])] * 80)
    with (
        start(workers=1, GUNICORN_THREADS="100", **provider.variables) as master,
        contextlib.ExitStack() as ends,
    ):
        ends.callback(provider.go_on)
        assert "100 threads in each of 1 workers, as set. The default is " in master.log
        streams = [begun(master, users[n % 10]) for n in range(80)]
        assert all(stream.readline() for stream in streams)
        (worker,) = master.workers()
        with late(worker):
            eventually(lambda: "takes 64 calls at once instead of 100" in master.log, within_s=60)
            with ThreadPoolExecutor(12) as pool:
                headers = {"x-api-key": users[0]}
                path = "/v1/chat/completions"
                refused = list(
                    pool.map(lambda _: master.request(path, ASKED, headers=headers), range(24))
                )
            assert master.request(HEALTH).status == 200
        assert Counter(answer.status for answer in refused) == {503: 24}
        assert {answer.headers["retry-after"] for answer in refused} == {"2"}
        (message,) = {answer.body["error"]["message"] for answer in refused}
        assert message.startswith("The server is too busy for more calls than those in flight. ")
        provider.go_on()
        assert all(b"[DONE]" in stream.read() for stream in streams)
        offline = {"x-api-key": users[0]}
        assert master.request("/chat", OFFLINE, headers=offline).status == 200
        eventually(lambda: "takes 100 calls at once again" in master.log, within_s=120)


def test_a_hanging_worker_does_not_delay_clients_of_others(
    start: Start, provider: UpstreamServer
) -> None:
    """It appears to have free threads and accepts nothing. Other workers accept the connections
    left to it while it hangs, and health checks behind a crowd."""
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:2], Wait(), *pieces[2:]]))
    with start(GUNICORN_THREADS="1", **provider.variables) as master:
        eventually(lambda: serving(master) == 2)
        hung, _ = master.workers()
        os.kill(hung, signal.SIGSTOP)
        try:
            stream = begun(master)
            assert stream.status == 200
            crowd = [master.begin("/chat", OFFLINE) for _ in range(20)]
            assert master.request(HEALTH).status == 200
            assert {client.getresponse().status for client in crowd} == {503}
        finally:
            os.kill(hung, signal.SIGCONT)
            provider.go_on()
        assert b"[DONE]" in stream.read()


def test_a_client_gets_100_continue_once(start: Start) -> None:
    """The answer comes next, and no second interim answer before or after it."""
    body = json.dumps(OFFLINE).encode()
    head = HALF_A_HEAD + b"lication/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with (
        start() as master,
        socket.create_connection(("127.0.0.1", master.port), timeout=15) as client,
    ):
        for _ in range(2):
            client.sendall(head.replace(b"Host: x", b"Host: localhost") % len(body))
            assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(body)
            received = client.recv(10_000)
            while not received.rstrip().endswith(b"}"):
                received += client.recv(10_000)
            assert received.startswith(b"HTTP/1.1 200 OK")


def completed(master: Master, body: bytes) -> int:
    """The status of a completion; 503 if the connection was closed without its body."""
    connection = http.client.HTTPConnection("127.0.0.1", master.port, timeout=120)
    with contextlib.closing(connection), contextlib.suppress(ConnectionError):
        connection.request("POST", "/v1/chat/completions", body, JSON)
        return connection.getresponse().status
    return 503


def memory_kb(pid: int, of: str) -> int:
    """What the process has in memory: `VmRSS` now, `VmHWM` at most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    [found] = re.findall(rf"^{of}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found)


@pytest.mark.parametrize(
    ("clients", "items"), [(16, 1_000_000), (200, 260_000)], ids=["4 MB", "1 MB"]
)
def test_a_denied_address_costs_no_memory(
    start: Start, tmp_path: Path, clients: int, items: int
) -> None:
    """Connections with large bodies, from an address over its limit: each gets its 429. No worker
    has read bodies of 4 MB, and those of 1 MB, which are received before, are soon freed."""
    fields = {**ASKED, "model": "offline", "stream": False, "padding": [[]] * items}
    body = json.dumps(fields).encode()
    assert len(body) > 4 * items

    policy = tmp_path / "policy.toml"
    policy.write_text(
        POLICY_FILE.read_text().replace('limit = "120/minute"', 'limit = "20/day"', 1)
    )
    options = {"workers": 1, "RATELIMIT_POLICY_FILE": str(policy)}
    with start(**options) as master, ThreadPoolExecutor(min(clients, 100)) as pool:
        while (
            master.request("/chat", OFFLINE).status != 429 or master.request("/usage").status != 429
        ):
            pass
        [worker] = master.workers()
        before = memory_kb(worker, "VmHWM")
        assert list(pool.map(completed, [master] * clients, [body] * clients)) == [429] * clients
        assert memory_kb(worker, "VmHWM") - before < 100_000


def test_the_memory_of_large_bodies_is_returned(start: Start) -> None:
    """Many bodies of 30 MB from an address whose limit refills: two at once are read, at three
    times their size, and what they took is free afterwards."""
    said = [{"role": "user", "content": "a" * 30 * 1024 * 1024}]
    body = json.dumps({"model": "offline", "messages": said}).encode()

    with start(workers=1) as master, ThreadPoolExecutor(20) as pool:
        [worker] = master.workers()
        before = memory_kb(worker, "VmRSS")
        statuses = Counter(pool.map(completed, [master] * 60, [body] * 60))
        assert statuses.keys() <= {200, 429, 503}
        assert statuses[429] + statuses[200] >= 10
        assert memory_kb(worker, "VmHWM") - before < 250_000
        eventually(lambda: memory_kb(worker, "VmRSS") - before < 60_000)


def test_workers_are_replaced_one_at_a_time(start: Start) -> None:
    """After `max_requests` calls, not counting health checks. Clients that hold connections do not
    delay it, and every call is answered meanwhile."""
    with (
        start(
            GUNICORN_CMD_ARGS="--max-requests 8 --max-requests-jitter 0", RATELIMIT_ENABLED="false"
        ) as master,
        socket.create_connection(("127.0.0.1", master.port)) as held,
    ):
        eventually(lambda: serving(master) == 2)
        held.sendall(HALF_A_HEAD)
        first = set(master.workers())
        assert {master.request(HEALTH).status for _ in range(60)} == {200}
        assert set(master.workers()) == first
        counts = []

        def all_are_new() -> bool:
            assert master.request("/chat", OFFLINE).status == 200
            counts.append(len(master.workers()))
            return len(master.workers()) == 2 and not first & set(master.workers())

        eventually(all_are_new)
        assert min(counts) >= 1
        assert "will be replaced" in master.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_idle_clients_do_not_delay_a_stop(start: Start, number: signal.Signals) -> None:
    """Half a head is no call in flight, whatever graceful_timeout is."""
    with start() as master, contextlib.ExitStack() as held:
        eventually(lambda: serving(master) == 2)
        first = set(master.workers())
        for _ in range(16):
            address = ("127.0.0.1", master.port)
            held.enter_context(socket.create_connection(address)).sendall(HALF_A_HEAD)
        assert master.is_serving()
        master.signal(number)
        eventually(lambda: not any(map(alive, first)))


def test_a_reload_does_not_wait_for_calls(start: Start, provider: UpstreamServer) -> None:
    """While an old worker has a call, the master replaces dead workers and handles HUP and TERM;
    the call ends normally."""
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:2], Wait(), *pieces[2:]]))
    with start(**provider.variables) as master:
        eventually(lambda: serving(master) == 2)
        stream = begun(master)
        assert stream.readline()
        for count in (4, 6):
            master.signal(signal.SIGHUP)
            eventually(lambda n=count: serving(master) == n)
        eventually(lambda: len(master.workers()) == 3)
        new = sorted(master.workers(), key=lambda pid: master.log.index(f"with pid: {pid}"))[1:]
        for pid in new:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: serving(master) == 8)
        assert master.request("/chat", OFFLINE).status == 200
        assert len(master.workers()) == 3
        master.signal(signal.SIGTERM)
        eventually(lambda: "Handling signal: term" in master.log)
        provider.go_on()
        assert b"[DONE]" in stream.read()
        master.process.wait(60)


def test_kept_connections_move_to_a_worker_with_a_free_thread(tmp_path: Path) -> None:
    """Nine of 16 belong to one of two workers with eight threads each. All 16 calls run at once:
    the ninth runs in the other worker, on the same connection, with its whole body."""
    body = random.Random(1).randbytes(300_000)
    with (
        gunicorn("tests.e2e.apps.counter:app", tmp_path, GUNICORN_THREADS="8") as master,
        contextlib.ExitStack() as open_connections,
        ThreadPoolExecutor(16) as pool,
    ):  # fmt: skip

        def ask(
            connection: http.client.HTTPConnection, path: str = "/slow"
        ) -> tuple[int, dict[str, Any]]:
            connection.request("POST", path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

        eventually(lambda: serving(master) == 2)
        by_worker: dict[int, list[http.client.HTTPConnection]] = {}
        least: list[http.client.HTTPConnection] = []
        most = least
        while len(least) < 7 or len(most) < 9:
            connection = http.client.HTTPConnection("127.0.0.1", master.port, timeout=30)
            open_connections.callback(connection.close)
            connection.connect()
            connection.auto_open = 0  # so that one that was closed raises an error
            _, answer = ask(connection, "/")
            by_worker.setdefault(answer["worker"], []).append(connection)
            least, most = sorted([*by_worker.values(), [], []], key=len)[-2:]
        used = least[:7] + most[:9]
        for _ in range(3):
            answers = list(pool.map(ask, used))
            assert [status for status, _ in answers] == [200] * 16
            assert {answer["body"] for _, answer in answers} == {hashlib.sha256(body).hexdigest()}
            assert set(Counter(answer["worker"] for _, answer in answers).values()) == {8}


def test_a_worker_with_calls_at_all_times_is_replaced(tmp_path: Path) -> None:
    """Eight clients send one call after another, each on its connection. A worker that is due hands
    over the calls that it would begin, so that it has none in flight soon, and none is lost."""
    with (
        gunicorn(
            "tests.e2e.apps.counter:app", tmp_path,
            GUNICORN_THREADS="16",
            GUNICORN_CMD_ARGS="--max-requests 12 --max-requests-jitter 0",
        ) as master,
        ThreadPoolExecutor(8) as pool,
    ):  # fmt: skip
        eventually(lambda: serving(master) == 2)
        over = threading.Event()

        def ask() -> Counter[int]:
            statuses = Counter[int]()
            connection = http.client.HTTPConnection("127.0.0.1", master.port, timeout=30)
            with contextlib.closing(connection):
                while not over.is_set():
                    try:
                        connection.request("GET", "/slow")
                        response = connection.getresponse()
                    except (ConnectionError, http.client.RemoteDisconnected):
                        connection.close()  # idle, at a worker that stops
                        continue
                    response.read()
                    statuses[response.status] += 1
            return statuses

        clients = [pool.submit(ask) for _ in range(8)]
        try:
            eventually(lambda: master.log.count("and will be replaced") >= 2, within_s=60)
        finally:
            over.set()
        assert {status for client in clients for status in client.result()} == {200}


def test_a_large_body_moves_to_a_worker_with_a_free_thread(
    tmp_path: Path, redis_server: Server, redis_client: redis.Redis
) -> None:
    """With its connection, and with the part of the body that has not arrived yet."""
    body = random.Random(1).randbytes(3_000_000)
    with (
        gunicorn(
            "tests.e2e.apps.counter:app", tmp_path,
            GUNICORN_THREADS="1", RATELIMIT_STORAGE_URI=redis_server.uri,
        ) as master,
        contextlib.ExitStack() as open_connections,
        ThreadPoolExecutor(1) as pool,
    ):  # fmt: skip

        def ask(connection: http.client.HTTPConnection, path: str, sent: bytes) -> dict[str, Any]:
            connection.request("POST", path, sent)
            response = connection.getresponse()
            assert response.status == 200
            answer: dict[str, Any] = json.loads(response.read())
            return answer

        eventually(lambda: serving(master) == 2)
        by_worker: dict[int, list[http.client.HTTPConnection]] = {}
        while not any(len(connections) > 1 for connections in by_worker.values()):
            connection = http.client.HTTPConnection("127.0.0.1", master.port, timeout=30)
            open_connections.callback(connection.close)
            by_worker.setdefault(ask(connection, "/", b"")["worker"], []).append(connection)
        worker, (first, second, *_) = max(by_worker.items(), key=lambda item: len(item[1]))
        second.auto_open = 0  # so that one that was closed raises an error
        running = pool.submit(ask, first, "/slow", b"")
        eventually(lambda: redis_client.get("slow"))
        answer = ask(second, "/", body)
        assert running.result()["worker"] == worker != answer["worker"]
        assert answer["body"] == hashlib.sha256(body).hexdigest()
