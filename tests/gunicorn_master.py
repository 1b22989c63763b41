"""A real gunicorn, run as the README runs it, on a free port."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import alive, eventually, free_port

# What an application reads; the tests say it, not the shell they run in.
OURS = ("DATABASE_URL", "RATELIMIT_", "CHATAPP_", "OPENAI_", "ANTHROPIC_", "GUNICORN_")
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Answer:
    """A response: status, headers in lower case, and the body, parsed if it is JSON."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Master:
    """A running master; `pid` is its process, `log_path` what it and its workers print."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def request(
        self, path: str, payload: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One GET, or a POST of `payload` as JSON, on a new connection."""
        with contextlib.closing(self.begin(path, payload, headers=headers)) as connection:
            response = connection.getresponse()
            raw = response.read()
            received = {name.lower(): value for name, value in response.getheaders()}
        is_json = "json" in received.get("content-type", "")
        return Answer(response.status, received, json.loads(raw) if is_json else raw)

    def begin(
        self, path: str, payload: object = None, *, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPConnection:
        """The connection of a request that has been sent, as by `request`; bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if payload is None:
            connection.request("GET", path, headers=dict(headers or {}))
        else:
            raw = payload if isinstance(payload, bytes) else json.dumps(payload)
            sent = {**(headers or {}), "Content-Type": "application/json"}
            connection.request("POST", path, raw, sent)
        return connection

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def is_serving(self) -> bool:
        """Whether a worker answers; fails at once if the master has ended."""
        assert self.process.poll() is None, self.log
        try:
            return self.request("/healthz").status > 0
        except OSError:
            return False

    def reload(self) -> None:
        """Send HUP, and wait until new workers serve alone."""
        old = self.workers()
        self.signal(signal.SIGHUP)
        self.await_successors(old)

    def await_successors(self, old: list[int]) -> None:
        """Wait until as many new workers serve, and none of the old."""
        eventually(lambda: not any(map(alive, old)))
        eventually(lambda: len(self.workers()) == len(old))
        eventually(self.is_serving)

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        booted = {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log)}
        return [int(pid) for pid in children if int(pid) in booted and alive(int(pid))]


@contextlib.contextmanager
def gunicorn(app: str, folder: Path, *, workers: int = 2, **environment: str) -> Iterator[Master]:
    """Run `gunicorn APP` with gunicorn.conf.py until it serves; stop it afterwards. The folder has
    the embedded server's `state`, the `log` and the database `chatapp.db`; `environment` is added
    to the process's."""
    port = free_port()
    variables = {
        "PORT": str(port),
        "WEB_CONCURRENCY": str(workers),
        "RATELIMIT_EMBEDDED_DIR": str(folder / "state"),
        "GUNICORN_VALID_FILES": str(folder / "valid-files"),
        "RATELIMIT_SETTLEMENTS_DIR": str(folder / "settlements"),
        "RATELIMIT_DEADLINE_SECONDS": "5",  # a pause of a busy machine is no outage
        "PYTHONDONTWRITEBYTECODE": "1",  # a test that changes an application wants it read again
        **environment,
    }
    with served(["gunicorn", app], port=port, log=folder / "log", variables=variables) as master:
        yield master


@contextlib.contextmanager
def served(
    command: list[str],
    *,
    port: int,
    log: Path,
    variables: Mapping[str, str],
    directory: Path = ROOT,
    python: str | Path = sys.executable,
) -> Iterator[Master]:
    """Run `python -m COMMAND` in the directory until it serves; stop it afterwards."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [python, "-m", *command],
            cwd=directory,
            env={"DATABASE_URL": f"sqlite:///{log.parent / 'chatapp.db'}", **clean, **variables},
            stdout=output,
            stderr=output,
        )
    master = Master(process, port, log)
    try:
        eventually(master.is_serving)
        yield master
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
