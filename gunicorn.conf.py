"""gunicorn's settings for `gunicorn wsgi:app`, and the embedded storage if none is configured.

Environment variables: PORT, GUNICORN_HOST, WEB_CONCURRENCY, GUNICORN_THREADS,
GUNICORN_REQUEST_TIMEOUT_S, FORWARDED_ALLOW_IPS, RATELIMIT_STORAGE_URI (a Redis of your own),
RATELIMIT_EMBEDDED_DIR (state of the embedded server; default instance/ratelimit),
GUNICORN_VALID_FILES (the last valid policy and providers file, for workers and commands; default
instance/valid-files). gunicorn's command line overrides them.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
# Installed, this file is in the package itself; see chatapp/__main__.py.
PACKAGE = HERE if (HERE / "server").is_dir() else HERE / "chatapp"
STORAGE = "RATELIMIT_STORAGE_URI"
WORKERS = "RATELIMIT_WORKERS"
WAITING = "RATELIMIT_WAITING_MAX"
# See chatapp/server/valid_files.py.
VALID_FILES = "GUNICORN_VALID_FILES"
HAS_SERVED = "GUNICORN_HAS_SERVED"
# prometheus-client's own variable.
METRICS = "PROMETHEUS_MULTIPROC_DIR"
PROVIDER_TIMEOUT = "CHATAPP_PROVIDER_TIMEOUT_S"
REQUEST_TIMEOUT = "GUNICORN_REQUEST_TIMEOUT_S"


def load(path: Path) -> ModuleType:
    """A module by its path.

    Importing its package would load the application into the master, and the fork would copy it to
    every worker: a HUP would keep the old code.
    """
    spec = importlib.util.spec_from_file_location(f"gunicorn_{path.stem}", path)
    if spec is None or spec.loader is None:
        sys.exit(f"gunicorn.conf.py: cannot load {path}")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def number(name: str, default: int, most: int) -> int:
    """Return the whole number in that variable, or the default; an invalid one ends the process."""
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= most):
        sys.exit(
            f"gunicorn.conf.py: {name}: found {text!r}; allowed: a whole number from 1 to {most}."
        )
    return int(text)


def seconds(name: str, default: int) -> float | None:
    """Return the seconds in that variable, or the default: up to an hour, None if invalid."""
    try:
        found_s = float(os.environ.get(name) or default)
    except ValueError:
        return None
    return found_s if 0 < found_s <= 3600 else None


def request_timeout_s() -> float:
    if (timeout_s := seconds(REQUEST_TIMEOUT, 10)) is None:
        sys.exit(
            f"gunicorn.conf.py: {REQUEST_TIMEOUT}: found {os.environ[REQUEST_TIMEOUT]!r}; allowed: "
            "a number above 0, up to 3600."
        )
    return timeout_s


def provider_timeout_s() -> float:
    """The configured timeout, or the default if it is invalid, which the application reports."""
    return seconds(PROVIDER_TIMEOUT, 600) or 600


call_worker = load(PACKAGE / "server" / "gunicorn_worker.py")
master = load(PACKAGE / "server" / "gunicorn_master.py")
machine = load(PACKAGE / "server" / "machine.py")

# Reachable from this machine only by default, because a chat endpoint spends money.
bind = f"{os.environ.get('GUNICORN_HOST') or '127.0.0.1'}:{number('PORT', 8000, 65_535)}"

# Threads, because a call waits for its provider for minutes without using the CPU. gunicorn's own
# gthread gives threads to slow and idle connections; see chatapp/server/gunicorn_worker.py.
worker_class = call_worker.CallWorker
# Several processes, so that the GIL, a crash or a restart never stops the whole service. A worker
# takes 220 MB, mostly for the SDKs and a tokenizer.
workers = number("WEB_CONCURRENCY", 2, 10_000)
# Calls in flight per worker: as many as the machine carries. Further calls are refused (503), and
# some of these if the worker is late all the same. Each worker has a few more threads for health
# checks.
enough_threads, why_enough = machine.this_machine().threads(workers)
threads = number("GUNICORN_THREADS", enough_threads, 10_000)
# Connections per worker, including idle ones. Above that, the one that has been idle the longest is
# closed, so that idle clients do not lock out new ones.
worker_connections = threads + 500
# Seconds for a request's head, and for its body, which gets 1 s more per 50 kB.
call_worker.CallWorker.patience_s = request_timeout_s()
# Seconds for which a client may read nothing of its answer; it may not read more slowly than 5 kB a
# second either. It would hold a thread forever, while the lease of its call, which each sent chunk
# renews, expires.
call_worker.CallWorker.unread_s = min(60, provider_timeout_s())

# A worker without a heartbeat for this time is killed. The heartbeat comes from its main thread, so
# this limits a hung process, not a call.
timeout = 120
# At a reload or shutdown, calls in flight may finish: the longest silence of a provider, and a
# margin. A call that is cut off is billed all the same. A worker without calls stops within 2 s.
graceful_timeout = int(provider_timeout_s() + 30)
# Longer than the 60 s after which common proxies drop an idle connection: if this server dropped it
# first, a request in transit would become a 502. An idle connection holds no thread.
keepalive = 75

# Against memory leaks, a worker is replaced after this many calls (health checks do not count): one
# worker at a time, and only when it has no call in flight.
max_requests = 50_000
max_requests_jitter = 5_000

# Each worker imports the application after the fork: workers share no connection, thread or lock,
# and a HUP loads new code.
preload_app = False
# The heartbeat is a file's timestamp.
worker_tmp_dir = call_worker.MEMORY

# Proxies that may report https. The application determines the client's address itself, by
# CHATAPP_TRUSTED_HOPS.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS") or "127.0.0.1,::1"
# What a worker holds of a request before the application and its limits see it.
limit_request_line = 4094
limit_request_fields = 64
# Twice gunicorn's default. A token of another service, sent here by mistake, can have 10 kB: the
# application answers 401 in the client's format, gunicorn would answer 431 in HTML. All 64 fields
# are 1 MB per thread, less than a body.
limit_request_field_size = 16_380
# `X_Forwarded_For` would have the same WSGI key as `X-Forwarded-For`.
header_map = "drop"
# No header may set SCRIPT_NAME or PATH_INFO: gunicorn fails on some values.
forwarder_headers = ""
# Its path is per user, so two applications would share it. Signals are enough.
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Before any fork: start the embedded server if no storage is configured."""
    if not issubclass(server.cfg.worker_class, call_worker.CallWorker):
        sys.exit(
            "gunicorn.conf.py: chatapp cannot run in the worker class "
            f"{server.cfg.worker_class_str}; it has its own, with threads. Omit --worker-class."
        )
    master.install(server)
    machine.raise_files(server.cfg.threads)
    is_default = server.cfg.threads == enough_threads
    server.log.info(
        "%s threads in each of %s workers%s: %s",
        *(server.cfg.threads, server.cfg.workers),
        *("" if is_default else f", as set. The default is {enough_threads}", why_enough),
    )
    keep_valid_files(server)
    share_metrics(server)
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
            "The embedded storage runs as the user who starts gunicorn. Omit --user, or set "
            f"{STORAGE}."
        )
    try:
        # A master started by USR2 takes over the old master's server, and must not start a second.
        if not (server.master_pid and embedded.join()):
            embedded.start()
    except embedded_server.EmbeddedServerError as error:
        sys.exit(f"gunicorn.conf.py: {error}")
    os.environ[STORAGE] = embedded.uri
    # Kept on the arbiter, because a HUP executes this file again.
    server.embedded = embedded
    server.log.info("Storage: embedded server, %s", embedded.uri)


