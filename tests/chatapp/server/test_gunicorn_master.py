"""The parts of gunicorn's master that chatapp replaces."""

from __future__ import annotations

import os
import runpy
import signal
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from chatapp.server import gunicorn_master


def test_a_new_worker_does_not_miss_a_stop() -> None:
    """Stop signals that reach a worker right after its fork wait until it has handlers."""

    def spawn() -> int:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return os.getpid()

    blocked: list[set[signal.Signals]] = []
    master = Master(spawn_worker=spawn)
    gunicorn_master.install(master)
    assert master.spawn_worker() == os.getpid()
    assert blocked[0] >= gunicorn_master.STOP_SIGNALS
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & gunicorn_master.STOP_SIGNALS


def test_each_worker_has_a_number_of_its_own() -> None:
    """While the storage is down it says which share of a limit is the worker's: that of a worker
    that has ended is free again, and during a reload old and new workers share them."""
    master = Master(WORKERS={}, num_workers=3)
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


class Master(SimpleNamespace):
    """What is used of gunicorn's master."""

    spawn_worker = kill_worker = reap_workers = manage_workers = reload = staticmethod(int)


class Worker:
    """What the master keeps of a worker."""

    def __init__(self, number: int) -> None:
        self.number = self.age = number


def test_the_figures_of_workers_are_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say what is spent on which model; only the workers' user may read them."""
    conf = runpy.run_path(str(Path(gunicorn_master.__file__).parents[2] / "gunicorn.conf.py"))
    share_metrics = conf["share_metrics"]
    monkeypatch.setitem(share_metrics.__globals__, "HERE", tmp_path)
    monkeypatch.setenv("CHATAPP_METRICS_TOKEN", "a token of some length")
    monkeypatch.setenv(conf["METRICS"], "")  # restored afterwards
    cfg = SimpleNamespace(uid=os.geteuid(), gid=os.getegid())
    share_metrics(SimpleNamespace(master_pid=0, cfg=cfg))
    directory = Path(os.environ[conf["METRICS"]])
    assert directory == tmp_path / "instance" / "metrics"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
