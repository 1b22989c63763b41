"""The default number of threads: as many calls as the machine carries."""

import os
import resource
from pathlib import Path

import pytest

from chatapp.server import machine
from chatapp.server.machine import Machine


@pytest.mark.parametrize(
    ("found", "workers", "threads"),
    [
        (Machine(2, 24_000, 20_000), 2, 250),
        (Machine(2, 24_000, 20_000), 4, 125),
        (Machine(64, 64_000, None), 2, 250),  # a worker uses one core
        (Machine(0.5, 24_000, None), 1, 125),
        (Machine(2, 512, None), 2, 90),
        (Machine(2, 128, None), 2, 16),  # never fewer
        (Machine(2, None, 1_024), 2, 212),
        (Machine(2, None, None), 2, 250),
    ],
)
def test_the_scarcest_resource_decides(found: Machine, workers: int, threads: int) -> None:
    """Cores, memory or file descriptors; the text names each that was found."""
    chosen, why = found.threads(workers)
    assert chosen == threads
    assert f"{threads} for " in why
    assert ("memory" in why) is (found.memory_mb is not None)
    assert ("file descriptors" in why) is (found.files is not None)


@pytest.mark.parametrize(
    ("own", "files"),
    [
        (
            "0::/system.slice/chatapp.service\n",
            {
                "system.slice/chatapp.service/cpu.max": "max 100000",
                "system.slice/cpu.max": "50000 100000",
                "system.slice/chatapp.service/memory.max": "536870912",
                "system.slice/memory.max": "max",
            },
        ),
        (
            "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/\n",
            {
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/docker/1/memory.limit_in_bytes": "536870912",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_cgroup_limits_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, files: dict[str, str]
) -> None:
    """Its own limits and those of the groups above it; the least counts."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    found = machine.this_machine()
    assert (found.cores, found.memory_mb) == (0.5, 512)


def test_without_a_cgroup_the_processors_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On another system than Linux, too."""
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "missing")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.this_machine().cores == 3


@pytest.mark.parametrize(
    ("limits", "raised"),
    [((256, 20_000), 1_100), ((256, 1_000), 1_000), ((256, -1), 1_100), ((5_000, 20_000), None)],
)
def test_file_descriptors_are_raised_for_the_threads(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised: int | None
) -> None:
    """As far as the hard limit lets, and never lowered."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: found.append(new))
    machine.raise_files(250)
    assert found == ([] if raised is None else [(raised, limits[1])])
