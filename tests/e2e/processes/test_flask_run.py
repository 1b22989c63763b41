"""Flask's own server, for trying the application without gunicorn."""

from pathlib import Path

from tests.e2e.command import run
from tests.gunicorn_master import served
from tests.servers import free_port


def test_runs_without_gunicorn_and_without_a_storage(tmp_path: Path) -> None:
    """`flask --app wsgi run` serves with limits, and starts no storage server."""
    port = free_port()
    command = ["flask", "--app", "wsgi", "run", "--port", str(port)]
    state = tmp_path / "state"
    variables = {"RATELIMIT_EMBEDDED_DIR": str(state)}
    with served(command, port=port, log=tmp_path / "log", variables=variables) as server:
        answers = [server.request("/chat", {"message": "hello"}) for _ in range(11)]
    assert [answer.status for answer in answers] == [200] * 10 + [429]
    assert not state.exists()
    assert server.log.count("user_id") == 1  # who serves is warned


def test_only_a_server_logs_warnings(tmp_path: Path) -> None:
    """The warnings about forged user ids and about the missing storage are for servers, not for
    commands."""
    for words in (["--help"], ["chat", "keys", "list"], ["chat", "keys", "create", "--user", "a"]):
        done = run(tmp_path, "flask", "--app", "wsgi", *words)
        assert done.returncode == 0, done.stderr
        assert "user_id" not in done.stderr
        assert "storage" not in done.stderr
