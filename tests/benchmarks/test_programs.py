"""Every benchmark still runs: a round of each that is too short to say how fast anything is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--rounds", "1", "--seconds", "0.2")
PROGRAMS = {
    "server_time": (("--rounds", "1", "--users", "500"), "1,500 buckets"),
    "request_cost": (("--rounds", "1"), "ours, every request denied"),
    "hot_key": (SHORT, "5,000"),
    "throughput": (SHORT, "/stock-denied"),
    "gateway": (SHORT, "chatapp without limits"),
}
LIBRARIES = {"applications", "mock_upstream"}


def test_no_program_is_forgotten() -> None:
    """What is in benchmarks/ is run here, or used by one that is."""
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert there == PROGRAMS.keys() | LIBRARIES


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name: str) -> None:
    """It ends by itself, with its table; whether its figures are reached is not asked here."""
    options, row = PROGRAMS[name]
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RATELIMIT")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    assert row in ended.stdout, ended.stderr
