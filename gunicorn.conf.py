"""gunicorn's settings for `gunicorn wsgi:app`, and the storage that it runs when none is set.

From the environment: PORT, GUNICORN_HOST, WEB_CONCURRENCY, GUNICORN_THREADS,
GUNICORN_REQUEST_TIMEOUT_S, FORWARDED_ALLOW_IPS, RATELIMIT_STORAGE_URI (a Redis of your own),
RATELIMIT_EMBEDDED_DIR (the embedded server's state, instance/ratelimit). gunicorn's own command
line goes before all of them.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
STORAGE = "RATELIMIT_STORAGE_URI"
VALID_POLICY = "GUNICORN_VALID_POLICY"
# The exit status of `chat policy check` for a policy with mistakes.
POLICY_MISTAKES = 1
PROVIDER_TIMEOUT = "CHATAPP_PROVIDER_TIMEOUT_S"


def load(path: Path) -> ModuleType:
    """A module by its path.

    Importing its package would bring the application's code into the master, and through the fork
    into every worker: a HUP would go on with the old one.
    """
    spec = importlib.util.spec_from_file_location(f"gunicorn_{path.stem}", path)
    if spec is None or spec.loader is None:
        sys.exit(f"gunicorn.conf.py: cannot load {path}")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def provider_timeout_s() -> float:
    """What is set, if it can be used. The application says what is wrong with it otherwise."""
    try:
        found = float(os.environ.get(PROVIDER_TIMEOUT) or 600)
    except ValueError:
        return 600
    return found if 0 < found <= 3600 else 600


call_worker = load(HERE / "chatapp" / "gunicorn_worker.py")
master = load(HERE / "chatapp" / "gunicorn_master.py")

# This machine only, until somebody decides otherwise: a chat endpoint spends money.
bind = f"{os.environ.get('GUNICORN_HOST') or '127.0.0.1'}:{os.environ.get('PORT') or 8000}"

# Threads, because a call waits for its provider for minutes and needs no processor meanwhile.
# gunicorn's gthread would let slow clients and silent connections take them: see the module.
worker_class = call_worker.CallWorker
# Several processes, so that Python's lock, a crash or a recycled worker is never the whole service;
# one has 140 MB, most of them the providers' SDKs.
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)
# Calls in flight a worker; with 2 workers 160 of them, in 512 MB. More are refused (503). Each
# worker has a few threads beside, for health checks.
threads = int(os.environ.get("GUNICORN_THREADS") or 80)
# Connections a worker, idle ones included. Beyond that, the one that has waited longest is closed:
# it is not the new one that suffers from those that hold connections and ask nothing.
worker_connections = threads + 500
# How long a request's head may take, and its body, which has 1 s more for each 50 kB.
call_worker.CallWorker.patience_s = float(os.environ.get("GUNICORN_REQUEST_TIMEOUT_S") or 10)

# A worker that gives no sign of life for so long is killed. The signs come from its main thread, so
# that this bounds a process that hangs, not a call; its main thread does nothing that takes longer.
timeout = 120
# At a reload or an end, calls in flight may finish: as long as a provider may be silent, and what
# there is to say after it. What is cut off is paid all the same. Only calls wait so long: without
# any, a worker ends within 2 s, and clients that are slow to ask do not hold it up.
graceful_timeout = int(provider_timeout_s() + 30)
# Longer than the 60 s after which usual proxies drop an idle connection: had we dropped it first,
# a request on its way would be a 502. An idle connection holds no thread.
keepalive = 75

# A leak, ours or a dependency's, ends with its worker: it is replaced after so many calls (health
# checks are none), one worker at a time, and only when it has no call in flight.
max_requests = 50_000
max_requests_jitter = 5_000

# Each worker imports the application after the fork: no connection, thread or lock is shared with
# a sibling, and a HUP takes new code.
preload_app = False
# The sign of life is a file's time stamp; on a disk it could block.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - see above

# Who may say that the client came by https: a proxy on this machine. The client's address is the
# application's business, by a number of trusted hops.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS") or "127.0.0.1,::1"
# Bounds on what a client can make a worker hold before the application sees it, and has limits.
limit_request_line = 4094
limit_request_fields = 64
# Twice gunicorn's own. Another service's token, sent here for a key, can have 10 kB; to that the
# application says 401 in the shape that the client reads, and gunicorn would say 431 in HTML. All
# 64 fields are 1 MB a thread then, which is less than a body.
limit_request_field_size = 16_380
# `X_Forwarded_For` would become the same WSGI key as `X-Forwarded-For`.
header_map = "drop"
# Nor may a header, from whatever peer, be SCRIPT_NAME or PATH_INFO: gunicorn fails on some values.
forwarder_headers = ""
# Its path is one per user, so that two applications would share it; signals do what we need.
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Before any fork: run the embedded server, unless a storage is set, and tell the workers."""
    master.install(server)
    keep_valid_policies(server)
    embedded_server = _load_embedded()
    embedded = embedded_server.EmbeddedServer(
        os.environ.get("RATELIMIT_EMBEDDED_DIR") or HERE / "instance" / "ratelimit",
        drain_s=graceful_timeout + 10,
    )
    # After a HUP, a master that USR2 starts inherits what the old one exported below.
    if os.environ.get(STORAGE) not in {None, "", embedded.uri}:
        return
    if server.cfg.uid != os.geteuid():
        sys.exit(
            f"The embedded storage is for the user who starts gunicorn: no --user, or {STORAGE}"
        )
    try:
        # A master that USR2 started takes the old one's server over; it must not run a second.
        if not (server.master_pid and embedded.join()):
            embedded.start()
    except embedded_server.EmbeddedServerError as error:
        sys.exit(f"gunicorn.conf.py: {error}")
    os.environ[STORAGE] = embedded.uri
    # On the arbiter, because a HUP executes this file anew.
    server.embedded = embedded
    server.log.info("Storage: embedded server, %s", embedded.uri)


