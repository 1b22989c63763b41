"""The checks of form, types and imports. This is their one definition: CI runs the tests."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PYTHON_FILES = [".", "gunicorn.conf.py"]


def run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_lint() -> None:
    """ruff finds nothing by the rules of pyproject.toml."""
    run("-m", "ruff", "check", *PYTHON_FILES)


def test_format() -> None:
    """Every file is as `ruff format` leaves it."""
    run("-m", "ruff", "format", "--check", *PYTHON_FILES)


def test_types() -> None:
    """mypy, in strict mode, finds nothing in the library and the application."""
    run("-m", "mypy")


def test_imports() -> None:
    """Imports go downward only, by the contracts of pyproject.toml."""
    run("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())")


def test_the_contracts_name_every_part() -> None:
    """A new part of the library is under the contracts from its first day."""
    contracts = {c["id"]: c for c in pyproject()["tool"]["importlinter"]["contracts"]}
    parts = {
        f"ratelimit_ext.{path.parent.name}" for path in (ROOT / "ratelimit_ext").glob("*/*.py")
    }
    # What not every application needs is imported by its part.
    public = {"ratelimit_ext.metrics", "ratelimit_ext.operators"}
    assert set(contracts["public-names-only"]["forbidden_modules"]) == parts - public
    assert set(contracts["frameworks-in-web"]["source_modules"]) == parts - {
        "ratelimit_ext.cli",
        "ratelimit_ext.operators",
        "ratelimit_ext.web",
    }


@pytest.mark.parametrize("needed", ["flask", "flask-limiter", "limits", "pydantic", "redis"])
def test_requirements_lie_within_the_packages_ranges(needed: str) -> None:
    """What the application is run with is allowed by the package."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    [narrow] = [each for each in required if each.name == needed]
    [wide] = [
        each
        for each in map(Requirement, pyproject()["project"]["dependencies"])
        if each.name == needed
    ]
    assert narrow.extras == wide.extras
    bounds = {each.operator: each.version for each in narrow.specifier}
    assert wide.specifier.contains(bounds[">="])
    [most] = [each.version for each in wide.specifier if each.operator == "<"]
    assert Version(bounds["<"]) <= Version(most)


def pyproject() -> dict[str, dict]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
