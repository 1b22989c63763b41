"""Flask-Limiter's own test suite, run against our classes: how compatibility is judged.

It takes a minute, needs a package index, and runs where it is asked for: with
``RATELIMIT_COMPAT=1`` in the environment. Its tests come from the sdist of the installed version.
Redis is a Valkey server; what needs Memcached runs where that is installed; MongoDB is left
out.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import eventually, free_port, standalone

ROOT = Path(__file__).resolve().parents[2]
#: The ports that the suite has written into it.
REDIS_PORT, MEMCACHED_PORT = 46379, 31211

#: The tests that assert what is mended here; docs/extension/differences.md has the reason for each.
DIFFERENT = {
    # A denied request charges no other limit.
    "test_application_limits_from_config",
    "test_default_limits_with_per_route_limit",
    "test_exempt_routes",
    "test_independent_instances_by_key_prefix",
    "test_multiple_instances_no_key_prefix",
    "test_no_fail_on_first_breach",
    # Retry-After stands on refusals alone.
    "test_headers_application_limits",
    "test_headers_no_breach",
    "test_retry_after",
    "test_retry_after_exists_rfc1123",
    # They take "2/sec" and "2 per sec" for invalid strings, and here these are limits.
    "test_invalid_decorated_dynamic_limits",
    "test_invalid_decorated_dynamic_limits_blueprint",
    "test_invalid_decorated_static_limit_blueprint",
    "test_invalid_decorated_static_limits",
    # A function that cannot be called as it will be is an error where it is written.
    "test_on_breach_callback_custom_response",
    # They replace a method of the stock strategy, which does not decide here.
    "test_no_swallow_error",
    "test_no_swallow_error_conditional_deduction",
    "test_swallow_error",
}
#: They move a clock and expect the next request to look whether the storage is back. A thread does
#: that here, in real time: they fail unless it was faster.
IN_REAL_TIME = {
    "test_fallback_to_memory",
    "test_fallback_to_memory_backoff_check",
    "test_fallback_to_memory_with_global_override",
}
WITHOUT_MEMCACHED = (
    "--ignore=tests/test_storage.py",
    "--deselect=tests/test_flask_ext.py::test_reset_unsupported",
)

CONFTEST = """
import flask_limiter
import pytest
import ratelimit_ext

for name in (
    "ApplicationLimit",
    "Limit",
    "Limiter",
    "MetaLimit",
    "RateLimitExceeded",
    "RequestLimit",
    "RouteLimit",
):
    setattr(flask_limiter, name, getattr(ratelimit_ext, name))


class Running:
    def start(self, *_):
        pass

    def wait_for_service(self, *_):
        pass


@pytest.fixture(scope="session")
def docker_services():
    return Running()
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("RATELIMIT_COMPAT") != "1",
        reason="Flask-Limiter's own suite is run with RATELIMIT_COMPAT=1",
    ),
]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment with all that the suite needs."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    requirements = ROOT / "tests" / "compat" / "requirements.txt"
    pins = tmp_path / "pins.txt"
    pins.write_text(
        "".join(
            f"{name}=={importlib.metadata.version(name)}\n" for name in ("flask-limiter", "limits")
        )
    )
    _index("install", "--quiet", "-r", requirements, "-c", pins, interpreter=interpreter)
    return interpreter


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The tests of the installed Flask-Limiter, with ours in the place of its classes."""
    version = importlib.metadata.version("flask-limiter")
    _index(
        *("download", "--quiet", "--no-deps", "--no-binary", "flask-limiter"),
        *("--dest", tmp_path, f"flask-limiter=={version}"),
    )
    [archive] = tmp_path.glob("flask_limiter-*.tar.gz")
    with tarfile.open(archive) as sdist:
        sdist.extractall(tmp_path, filter="data")
    unpacked, folder = tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "suite"
    # Nothing else of it: its settings ask for coverage and for docker, its package is installed.
    shutil.copytree(unpacked / "tests", folder / "tests")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --tb=no -q -rfE -p no:cacheprovider\n")
    return folder


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    """The port of a Valkey server that a test may empty as it likes."""
    with standalone() as server:
        yield server.port


@pytest.fixture
def memcached_port() -> Iterator[int | None]:
    """The port of a running Memcached; none where it is not installed."""
    binary = shutil.which("memcached")
    if binary is None:
        yield None
        return
    port = free_port()
    command = [binary, "-p", str(port), "-l", "127.0.0.1", "-u", "daemon"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _listens(port))
            yield port
        finally:
            process.kill()


def test_only_what_asserts_a_mended_defect_fails(
    python: Path, suite: Path, redis_port: int, memcached_port: int | None
) -> None:
    """Exactly those of Flask-Limiter's tests fail that the list of differences names."""
    for file in suite.rglob("*.py"):
        ports = {REDIS_PORT: redis_port, MEMCACHED_PORT: memcached_port or MEMCACHED_PORT}
        text = file.read_text()
        for written, present in ports.items():
            text = text.replace(f":{written}", f":{present}").replace(f" {written}", f" {present}")
        file.write_text(text)
    left_out = () if memcached_port else WITHOUT_MEMCACHED
    run = subprocess.run(
        [python, "-m", "pytest", "tests", "-k", "not mongodb", *left_out],
        cwd=suite,
        # A machine that is busy is no outage of its storage.
        env={**os.environ, "PYTHONPATH": str(ROOT), "RATELIMIT_DEADLINE_SECONDS": "10"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    end = run.stdout[-6000:] + run.stderr[-2000:]
    ran = re.search(r"(\d+) failed, (\d+) passed", run.stdout)
    assert ran is not None, end
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", run.stdout, re.MULTILINE))
    assert failed - IN_REAL_TIME == DIFFERENT, end
    assert int(ran[1]) == len(failed), end
    assert int(ran[2]) >= 102, end


def _index(*arguments: str | Path, interpreter: Path | str = sys.executable) -> None:
    """Run pip; skip the test where no index can be reached."""
    run = subprocess.run(
        [interpreter, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if run.returncode != 0:
        said = run.stderr.strip().splitlines() or ["nothing was said"]
        pytest.skip(f"pip {arguments[0]} failed, is a package index reachable? {said[-1]}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
