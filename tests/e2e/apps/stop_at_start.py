"""gunicorn's settings, with a first worker that gets a stop signal before it has handlers."""

import os
import runpy
import signal
from pathlib import Path
from typing import Any

ours = runpy.run_path(str(Path(__file__).resolve().parents[3] / "gunicorn.conf.py"))
globals().update({name: value for name, value in ours.items() if not name.startswith("_")})


def post_fork(server: Any, worker: Any) -> None:
    ours["post_fork"](server, worker)
    if worker.age == 1:
        os.kill(worker.pid, signal.SIGTERM)
