"""A mistake in the settings or in a file: one sentence, and the server does not start."""

from pathlib import Path

import pytest

from tests.e2e.command import run
from tests.e2e.operators.test_invalid_policy import MISTAKEN

PRIZE = 'version = 1\n[upstreams.acme]\nprotocol = "openai"\nprize = "free"\n'

SENTENCE = (
    "CHATAPP_PLANS: found 'alice=pro'; allowed: a JSON object of strings (plans by user id "
    'without API keys, as {"alice": "pro"}, else the policy\'s default)'
)


#: A setting with a mistake, what is in the file that it names, and the sentence.
FIRST_STARTS = [
    ("CHATAPP_PLANS", None, SENTENCE),
    ("RATELIMIT_POLICY_FILE", MISTAKEN, "Did you mean '100/day'?"),
    ("CHATAPP_PROVIDERS_FILE", PRIZE, "file.toml:4: upstreams.acme.prize is unknown;"),
]


@pytest.mark.parametrize(("setting", "text", "sentence"), FIRST_STARTS)
def test_gunicorn_ends_with_the_sentence(
    tmp_path: Path, setting: str, text: str | None, sentence: str
) -> None:
    """Each started worker prints it, and the master does not retry. With one worker, because a
    master that reaps a second one while it halts prints a traceback. No file has been valid yet."""
    file = tmp_path / "file.toml"
    file.write_text(text or "")
    variables = {setting: str(file) if text else "alice=pro", "WEB_CONCURRENCY": "1"}
    ended = run(tmp_path, "gunicorn", "wsgi:app", **variables)
    assert ended.returncode == 3
    assert sentence in ended.stderr
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
