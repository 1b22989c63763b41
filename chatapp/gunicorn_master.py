"""gunicorn's master: it neither counts nor waits for workers that are stopping, and stops old ones
only when new ones serve.

After a HUP, gunicorn's own master blocks for up to graceful_timeout until the old workers have
stopped. Meanwhile it replaces no dead worker, kills no hung one and handles no signal. Calls here
take minutes. It also counts stopping workers as serving, and so starts too few. And it stops the
old ones at once: all requests would wait while the new ones import the application.

gunicorn's master loads this file by its path (see gunicorn.conf.py): it imports nothing of chatapp.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakSet

#: A forked Python forgets the signals that arrive before it runs. A worker that is stopped in its
#: first moment would never stop, so these are blocked until `post_fork`.
STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
# Workers do not all import the application at the same moment.
BETWEEN_STARTS_S: Final = 0.1


class _ReloadDoneError(Exception):
    """Leaves gunicorn's reload after it has started the new workers, and before it waits."""


def install(server: Any) -> None:
    """Replace the master's management of workers."""
    #: Workers that have been asked to stop, and those that will be when their successors serve.
    server.stopping = WeakSet()
    server.replaced = WeakSet()
    server.is_reloading = False
    server.spawn_worker = partial(_spawn_worker, server.spawn_worker)
    server.manage_workers = partial(_manage_workers, server)
    server.reload = partial(_reload, server, server.reload)


def free_number(server: Any) -> int:
    """A number below the number of workers that as few serving workers as possible have: none but
    during a reload, when the old workers stop soon."""
    taken = Counter(getattr(worker, "number", None) for _, worker in _serving(server))
    return min(range(max(1, server.num_workers)), key=lambda number: taken[number])


def _spawn_worker(gunicorn_spawn_worker: Callable[[], int]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return gunicorn_spawn_worker()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _manage_workers(server: Any) -> None:
    """Start missing workers, and stop the oldest surplus ones."""
    if server.is_reloading:
        raise _ReloadDoneError
    serving = sorted(_serving(server), key=lambda item: item[1].age)
    for _ in range(server.num_workers - len(serving)):
        server.spawn_worker()
        time.sleep(BETWEEN_STARTS_S)
    _stop(server, serving[: max(0, len(serving) - server.num_workers)])
    # A reload makes a new board, so that this counts new workers only.
    if server.replaced and server.worker_class.board.serving() >= server.num_workers:
        _stop(server, [item for item in server.WORKERS.items() if item[1] in server.replaced])
        server.replaced.clear()
        server.log.info("Reloaded: the new workers serve.")


def _reload(server: Any, gunicorn_reload: Callable[[], None]) -> None:
    """Start new workers; the old ones serve until then, and stop after their calls."""
    server.replaced.update(worker for _, worker in _serving(server))
    server.is_reloading = True
    try:
        gunicorn_reload()
    except _ReloadDoneError:
        pass
    finally:
        server.is_reloading = False
    server.manage_workers()


def _serving(server: Any) -> list[tuple[int, Any]]:
    left = server.stopping | server.replaced
    return [item for item in server.WORKERS.items() if item[1] not in left]


def _stop(server: Any, workers: list[tuple[int, Any]]) -> None:
    for pid, worker in workers:
        server.stopping.add(worker)
        server.kill_worker(pid, signal.SIGTERM)
