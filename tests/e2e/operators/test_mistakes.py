"""A mistake in the settings: one sentence, and the server does not start."""

from pathlib import Path

from tests.e2e.command import run

SENTENCE = (
    "CHATAPP_PLANS: found 'alice=pro'; allowed: a JSON object of strings (plans by user id "
    'without API keys, as {"alice": "pro"}, else the policy\'s default)'
)


def test_gunicorn_ends_with_the_sentence(tmp_path: Path) -> None:
    """Each started worker prints it, and the master does not retry. With one worker, because a
    master that reaps a second one while it halts prints a traceback."""
    ended = run(tmp_path, "gunicorn", "wsgi:app", CHATAPP_PLANS="alice=pro", WEB_CONCURRENCY="1")
    assert ended.returncode == 3
    assert SENTENCE in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("Booting worker") == 1


def test_a_flask_server_ends_with_the_sentence(tmp_path: Path) -> None:
    """It prints nothing else."""
    ended = run(tmp_path, "flask", "--app", "wsgi", "run", CHATAPP_PLANS="alice=pro")
    assert ended.returncode == 3
    assert ended.stderr == f"chatapp cannot start.\n{SENTENCE}\n"


def test_a_command_warns_with_the_sentence(tmp_path: Path) -> None:
    """It runs all the same, as a key may have to be replaced."""
    words = ("flask", "--app", "wsgi", "chat", "keys", "create", "--user", "ada")
    ended = run(tmp_path, *words, CHATAPP_PLANS="alice=pro")
    assert ended.returncode == 0
    assert SENTENCE in ended.stderr
