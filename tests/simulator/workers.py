"""Workers of one host: each is a process with an application, its threads and its files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flask import Flask, request

from ratelimit_ext import Limiter
from ratelimit_ext.engine.wake_ups import WakeUps, wake_ups
from ratelimit_ext.settlements.queue import SettlementQueue, settlements
from tests.simulator.files import Descriptors
from tests.simulator.scheduler import Scheduler
from tests.simulator.storage import Network, SimulatedStorage

CALLER, NUMBER = "HTTP_X_CALLER", "HTTP_X_NUMBER"

logging.getLogger("ratelimit_ext").addHandler(logging.NullHandler())


class Worker:
    """``declare`` adds the limits and views to its application."""

    def __init__(
        self,
        name: str,
        scheduler: Scheduler,
        network: Network,
        directory: Path,
        declare: Callable[[Flask, Limiter], object],
        *,
        workers: int,
    ) -> None:
        self.name = name
        self.is_alive = True
        self.descriptors = Descriptors()
        #: What there is once in a process: of each the contents in this one.
        self._singletons: tuple[tuple[Any, Any], ...] = (
            (wake_ups, WakeUps()),
            (
                settlements,
                SettlementQueue(clock=lambda: scheduler.now_s, epoch=lambda: scheduler.now_s),
            ),
        )
        self.is_ready = False
        self._made = network, directory, declare, workers
        scheduler.start(self._begin, owner=self, name=f"the start of {name}")

    def _begin(self) -> None:
        network, directory, declare, workers = self._made
        SimulatedStorage.network = network
        self.app = Flask(self.name)
        self.app.logger.disabled = True
        self.app.testing = True  # an error is raised instead of a 500
        self.app.config |= {
            "RATELIMIT_STORAGE_URI": "simulated://",
            "RATELIMIT_SETTLEMENTS_DIR": str(directory),
            "RATELIMIT_HEADERS_ENABLED": True,
            "RATELIMIT_WAITING_MAX": 50,
            "WEB_CONCURRENCY": workers,
        }
        self.limiter = Limiter(lambda: request.environ[CALLER])
        declare(self.app, self.limiter)
        self.limiter.init_app(self.app)
        self.is_ready = True

    def __repr__(self) -> str:
        return self.name

    def enter(self) -> None:
        for singleton, own in self._singletons:
            singleton.__dict__ = own.__dict__

    @property
    def queue(self) -> SettlementQueue:
        own: SettlementQueue = self._singletons[1][1]
        return own

    def kill(self) -> None:
        """`kill -9`."""
        self.is_alive = self.is_ready = False
        self.descriptors.close()

    def answer(self, path: str, environ: dict[str, Any]) -> tuple[int, dict[str, str]]:
        """Return the status and the headers of a request, when all of it is over."""
        status, headers = [0], dict[str, str]()

        def start(line: str, pairs: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], Any]:
            status[0] = int(line[:3])
            headers.update({name.lower(): value for name, value in pairs})
            return lambda _: None

        body: Iterable[bytes] = self.app.wsgi_app({**ENVIRON, "PATH_INFO": path, **environ}, start)
        try:
            for _ in body:
                pass
        finally:
            getattr(body, "close", lambda: None)()
        return status[0], headers


class _Errors:
    def __init__(self) -> None:
        self.texts = list[str]()

    def write(self, text: str) -> None:
        self.texts.append(text)

    def flush(self) -> None:
        pass


ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input": None,
    "wsgi.errors": _Errors(),
}
