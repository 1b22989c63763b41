"""How many threads a worker has by default: as many calls as the machine carries.

gunicorn's master loads this file by its path (see gunicorn.conf.py): it imports nothing of chatapp.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

#: Streams of 10 tokens a second that a core carries, each with its first byte within a second. A
#: worker uses one core, because of the interpreter's lock.
CALLS_PER_CORE: Final = 250
#: A worker without calls, and what a call adds: 0.2 MB of a stream, and bodies.
WORKER_MB: Final = 220
CALL_MB: Final = 0.4
#: A call has its client's connection and its provider's. Idle clients and the worker have the rest.
CALL_FILES: Final = 2
IDLE_CLIENTS: Final = 500
WORKER_FILES: Final = 100
LEAST: Final = 16
CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUP: Final = Path("/proc/self/cgroup")


class Machine(NamedTuple):
    """What this process may use; ``None``: no limit was found."""

    cores: float
    memory_mb: int | None
    files: int | None

    def threads(self, workers: int) -> tuple[int, str]:
        """Return the threads of each of so many workers: those for which each resource is enough,
        and why."""
        room = {f"{self.cores:g} cores": CALLS_PER_CORE * min(1.0, self.cores / workers)}
        if self.memory_mb is not None:
            calls = (self.memory_mb / workers - WORKER_MB) / CALL_MB
            room[f"{self.memory_mb:,} MB of memory"] = calls
        if self.files is not None:
            calls = (self.files - IDLE_CLIENTS - WORKER_FILES) / CALL_FILES
            room[f"{self.files:,} file descriptors"] = calls
        enough = {text: max(LEAST, int(calls)) for text, calls in room.items()}
        why = ", ".join(f"{calls:,} for {text}" for text, calls in enough.items())
        return min(enough.values()), why


def this_machine() -> Machine:
    """Return what the process may use, by its affinity, its cgroup and its limits."""
    cores: float = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    periods = _of_cgroup("cpu", "cpu.cfs_period_us")
    quotas: list[Sequence[str]] = [text.split() for text in _of_cgroup("", "cpu.max")]
    quotas += zip(_of_cgroup("cpu", "cpu.cfs_quota_us"), periods, strict=False)
    cores = min([cores, *(int(us) / int(period) for us, period in quotas if us.isdigit())])
    texts = [*_of_cgroup("", "memory.max"), *_of_cgroup("memory", "memory.limit_in_bytes")]
    memory = [int(text) for text in texts if text.isdigit()]  # "max" is no limit
    with contextlib.suppress(ValueError, OSError):
        memory.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Machine(
        cores=round(cores, 2),
        memory_mb=min(memory) // 2**20 if memory else None,
        files=None if hard == resource.RLIM_INFINITY else hard,
    )


def _of_cgroup(controller: str, file: str) -> Iterator[str]:
    """Yield what the file says in the cgroup of this process and in each above it. Version 2 has
    one tree, of the controller ""."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:  # another system
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            top = CGROUPS / controller
            folder = top / path.strip("/")
            for level in (folder, *folder.parents):
                if level.is_relative_to(top):
                    with contextlib.suppress(OSError):
                        yield (level / file).read_text().strip()


def raise_files(threads: int) -> None:
    """Raise the soft limit of file descriptors for so many threads, as far as the hard one lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CALL_FILES * threads + IDLE_CLIENTS + WORKER_FILES
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
