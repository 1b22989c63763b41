"""gunicorn's settings, with a first worker that gets a stop signal while it hands over a
request."""

import os
import runpy
import signal
from pathlib import Path
from typing import Any

ours = runpy.run_path(str(Path(__file__).resolve().parents[3] / "gunicorn.conf.py"))
globals().update({name: value for name, value in ours.items() if not name.startswith("_")})


def post_worker_init(worker: Any) -> None:
    ours["post_worker_init"](worker)
    submit = worker.tpool.submit

    def told_meanwhile(conn: Any) -> None:
        os.kill(worker.pid, signal.SIGQUIT)
        submit(conn)

    if worker.age == 1:
        worker.tpool.submit = told_meanwhile
