"""A command in the project's directory, run until it exits."""

import os
import subprocess
import sys
from pathlib import Path

from tests.gunicorn_master import OURS, ROOT
from tests.servers import free_port


def flask(tmp_path: Path, *words: str, **variables: str) -> str:
    """The output of `flask --app wsgi WORDS`, which succeeds."""
    done = run(tmp_path, "flask", "--app", "wsgi", *words, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(tmp_path: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m COMMAND` until it exits, with a new database and state directory."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    own = {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'chatapp.db'}",
        "RATELIMIT_EMBEDDED_DIR": str(tmp_path / "state"),
        "GUNICORN_VALID_FILES": str(tmp_path / "valid-files"),
        "PORT": str(free_port()),
        "WEB_CONCURRENCY": "4",
    }
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**clean, **own, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
