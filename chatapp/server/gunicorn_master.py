"""gunicorn's master: it keeps the workers that serve, whatever happens to their successors.

gunicorn's own master stops the whole service if one worker cannot start, if the settings are
invalid at a HUP, or if a hook fails. After a HUP it stops the old workers at once, and blocks for
up to graceful_timeout until their calls have ended: meanwhile it replaces no dead worker, kills no
hung one and handles no signal. It also counts stopping workers as serving, and so starts too few.

This one starts workers that cannot start again and again, with a growing pause. It stops old
workers when new ones serve. HUPs that arrive meanwhile are one further reload, which does not wait
for workers that hang in their start. Only a first start ends with its mistake: nothing serves yet.

gunicorn's master loads this file by its path (see gunicorn.conf.py): it imports nothing of chatapp.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from gunicorn.errors import HaltServer

#: A forked Python forgets the signals that arrive before it runs. A worker that is stopped in its
#: first moment would never stop, so these are blocked until `post_fork`.
STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
# Workers do not all import the application at the same moment.
BETWEEN_STARTS_S: Final = 0.1
#: The pause after a worker could not start, which each failure doubles.
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
#: A further reload waits so long for the workers of the last one, which may hang in their start.
LONGEST_START_S: Final = 30.0
#: gunicorn's status if a worker cannot start.
CANNOT_START: Final = 3


class _ReloadDoneError(Exception):
    """Leaves gunicorn's reload after it has read the settings, and before it starts workers."""


def install(server: Any) -> None:
    """Replace the master's management of workers."""
    #: Workers that have been asked to stop, and those that will be when their successors serve.
    server.stopping = WeakSet()
    server.replaced = WeakSet()
    server.reload_wanted = server.is_reloading = server.has_served = False
    #: The age of the last worker that could not start; an older one does not end the pause.
    server.failed_age = 0
    server.pause_s = server.start_at = server.reloaded_at = 0.0
    # No exit status has this value: gunicorn ends by none.
    server.WORKER_BOOT_ERROR = server.APP_LOAD_ERROR = -1
    server.spawn_worker = partial(_spawn_worker, server, server.spawn_worker)
    server.kill_worker = partial(_kill_worker, server, server.kill_worker)
    server.reap_workers = partial(_reap_workers, server, server.reap_workers)
    server.manage_workers = partial(
        _manage_workers, server, partial(_reload, server, server.reload)
    )
    # The main loop handles all signals that have arrived, a stop too, and then manages workers.
    server.reload = partial(setattr, server, "reload_wanted", True)  # noqa: FBT003 - setattr's


def has_served(server: Any) -> bool:
    return server.has_served or any(w.start_result.is_ready for w in server.WORKERS.values())


def _spawn_worker(server: Any, gunicorn_spawn_worker: Callable[[], int]) -> int:
    if server.is_reloading:
        raise _ReloadDoneError
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return gunicorn_spawn_worker()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _kill_worker(
    server: Any, gunicorn_kill_worker: Callable[..., None], pid: int, sig: int
) -> None:
    if sig in STOP_SIGNALS and pid in server.WORKERS:
        server.stopping.add(server.WORKERS[pid])
    gunicorn_kill_worker(pid, sig)


def _manage_workers(server: Any, reload: Callable[[], None]) -> None:
    """Reload if that is wanted, start missing workers, and stop the oldest surplus ones."""
    ready = [worker for worker in _current(server) if worker.start_result.is_ready]
    if any(worker.age > server.failed_age for worker in ready):
        server.pause_s = server.start_at = 0.0
    if server.replaced and len(ready) >= server.num_workers:
        _stop(server, server.replaced.intersection(server.WORKERS.values()))
        server.replaced.clear()
        server.log.info("Reloaded: the new workers serve.")
    is_overdue = time.monotonic() - server.reloaded_at >= LONGEST_START_S
    if server.reload_wanted and (server.pause_s or is_overdue or not server.replaced):
        reload()
    current = _current(server)
    _stop(server, current[: max(0, len(current) - server.num_workers)])
    missing = server.num_workers - len(current)
    if server.pause_s:  # one at a time
        is_trying = not all(worker.start_result.is_ready for worker in current)
        missing = 0 if is_trying or time.monotonic() < server.start_at else min(1, missing)
    for _ in range(missing):
        try:
            server.spawn_worker()
        except Exception as error:
            server.log.exception("Error starting a worker")
            _pause(server, repr(error))
            break
        time.sleep(BETWEEN_STARTS_S)


def _reload(server: Any, gunicorn_reload: Callable[[], None]) -> None:
    """Read the settings; the current workers serve until new ones do, and stop after their calls.
    With invalid settings nothing changes."""
    server.reload_wanted, server.is_reloading = False, True
    server.reloaded_at = time.monotonic()
    old = server.app.cfg
    try:
        gunicorn_reload()
    except _ReloadDoneError:
        server.replaced.update(_current(server))
        server.pause_s = server.start_at = 0.0
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of gunicorn.conf.py
        server.app.cfg = old
        server.setup(server.app)
        server.log.error(
            "Nothing was reloaded, and the workers keep serving: gunicorn's settings are invalid. "
            "Correct them, and send HUP again. %r",
            error.__context__ or error,
        )
    finally:
        server.is_reloading = False


def _reap_workers(server: Any, gunicorn_reap_workers: Callable[[], None]) -> None:
    before = set(server.WORKERS.values())
    try:
        gunicorn_reap_workers()
    except Exception:
        server.log.exception("Error after the end of a worker")
    server.has_served = server.has_served or any(worker.start_result.is_ready for worker in before)
    for worker in before.difference(server.WORKERS.values(), server.stopping, server.replaced):
        if not worker.start_result.is_ready:
            server.failed_age = max(server.failed_age, worker.age)
            _pause(server, worker.start_result.failure)


def _pause(server: Any, failure: str) -> None:
    """Wait before a worker is started, longer after each failure. HaltServer if none ever served
    and it named the reason; a worker that was killed is started again."""
    if failure and not has_served(server):
        raise HaltServer(failure, CANNOT_START)
    if time.monotonic() < server.start_at:
        return  # workers that started together fail together
    server.pause_s = min(max(FIRST_PAUSE_S, 2 * server.pause_s), LONGEST_PAUSE_S)
    server.start_at = time.monotonic() + server.pause_s
    workers = set(server.WORKERS.values()).difference(server.stopping)
    server.log.error(
        "A worker cannot start: %s\nThe next try is in %d s. Meanwhile %d of %d workers serve.",
        failure or "it ended before it served, without a reason",
        server.pause_s,
        sum(worker.start_result.is_ready for worker in workers),
        server.num_workers,
    )


def _current(server: Any) -> list[Any]:
    """Return the workers that are to stay, the oldest first."""
    workers = set(server.WORKERS.values()).difference(server.stopping, server.replaced)
    return sorted(workers, key=lambda worker: worker.age)


def _stop(server: Any, workers: Any) -> None:
    for worker in list(workers):
        server.kill_worker(worker.pid, signal.SIGTERM)