def post_fork(server: Any, worker: Any) -> None:
    """A worker uses the server; should it hang after its master's death, it does not keep it."""
    if embedded := getattr(server, "embedded", None):
        embedded.follow()
    end_unread_connections(worker)
    worker.signals_of_master = server.SIG_QUEUE


def post_worker_init(worker: Any) -> None:
    """A worker hears every signal that it must stop, at whatever moment it comes. gunicorn would
    wait graceful_timeout for one that did not."""
    # Until a worker has handlers of its own, the master's puts a signal into the copy of its queue
    # that came with the fork, and that nobody reads.
    while True:
        try:
            number = worker.signals_of_master.get_nowait()
        except queue.Empty:
            return
        if number in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
            os.kill(worker.pid, number)


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's
    """The other workers no longer count on a worker that has ended."""
    worker.board.free(worker.cell)


def end_unread_connections(worker: Any) -> None:
    """A client that takes nothing of its answer for a minute, or as long as a provider may take if
    that is shorter, is gone: it would hold a thread for ever, and its call's lease, which chunks
    that were sent renew, would end meanwhile. Accepted connections inherit this of the listener;
    only Linux has it."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    option = (
        socket.IPPROTO_TCP,
        socket.TCP_USER_TIMEOUT,
        int(min(60, provider_timeout_s()) * 1000),
    )
    for listener in worker.sockets:
        if listener.sock.family != socket.AF_UNIX:
            listener.sock.setsockopt(*option)


def keep_valid_policies(server: Any) -> None:
    """Give the workers a private directory for the last valid policy of this master's life."""
    directory = tempfile.mkdtemp(prefix="valid-policy-")
    os.chown(directory, server.cfg.uid, server.cfg.gid)
    os.environ[VALID_POLICY] = str(Path(directory, "policy.toml"))
    server.valid_policies = directory


def check_policy(server: Any) -> None:
    """Before a reload replaces the workers: log what is wrong with the policy. They start with the
    last valid one then (chatapp/valid_policy.py). In a process of its own, as the master must not
    import the application."""
    command = [
        sys.executable,
        "-m",
        "flask",
        "--app",
        server.app.app_uri,
        "chat",
        "policy",
        "check",
    ]
    environment = {name: value for name, value in os.environ.items() if name != VALID_POLICY}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        server.log.warning("The policy was not checked: %s", error)
        return
    # An application that cannot be imported ends with 1 too, and a trace.
    if done.returncode == POLICY_MISTAKES and done.stderr.startswith("Error: "):
        server.log.error(
            "The policy is invalid; the last valid one stays in use. %s", done.stderr.strip()
        )


def on_reload(server: Any) -> None:
    """At a HUP the server stays as it is; it is started anew if someone killed its supervisor."""
    check_policy(server)
    if embedded := getattr(server, "embedded", None):
        embedded.start()


def on_exit(server: Any) -> None:
    """After the last worker: stop the server, or leave it to the other master of an upgrade."""
    shutil.rmtree(getattr(server, "valid_policies", ""), ignore_errors=True)
    if embedded := getattr(server, "embedded", None):
        if server.reexec_pid or server.master_pid:
            embedded.leave()
        else:
            embedded.stop()


def _load_embedded() -> ModuleType:
    package = importlib.util.find_spec("ratelimit_ext")
    if package is None or not package.submodule_search_locations:
        sys.exit("gunicorn.conf.py: ratelimit_ext is not installed, nor in this directory")
    return load(Path(package.submodule_search_locations[0], "embedded", "server.py"))
