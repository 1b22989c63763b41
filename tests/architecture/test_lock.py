"""The lock files: what CI and a container install, by version and hash."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {".ci/requirements.lock": "requirements.txt", ".ci/tests.lock": "tests/requirements.txt"}


def required(path: str) -> list[Requirement]:
    """The requirements of a file and of those that it includes."""
    found = []
    for line in (ROOT / path).read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found += required(str(Path(path).parent / text.removeprefix("-r ")))
        elif text:
            found.append(Requirement(text))
    return found


def locked(path: str) -> list[tuple[Requirement, list[str]]]:
    """Each locked version, with its hashes."""
    joined = (ROOT / path).read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if not line.startswith("#")]
    return [
        (Requirement(line.partition(" --hash")[0]), re.findall(r"--hash=(\S+)", line))
        for line in lines
    ]


@pytest.mark.parametrize(("lock", "of"), LOCKS.items())
def test_a_lock_satisfies_its_requirements(lock: str, of: str) -> None:
    """Every requirement has a version in its range; every version is exact, with SHA-256 hashes.
    Run .ci/lock after a change of the requirements."""
    versions: dict[str, list[str]] = {}
    for pin, hashes in locked(lock):
        [exact] = pin.specifier
        assert exact.operator == "=="
        assert hashes
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes)
        versions.setdefault(canonicalize_name(pin.name), []).append(exact.version)
    for each in required(of):
        found = versions.get(canonicalize_name(each.name), [])
        assert found, each
        assert all(map(each.specifier.contains, found)), (each, found)


def test_tests_run_on_what_is_deployed() -> None:
    """CI tests the versions and hashes that a container has."""
    deployed, tested = [
        {(str(pin), *sorted(hashes)) for pin, hashes in locked(lock)} for lock in LOCKS
    ]
    assert deployed <= tested


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address(lock: str) -> None:
    """It installs from whichever index a machine has."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "index" not in text


def test_nothing_that_is_deployed_has_a_known_vulnerability() -> None:
    """By pip-audit, where the index has the advisories."""
    command = "--disable-pip --require-hashes --progress-spinner off --format json --timeout 10 -r"
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *command.split(), ".ci/requirements.lock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "requests.exceptions." in done.stderr or "Could not connect" in done.stderr:
        pytest.skip(f"pip-audit reaches no package index: {done.stderr.strip()[-200:]}")
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)["dependencies"]
    assert found
    if all("skip_reason" in each for each in found):
        pytest.skip("the package index of this machine has no advisories")
    vulnerable = {each["name"]: each["vulns"] for each in found if each.get("vulns")}
    assert not vulnerable
