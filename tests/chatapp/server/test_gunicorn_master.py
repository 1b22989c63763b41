"""The parts of gunicorn's master that chatapp replaces."""

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


class Master(SimpleNamespace):
    """What is used of gunicorn's master."""

    spawn_worker = kill_worker = reap_workers = manage_workers = reload = staticmethod(int)


class Worker:
    """What the master keeps of a worker."""

    def __init__(self, number: int) -> None:
        self.age = number


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
