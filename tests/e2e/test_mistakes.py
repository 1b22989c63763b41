"""A mistake in the settings: one sentence, whatever serves the application, and an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.to_its_end import run

SENTENCE = (
    "CHATAPP_PLANS: found 'alice=pro'; allowed: a JSON object of strings (plans by user id, as "
    '{"alice": "pro"})'
)


def test_gunicorn_ends_with_the_sentence(tmp_path: Path) -> None:
    """Said by each worker that was started, and the master does not try again for ever.

    With one worker: a master that meets the end of a second one while it halts adds a trace.
    """
    ended = run(tmp_path, "gunicorn", "wsgi:app", CHATAPP_PLANS="alice=pro", WEB_CONCURRENCY="1")
    assert ended.returncode == 3
    assert SENTENCE in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("Booting worker") == 1


@pytest.mark.parametrize("words", [("run",), ("chat", "keys", "list")])
def test_flask_ends_with_the_sentence(tmp_path: Path, words: tuple[str, ...]) -> None:
    """And with nothing else."""
    ended = run(tmp_path, "flask", "--app", "wsgi", *words, CHATAPP_PLANS="alice=pro")
    assert ended.returncode == 3
    assert ended.stderr == f"chatapp cannot start.\n{SENTENCE}\n"
