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


def test_each_worker_has_a_number_of_its_own() -> None:
    """While the storage is down it says which share of a limit is the worker's: that of a worker
    that has ended is free again, and during a reload old and new workers share them."""
    master = SimpleNamespace(WORKERS={}, num_workers=3, spawn_worker=int, reload=lambda: None)
    gunicorn_master.install(master)

    def start(pid: int) -> int:
        number = gunicorn_master.free_number(master)
        master.WORKERS[pid] = Worker(number)
        return number

    assert [start(pid) for pid in (1, 2, 3)] == [0, 1, 2]
    del master.WORKERS[2]
    assert start(4) == 1
    assert [start(pid) for pid in (5, 6, 7)] == [0, 1, 2]
    for pid in (1, 3, 4):
        master.stopping.add(master.WORKERS[pid])
    assert start(8) == 0
    master.num_workers = 5
    assert [start(pid) for pid in (9, 10)] == [3, 4]


class Worker:
    """What the master keeps of a worker."""

    def __init__(self, number: int) -> None:
        self.number = number
