"""Keeps one Valkey server running for as long as anyone holds its lifeline. Run as a script.

    python -I -S supervisor.py FOLLOWING DRAIN_S BINARY SOCKET MAXMEMORY

Standard input, the lifeline, is the reading end of a FIFO, and so is the descriptor FOLLOWING. Who
owns the server holds a writing end of both, who follows an owner (a worker) one of FOLLOWING. When
the last owner is gone, by exit or by SIGKILL, the kernel says so; the server is stopped as soon as
the last follower is gone too, or after DRAIN_S seconds. Signals do not end the supervisor: SIGTERM
to a whole control group must not take the storage from workers that still finish their requests.

It is a process and not a thread of gunicorn's master because PR_SET_PDEATHSIG is tied to the thread
that forked, because the master reaps children it does not know, and because a master that forks
workers should have no threads. Standard library only, and nothing of this package: it starts in
some 20 ms and costs some 9 MB.
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
    "port": "0",  # no TCP: who may not enter the directory cannot reach it
    "unixsocketperm": "700",
    "daemonize": "no",
    "loglevel": "warning",
    "logfile": "valkey.log",
    # A log of changes, flushed to the disk every second: a restart forgets nothing, a machine that
    # goes down at most a second. Snapshots would forget minutes.
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    # A machine that lost power leaves half a record: start without it.
    "aof-load-truncated": "yes",
    # Requests have 100 ms for the storage; a flush that waits for a rewrite may take seconds.
    "no-appendfsync-on-rewrite": "yes",
    # Evicting a key would forget what someone has used: an attacker who brings enough identities
    # would reset all limits, unseen. If memory is full, admit.lua refuses unknown identities
    # and goes on with known ones. Expired keys free memory as always: all of ours expire.
    "maxmemory-policy": "noeviction",
}


def supervise(command: list[str], *, lifeline: int, following: int, drain_s: float) -> int:
    """Run `command` until `lifeline` hangs up, again and again if it dies; return an exit status.

    A server that fails at once on its first start would fail again (a damaged file, a bad option):
    its status is returned, so that who waits for it hears of it.
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
                os.close(lifeline)  # from now on nobody can join
                _hung_up(following, wakeups, timeout_s=drain_s)
                return _stop(server)
        lived_s = time.monotonic() - started
        if first and lived_s < 1.0 and server.returncode > 0:
            return 1
        first = False
        backoff_s = FIRST_BACKOFF_S if lived_s > HEALTHY_AFTER_S else backoff_s
        print(f"server ended with {server.returncode}, again in {backoff_s:.2f} s", flush=True)  # noqa: T201 - standard output is the log
        if _hung_up(lifeline, wakeups, timeout_s=backoff_s):
            return 0
        backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)


def _hung_up(lifeline: int, wakeups: int, timeout_s: float | None) -> bool:
    """Wait for a signal (a child's end is one), the time-out, or the lifeline's end: is it that?"""
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
    """SIGTERM lets it write its file to the disk; what then still hangs is killed."""
    server.send_signal(signal.SIGCONT)
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    return 0


def _wake_on_signals() -> int:
    """A descriptor that becomes readable on SIGCHLD and on the signals that are not obeyed."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler, not SIG_IGN: an ignored signal would stay ignored in the server.
        signal.signal(number, lambda *_: None)
    return readable


def _parent_death_signal() -> Callable[[], None] | None:
    """What a child calls before exec so that the kernel ends it with us; None but on Linux."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    supervisor = os.getpid()

    def request() -> None:
        # SIGTERM, so that even then it saves its state.
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(1)  # the supervisor went between fork and prctl

    return request


if __name__ == "__main__":
    _, following, drain_s, binary, socket_path, maxmemory = sys.argv
    options = {**SETTINGS, "unixsocket": socket_path, "maxmemory": maxmemory}
    command = [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
    sys.exit(supervise(command, lifeline=0, following=int(following), drain_s=float(drain_s)))
