"""The parts of gunicorn's master that chatapp replaces."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

from chatapp import gunicorn_master


def test_a_new_worker_does_not_miss_a_stop() -> None:
    """Stop signals that reach a worker right after its fork wait until it has handlers."""

    def spawn() -> int:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return os.getpid()

    blocked: list[set[signal.Signals]] = []
    master = SimpleNamespace(spawn_worker=spawn, reload=lambda: None)
    gunicorn_master.install(master)
    assert master.spawn_worker() == os.getpid()
    assert blocked[0] >= gunicorn_master.STOP_SIGNALS
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & gunicorn_master.STOP_SIGNALS
