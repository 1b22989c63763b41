"""Decorated views keep their signatures, also for pyright: see decorated.py, which mypy checks
with the packages.

basedpyright is pyright with a Node of its own, 280 MB: it is not among the tests' requirements.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKER = shutil.which("basedpyright") or shutil.which("pyright")


@pytest.mark.skipif(CHECKER is None, reason="needs pyright: pip install basedpyright")
def test_pyright_finds_what_mypy_finds(tmp_path: Path) -> None:
    """No more and no fewer errors, in its strict mode."""
    settings = {
        "include": [str(ROOT / "tests" / "compat" / "decorated.py")],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "enableTypeIgnoreComments": True,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings))
    command = [str(CHECKER), "--project", str(project), "--pythonpath", sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout
    assert "0 errors" in run.stdout
