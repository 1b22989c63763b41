"""gunicorn's master: workers that leave do not count, and it does not wait for them.

After a HUP, gunicorn's own master waits for the old workers as long as graceful_timeout, and does
nothing else meanwhile: it replaces no worker that dies, ends none that hangs, and hears no signal.
Our calls take minutes. Nor would it replace a worker for as long as an old one has calls, as it
counts both.

gunicorn's master loads this file by its path (see gunicorn.conf.py): it imports nothing of chatapp.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakSet

# Workers begin in the order of their age, and do not all import at the same moment.
BETWEEN_STARTS_S: Final = 0.1


class _WouldWaitError(Exception):
    """Leaves gunicorn's reload where it has started the new workers and would end the old ones."""


def install(server: Any) -> None:
    """Have this master manage its workers so."""
    #: Workers that it has told to end.
    server.leaving = WeakSet()
    server.is_reloading = False
    server.manage_workers = partial(_manage_workers, server)
    server.reload = partial(_reload, server, server.reload)


def _manage_workers(server: Any) -> None:
    """Start workers that are missing, and have the oldest end that are too many."""
    if server.is_reloading:
        raise _WouldWaitError
    serving = sorted(_serving(server), key=lambda found: found[1].age)
    for _ in range(server.num_workers - len(serving)):
        server.spawn_worker()
        time.sleep(BETWEEN_STARTS_S)
    _dismiss(server, serving[: max(0, len(serving) - server.num_workers)])


def _reload(server: Any, gunicorns: Callable[[], None]) -> None:
    """Start new workers, and have the old ones end after their calls."""
    old = _serving(server)
    server.is_reloading = True
    try:
        gunicorns()
    except _WouldWaitError:
        pass
    finally:
        server.is_reloading = False
    _dismiss(server, old)
    server.manage_workers()


def _serving(server: Any) -> list[tuple[int, Any]]:
    return [found for found in server.WORKERS.items() if found[1] not in server.leaving]


def _dismiss(server: Any, workers: list[tuple[int, Any]]) -> None:
    for pid, worker in workers:
        server.leaving.add(worker)
        server.kill_worker(pid, signal.SIGTERM)