def valid_files() -> Path:
    return Path(os.environ.get(VALID_FILES) or HERE / "instance" / "valid-files")


def share_metrics(server: Any) -> None:
    """Give all workers one directory for their figures; a new start begins with none."""
    if not os.environ.get("CHATAPP_METRICS_TOKEN") or os.environ.get(METRICS):
        return
    directory = valid_files().with_name("metrics")
    if not server.master_pid:  # a master started by USR2 shares them with the old one
        shutil.rmtree(directory, ignore_errors=True)
    try:
        make_private(server, directory)
    except OSError as error:
        sys.exit(
            f"gunicorn.conf.py: {directory} cannot be made: {error.strerror}. Set {METRICS} to a "
            "directory for the workers' figures."
        )
    os.environ[METRICS] = str(directory)


def keep_valid_files(server: Any) -> None:
    """Give the workers a directory for the last valid files."""
    directory = valid_files()
    try:
        make_private(server, directory)
    except OSError as error:
        server.log.warning(
            "gunicorn.conf.py: %s cannot be made: %s. If the policy gets a mistake, no worker can "
            "start until it is corrected. Set %s to a directory for the last valid one.",
            *(directory, error.strerror, VALID_FILES),
        )
    os.environ[VALID_FILES] = str(directory)


def make_private(server: Any, directory: Path) -> None:
    """Make a directory that the workers alone may read and write, unless it exists."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(directory, server.cfg.uid, server.cfg.gid)


def post_fork(server: Any, worker: Any) -> None:
    """A worker that hangs after its master's death does not keep the embedded server running."""
    if embedded := getattr(server, "embedded", None):
        embedded.follow()
    os.environ["WEB_CONCURRENCY"] = str(server.num_workers)
    if not os.environ.get(WORKERS):  # set if several gunicorns share a storage
        os.environ[WORKERS] = str(server.num_workers)
    os.environ.setdefault(WAITING, str(max(1, worker.cfg.threads // 4)))
    os.environ[HAS_SERVED] = "1" if master.has_served(server) else ""
    limit_unread_answers(worker)
    worker.signals_of_master = server.SIG_QUEUE
    signal.pthread_sigmask(signal.SIG_UNBLOCK, master.STOP_SIGNALS)


def post_worker_init(worker: Any) -> None:
    """Deliver stop signals that arrived before the worker had its handlers. Without this, gunicorn
    would wait graceful_timeout for the worker."""
    # Until then, the master's handlers put a signal into the worker's copy of the master's queue,
    # which the worker does not read.
    while True:
        try:
            number = worker.signals_of_master.get_nowait()
        except queue.Empty:
            return
        if number in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
            os.kill(worker.pid, number)


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's
    """Remove the free threads of a stopped worker, to which the others would hand calls over, and
    its gauges, which are no longer true."""
    worker.free_threads.publish(worker.cell, None)
    if directory := os.environ.get(METRICS):
        for file in Path(directory).glob(f"gauge_live*_{worker.pid}.db"):
            file.unlink(missing_ok=True)


def limit_unread_answers(worker: Any) -> None:
    """Disconnect a client that has vanished: it acknowledges nothing of an answer, which fits into
    the socket's buffer. Accepted connections inherit this from the listener. Linux only."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(worker.unread_s * 1000))
    for listener in worker.sockets:
        if listener.sock.family != socket.AF_UNIX:
            listener.sock.setsockopt(*option)


def on_reload(server: Any) -> None:
    """The embedded server keeps running; it is started again if its supervisor was killed."""
    if embedded := getattr(server, "embedded", None):
        try:
            embedded.start()
        except Exception as error:  # noqa: BLE001 - the workers decide without it meanwhile
            server.log.error("gunicorn.conf.py: %s", error)


def on_exit(server: Any) -> None:
    """Stop the embedded server, or leave it to the other master of a USR2 upgrade."""
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
