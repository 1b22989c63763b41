"""A mistake in the settings: one sentence, whatever serves the application, and an end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.gunicorn_master import OURS, ROOT
from tests.servers import free_port

SENTENCE = (
    "CHATAPP_PLANS: found 'alice=pro'; allowed is a JSON object of texts: plans by user id, as "
    '{"alice": "pro"}'
)


def start(tmp_path: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m COMMAND` in the project's directory to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    own = {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'chatapp.db'}",
        "RATELIMIT_EMBEDDED_DIR": str(tmp_path / "state"),
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


def test_gunicorn_ends_with_the_sentence(tmp_path: Path) -> None:
    """Said by each worker that was started, and the master does not try again for ever."""
    ended = start(tmp_path, "gunicorn", "wsgi:app", CHATAPP_PLANS="alice=pro")
    assert ended.returncode == 3
    assert SENTENCE in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("Booting worker") <= 4


@pytest.mark.parametrize("words", [("run",), ("chat", "keys", "list")])
def test_flask_ends_with_the_sentence(tmp_path: Path, words: tuple[str, ...]) -> None:
    """And with nothing else."""
    ended = start(tmp_path, "flask", "--app", "wsgi", *words, CHATAPP_PLANS="alice=pro")
    assert ended.returncode == 3
    assert ended.stderr == f"chatapp cannot start.\n{SENTENCE}\n"
