"""Keeps one Valkey server running while any process holds its lifeline. Run as a script.

    python -I -S supervisor.py FOLLOWING DRAIN_S BINARY SOCKET MAXMEMORY

Standard input (the lifeline) and the descriptor FOLLOWING are reading ends of FIFOs. A process that
owns the server holds a writing end of both; a follower (a worker) holds one of FOLLOWING. When the
last owner has ended, by exit or SIGKILL, its pipe hangs up, and the server is stopped once the last
follower has ended too, or after DRAIN_S seconds. Signals do not end the supervisor: SIGTERM to a
control group must not take the storage from workers that still finish their requests.

A process, not a thread of gunicorn's master: PR_SET_PDEATHSIG is tied to the thread that forked,
the master reaps children it does not know, and a master that forks workers should have no threads.
Standard library only: it starts in about 20 ms and uses about 9 MB.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 5.0
HEALTHY_AFTER_S = 10.0
STOP_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1

SETTINGS = {
    "port": "0",  # no TCP: only users of the directory reach it
    "unixsocketperm": "700",
    "daemonize": "no",
    "loglevel": "warning",
    "logfile": "valkey.log",
    # A log of changes, flushed every second: a restart loses nothing, a machine crash at most a
    # second. Snapshots would lose minutes.
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    # After a power failure the last record may be truncated: start without it.
    "aof-load-truncated": "yes",
    # Requests wait at most 100 ms for the storage; a flush during a rewrite may take seconds.
    "no-appendfsync-on-rewrite": "yes",
    # Evicting keys would reset limits: an attacker with enough identities could reset all of them.
    # If memory is full, admit.lua refuses unknown identities and serves known ones. Memory is freed
    # as keys expire, which all of them do.
    "maxmemory-policy": "noeviction",
}


def supervise(command: list[str], *, lifeline: int, following: int, drain_s: float) -> int:
    """Run `command` until `lifeline` hangs up, restarting it if it dies; return an exit status.

    If the first start fails at once (a damaged file, a bad option), return 1: a restart would fail.
    """
    os.set_inheritable(following, False)  # noqa: FBT003 - os gives it no name
    end_with_supervisor = _parent_death_signal()
    wakeups = _wake_on_signals()
    backoff_s, first = FIRST_BACKOFF_S, True
    while True:
        started = time.monotonic()
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            close_fds=False,  # the lock of the data directory is held until both are gone
            preexec_fn=end_with_supervisor,  # noqa: PLW1509 - this process has no threads
        )
        while server.poll() is None:
            if _hung_up(lifeline, wakeups, timeout_s=None):
                os.close(lifeline)  # from now on no process can join
                _hung_up(following, wakeups, timeout_s=drain_s)
                return _stop(server)
        lived_s = time.monotonic() - started
        if first and lived_s < 1.0 and server.returncode > 0:
            return 1
        first = False
        backoff_s = FIRST_BACKOFF_S if lived_s > HEALTHY_AFTER_S else backoff_s
        print(f"server ended with {server.returncode}, restarting in {backoff_s:.2f} s", flush=True)  # noqa: T201 - standard output is the log
        if _hung_up(lifeline, wakeups, timeout_s=backoff_s):
            return 0
        backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)


def _hung_up(lifeline: int, wakeups: int, timeout_s: float | None) -> bool:
    """Wait for a signal (such as a child's end), the time-out, or the lifeline's end; true for the
    last."""
    poller = select.poll()
    poller.register(lifeline, 0)  # POLLHUP is always reported
    poller.register(wakeups, select.POLLIN)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left_ms = None if deadline is None else max(0.0, 1000 * (deadline - time.monotonic()))
        events = dict(poller.poll(left_ms))
        if lifeline in events:
            return True
        if wakeups in events:
            os.read(wakeups, 4096)
        if deadline is None or time.monotonic() >= deadline:
            return False


def _stop(server: subprocess.Popen[bytes]) -> int:
    """SIGTERM lets it write its file; if it hangs, kill it."""
    server.send_signal(signal.SIGCONT)
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    return 0


def _wake_on_signals() -> int:
    """Return a descriptor that becomes readable on SIGCHLD and on the ignored signals."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler, not SIG_IGN: an ignored signal would stay ignored in the server.
        signal.signal(number, lambda *_: None)
    return readable


def _parent_death_signal() -> Callable[[], None] | None:
    """For a child to call before exec, so that it ends with this process; ``None`` if not Linux."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    supervisor = os.getpid()

    def request() -> None:
        # SIGTERM, so that it saves its state.
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(1)  # the supervisor ended between fork and prctl

    return request


if __name__ == "__main__":
    _, following, drain_s, binary, socket_path, maxmemory = sys.argv
    options = {**SETTINGS, "unixsocket": socket_path, "maxmemory": maxmemory}
    command = [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
    sys.exit(supervise(command, lifeline=0, following=int(following), drain_s=float(drain_s)))
