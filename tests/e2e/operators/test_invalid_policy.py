"""A mistake in the policy of a running gunicorn: the last valid policy stays in use."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.e2e.command import run
from tests.gunicorn_master import ROOT, Master, gunicorn
from tests.servers import Server, eventually

POLICY = (ROOT / "chatapp" / "policy.toml").read_text()
MISTAKEN = POLICY.replace('"100/day"', '"100/dya"')
CREATE = ("chat", "keys", "create", "--user", "ada")


def misspelt(text: str) -> str:
    """The policy with a member that does not exist."""
    assert "[groups.calls]\n" in text
    return text.replace("[groups.calls]\n", '[groups.calls]\nmembers = ["chta"]\n')


UNKNOWN = misspelt(POLICY)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A policy file, valid at first."""
    file = tmp_path / "limits.toml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def master(file: Path, tmp_path: Path) -> Iterator[Master]:
    with gunicorn("wsgi:app", tmp_path, RATELIMIT_POLICY_FILE=str(file)) as master:
        eventually(lambda: len(master.workers()) == 2)
        eventually(lambda: master.log.count("Booting worker") == 2 and serves(master, burst=20))
        yield master


def serves(master: Master, *, burst: int) -> bool:
    """Whether the limit by address has that burst."""
    answer = master.request("/")
    return answer.status == 200 and f'"ip";q={burst};' in answer.headers["ratelimit-policy"]


@pytest.mark.parametrize(("text", "name"), [(MISTAKEN, "100/dya"), (UNKNOWN, "chta")])
def test_a_reload_with_a_mistake_keeps_the_last_valid_policy(
    master: Master, file: Path, text: str, name: str
) -> None:
    """The new workers log the mistake with its line; a corrected file takes effect at the next
    reload."""
    file.write_text(text)
    master.reload()
    assert serves(master, burst=20)
    line = 1 + text[: text.index(name)].count("\n")
    assert f"limits.toml:{line}: " in master.log
    assert "the last valid one stays in use" in master.log
    file.write_text(POLICY.replace("burst = 20", "burst = 21"))
    master.reload()
    assert serves(master, burst=21)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_by_one_with_the_last_valid_policy(
    master: Master, file: Path
) -> None:
    """While the file has a mistake or is missing."""
    file.write_text(MISTAKEN)
    for _ in range(2):
        old = master.workers()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        master.await_successors(old)
        assert serves(master, burst=20)
        file.unlink(missing_ok=True)


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_policy_is_checked_before_it_is_used(file: Path, tmp_path: Path, way: str) -> None:
    """`ratelimit check`: 0 and a summary, or 1 and every mistake with its line."""
    words = [str(file)] if way == "argument" else []
    variables = {} if words else {"RATELIMIT_POLICY_FILE": str(file)}
    command = ("flask", "--app", "wsgi", "ratelimit", "check", *words)
    valid = run(tmp_path, *command, **variables)
    assert (valid.returncode, valid.stderr) == (0, "")
    assert "plans: starter, pro, team" in valid.stdout
    file.write_text(misspelt(MISTAKEN).replace('key = "model"', 'key = "modl"'))
    checked = run(tmp_path, *command, **variables)
    assert (checked.returncode, checked.stdout) == (1, "")
    for meant in ("'chat'", "'model'", "'100/day'"):
        assert f"Did you mean {meant}?" in checked.stderr
    assert checked.stderr.count("limits.toml:") == 3


def test_plans_that_users_have_are_checked(file: Path, tmp_path: Path) -> None:
    """As at a start."""
    command = ("flask", "--app", "wsgi", "ratelimit", "check", str(file))
    checked = run(tmp_path, *command, CHATAPP_PLANS='{"ada": "gold"}')
    assert checked.returncode == 1
    assert "unknown plan 'gold' of the user 'ada'" in checked.stderr


def command(tmp_path: Path, file: Path, *words: str) -> CompletedProcess[str]:
    return run(tmp_path, "flask", "--app", "wsgi", *words, RATELIMIT_POLICY_FILE=str(file))


def test_commands_use_the_last_valid_policy(master: Master, file: Path, tmp_path: Path) -> None:
    """With a mistake in the file, a key can be created, blocked, listed and revoked; a plan of the
    last valid policy is known. A warning names the mistake."""
    plan = POLICY.replace("plans.pro", "plans.gold").replace('"pro"', '"gold"')
    file.write_text(plan)
    master.reload()
    file.write_text(MISTAKEN)
    made = command(tmp_path, file, *CREATE, "--plan", "gold", "--json")
    key = json.loads(made.stdout)["id"]
    for words in (
        *(("chat", "block", "user", "ada"), ("chat", "ledger", "check")),
        *(("chat", "keys", "revoke", key), ("ratelimit", "show")),
    ):
        done = command(tmp_path, file, *words)
        assert done.returncode == 0, done.stderr
        assert "Warning: The policy is invalid; the last valid one stays in use." in done.stderr
        assert "Did you mean '100/day'?" in done.stderr


def test_commands_work_without_a_valid_policy(file: Path, tmp_path: Path) -> None:
    """Also if no worker has ever served. A command that needs no policy says nothing of it."""
    file.write_text(MISTAKEN)
    made = command(tmp_path, file, *CREATE)
    assert made.returncode == 0, made.stderr
    assert "Warning: The policy is invalid; none was valid before." in made.stderr
    for words in (("chat", "spend"), ("chat", "db", "upgrade"), ("chat", "keys", "list")):
        done = command(tmp_path, file, *words)
        assert done.returncode == 0, done.stderr
        assert "policy" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "value", "mistake"),
    [
        ("CHATAPP_PLANS", "nope", "CHATAPP_PLANS: found 'nope'"),
        ("CHATAPP_PLANS", '{"ada": "gold"}', "unknown plan 'gold' of the user 'ada'"),
        ("CHATAPP_DEFAULT_MODEL", "gpt-0", "gpt-0"),
    ],
)
def test_a_wrong_setting_is_not_called_an_invalid_policy(
    file: Path, tmp_path: Path, setting: str, value: str, mistake: str
) -> None:
    """The command does without it, and says which it is."""
    words = ("flask", "--app", "wsgi", *CREATE)
    made = run(tmp_path, *words, RATELIMIT_POLICY_FILE=str(file), **{setting: value})
    assert made.returncode == 0, made.stderr
    assert "Warning: This command does without CHATAPP_PLANS" in made.stderr
    assert mistake in made.stderr
    assert "is invalid" not in made.stderr


@pytest.mark.usefixtures("redis_client")
def test_a_block_without_a_valid_policy_holds(
    file: Path, tmp_path: Path, redis_server: Server
) -> None:
    """The guards are built in."""
    storage = {"RATELIMIT_STORAGE_URI": redis_server.uri, "RATELIMIT_POLICY_FILE": str(file)}
    with gunicorn("wsgi:app", tmp_path, **storage) as master:
        shutil.rmtree(tmp_path / "valid-files")
        file.write_text(MISTAKEN)
        words = ("flask", "--app", "wsgi", "chat", "block", "all")
        done = run(tmp_path, *words, **storage)
        assert done.returncode == 0, done.stderr
        answer = master.request("/chat", {"message": "hello", "user_id": "ada"})
        assert answer.body["error"].startswith("The operator has switched off all models")
