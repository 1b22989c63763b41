"""Callers that charge an engine as fast as they can, each in a thread, and what came of it."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine
from tests import servers

ROOMY = Limit(10**9, 86_400_000_000, "fixed-window", name="roomy")


class Caller:
    """A thread that charges its buckets, one request after the other."""

    def __init__(self, engine: Engine, *keys: str) -> None:
        self._engine = engine
        self.keys = keys
        self.admitted = 0
        #: When requests failed, and when they were admitted, by the monotonic clock.
        self.failures: list[float] = []
        self.admissions: list[float] = []
        self.errors: set[str] = set()
        self.longest_s = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ends.is_set():
            began = time.monotonic()
            try:
                admitted = self._engine.admit([Charge(ROOMY, key) for key in self.keys]).admitted
            except StorageUnavailable as error:
                self.failures.append(time.monotonic())
                self.errors.add(str(error))
                time.sleep(0.01)
            else:
                assert admitted
                self.admitted += 1
                self.admissions.append(time.monotonic())
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    def after(self, instant: float) -> float | None:
        """When the first request after the last failure since then was admitted."""
        last = max([each for each in self.failures if each > instant], default=instant)
        return next((each for each in self.admissions if each > last), None)


def used(engine: Engine, key: str) -> int:
    return ROOMY.amount - engine.admit([Charge(ROOMY, key, 0)]).verdicts[0].remaining


@contextmanager
def load(engine: Engine, *subjects: tuple[str, ...]) -> Iterator[list[Caller]]:
    with ExitStack() as stack:
        callers = [stack.enter_context(Caller(engine, *keys)) for keys in subjects]
        servers.eventually(lambda: all(caller.admitted > 50 for caller in callers))
        yield callers


def report(line: str) -> None:
    """Print a figure, with ``pytest -s``."""
    sys.stdout.write(f"\n{line}\n")
