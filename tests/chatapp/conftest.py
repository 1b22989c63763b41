"""Fixtures for the application: an environment without keys, an app in it, a provider to call."""

import dataclasses
import json
import os
import re
import shutil
import ssl
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpcore2
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from jinja2 import FileSystemBytecodeCache
from sqlalchemy import MetaData
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from chatapp import POLICY_FILE, PROVIDERS_FILE, create_app, protocol
from chatapp.accounts.store import Accounts
from chatapp.alerts import table as alerts_table
from chatapp.blueprints.openapi import DOCUMENT
from chatapp.catalogue import providers_file
from chatapp.database import migration
from chatapp.database.connection import Database
from chatapp.services import EXTENSION_KEY, services_of
from chatapp.upstreams import Timeouts
from chatapp.upstreams.keys import Keys
from chatapp.upstreams.sdk import SDKUpstream, UpstreamSettings
from ratelimit_ext import toml_line
from ratelimit_ext.core import clock
from ratelimit_ext.policy.errors import Mistakes
from ratelimit_ext.policy.policy import Policy
from ratelimit_ext.web.declarations import policies
from ratelimit_ext.web.request import request_state
from tests import servers
from tests.chatapp.alerts.receiver import Receiver, receiving
from tests.chatapp.end_of_process import end_of_process
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import TWO_KEYS, UpstreamServer
from tests.served import serving

OURS = ("DATABASE_URL", "CHATAPP_", "RATELIMIT_", "OPENAI_", "ANTHROPIC_")
# A PostgreSQL for tests; its tables are dropped.
SERVER_URL = os.environ.get("DATABASE_URL_TEST")
AppMaker = Callable[..., Flask]


def replace_services(app: Flask, **changed: object) -> None:
    """Replace some services of the application, such as its ledger."""
    app.extensions[EXTENSION_KEY] = dataclasses.replace(services_of(app), **changed)


def json_of(response: TestResponse) -> Any:
    """The JSON of an answer, which has some."""
    assert response.json is not None, response.text
    return response.json


def whole(client: FlaskClient, path: str, **sent: Any) -> Any:
    """The answer to a POST, read to its end."""
    with client.post(path, **sent) as response:
        response.get_data()
        return response


def raised_alerts(app: Flask) -> list[Any]:
    """All alerts of the spending so far, the latest first."""
    services = services_of(app)
    assert services.ledger.flush()
    assert services.alerts is not None
    assert services.alerts.get().flush(30)
    return list(alerts_table.alerts(services.database, since=None))


def policy_file(directory: Path, text: str) -> str:
    """The path of a policy with this text."""
    file = directory / "policy.toml"
    file.write_text(text)
    return str(file)


def two_keys(provider: UpstreamServer, directory: Path) -> str:
    """The path of a file of providers, which are `provider` with two keys each."""
    file = directory / "upstreams.toml"
    file.write_text(TWO_KEYS.format(url=provider.url))
    return str(file)


def upstream(name: str) -> SDKUpstream:
    """An upstream of the file that chatapp has if no other is configured."""
    table = providers_file.read(PROVIDERS_FILE, toml_line).upstreams[name]
    made = UpstreamSettings(
        name=name,
        table=table,
        patterns=tuple(table.patterns),
        keys=Keys(name, table.keys),
        timeouts=Timeouts(),
    )
    return SDKUpstream(protocol(table.protocol), made)


@pytest.fixture(autouse=True, scope="session")
def what_all_applications_share_is_made_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Each application would read the system's certificates for each of its providers and the same
    policy, translate each page that it shows, and write Python for each of its addresses."""
    read, compile_builder = httpcore2.default_ssl_context, Rule._compile_builder
    load = policies.load_policy
    contexts = cache(lambda *_, **options: read(**options))
    made: dict[object, Any] = {}

    def context(**options: bool) -> ssl.SSLContext:
        of_environment = (os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
        return contexts(*of_environment, **options)

    def builder(rule: Rule, append_unknown: bool = True) -> Any:
        key = (rule.rule, *rule._trace, append_unknown)
        if rule.defaults or key not in made:
            made[key] = compile_builder(rule, append_unknown)
        return made[key]

    def policy(*, check: Any, **how: Any) -> Policy:
        if how["file"] != str(POLICY_FILE):
            return load(check=check, **how)
        keywords = (*how["plan_keywords"].items(), *how["limit_keywords"].items())
        key = (POLICY_FILE.read_bytes(), how["default_strategy"], repr(how["blueprints"]), keywords)
        if key not in made:
            made[key] = load(**how)
        check(made[key], mistakes := Mistakes())
        mistakes.raise_if_any()
        return made[key]

    pages = FileSystemBytecodeCache(str(tmp_path_factory.mktemp("pages")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpcore2, "default_ssl_context", context)
        patch.setattr(policies, "load_policy", policy)
        patch.setattr(Rule, "_compile_builder", builder)
        patch.setattr(Flask, "jinja_options", {"bytecode_cache": pages})
        yield


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings, keys and databases of the environment do not affect the tests."""
    for name in os.environ:
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'default.db'}")
    monkeypatch.setenv("RATELIMIT_SETTLEMENTS_DIR", str(tmp_path / "settlements"))
    # A pause of a busy machine is no outage.
    monkeypatch.setenv("RATELIMIT_DEADLINE_SECONDS", "5")
    # No proxy for servers on this machine.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def threads_end_with_the_test() -> Iterator[None]:
    with end_of_process():
        yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite file with the schema, to be copied."""
    file = tmp_path_factory.mktemp("database") / "empty.db"
    database = Database(f"sqlite:///{file}")
    migration.upgrade(database)
    database.close()
    return file


@pytest.fixture
def database_url(empty_database: Path, tmp_path: Path) -> str:
    """A new database with the schema."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'chatapp.db')}"


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    """Of that database."""
    return Accounts(Database(database_url))


def drop_tables(database: Database) -> None:
    """As before the first version."""
    with database.writing() as connection:
        tables = MetaData()
        tables.reflect(connection)
        tables.drop_all(connection)


@pytest.fixture(params=["sqlite", "postgresql"] if SERVER_URL else ["sqlite"])
def database(request: pytest.FixtureRequest, database_url: str) -> Iterator[Database]:
    """Each kind of database, empty except for its schema; the server is DATABASE_URL_TEST's."""
    database = Database(database_url if request.param == "sqlite" else SERVER_URL or "")
    if request.param == "postgresql":
        drop_tables(database)
        migration.upgrade(database)
    yield database
    database.close()


#: The groups that chatapp's views name, for a policy without limits of its own.
GROUPS = "[groups.calls]\nlimits = []\n[groups.counts]\nlimits = []\n"
#: An application without the shipped policy and its guards.
NO_LIMITS: Mapping[str, Any] = {
    "RATELIMIT_POLICY_FILE": None,
    "RATELIMIT_POLICY": tomllib.loads(GROUPS),
}


def note_answers(app: Flask, answered: set[tuple[str, str, str]]) -> None:
    """Add the rule, the method and the status of each of the application's answers."""
    serve = app.wsgi_app

    def noting(environ: Any, start_response: Any) -> Any:
        def start(status: str, *rest: Any) -> Any:
            if (sent := environ.get("werkzeug.request")) and sent.url_rule:
                answered.add((sent.url_rule.rule, sent.method.lower(), status.partition(" ")[0]))
            return start_response(status, *rest)

        return serve(environ, start)

    app.wsgi_app = noting  # type: ignore[method-assign]


@cache
def described() -> Any:
    return json.loads(DOCUMENT.read_text())["paths"]


def is_described(rule: str, method: str, status: str) -> bool:
    """Whether openapi.json has that status, if it has the address. A defect is not described."""
    operations = described().get(re.sub(r"<(?:\w+:)?([a-z]+)_?>", r"{\1}", rule), {})
    return status == "500" or method not in operations or status in operations[method]["responses"]


@pytest.fixture
def make_app(database_url: str) -> Iterator[AppMaker]:
    """Makes an application on a new storage, with these settings besides.

    All applications of a test share a database. When the test ends, they send their statistics to
    the storage and close their connections, so that no other test is affected. Calls are in
    `ledger` if a test passes one. Each answer of theirs has a status that openapi.json describes.
    """
    made: list[Flask] = []
    answered: set[tuple[str, str, str]] = set()

    def make(*, ledger: object = None, **config: object) -> Flask:
        own = {"RATELIMIT_STORAGE_URI": "memory://", "CHATAPP_DATABASE_URL": database_url}
        made.append(create_app({"TESTING": False, **own, **config}))
        if ledger is not None:
            replace_services(made[-1], ledger=ledger)
        note_answers(made[-1], answered)
        return made[-1]

    yield make
    for app in made:
        services = services_of(app)
        for part in (services.ledger, services.alerts, services.estimator, services.database):
            if close := getattr(part, "close", None):  # a test may have replaced it
                close()
    assert not [each for each in answered if not is_described(*each)]


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits in memory get nothing back, however slow the machine is, and no header says so."""
    now_us = clock.now_us()
    monkeypatch.setattr(clock, "now_us", lambda: now_us)
    monkeypatch.setattr(request_state, "NOTICEABLE_S", 600)


@pytest.fixture
def client(make_app: AppMaker, stopped_clock: None) -> FlaskClient:
    """A client of an application without providers, whose limits stand still."""
    return make_app().test_client()


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[UpstreamServer]:
    """A running provider; the SDKs' own variables point at it, with made-up keys."""
    with UpstreamServer.running() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def online(provider: UpstreamServer, make_app: AppMaker) -> FlaskClient:
    """A client of an application whose providers are `provider`, without retries, so that the
    test's script decides."""
    return make_app(CHATAPP_PROVIDER_TIMEOUT_S=60, CHATAPP_PROVIDER_ATTEMPTS=1).test_client()


@pytest.fixture
def uri(redis_client: redis.Redis, redis_server: servers.Server) -> str:
    """An empty storage."""
    return redis_server.uri


@pytest.fixture
def ledger() -> RecordingLedger:
    """A ledger for an application that a test reads afterwards."""
    return RecordingLedger()


@pytest.fixture
def served(provider: UpstreamServer, make_app: AppMaker, ledger: RecordingLedger) -> Iterator[str]:
    """The address of a real server in front of `provider`, without retries; `ledger` has its
    calls. An answer of POST /chat is not longer than expected."""
    bounds = {"CHATAPP_PROVIDER_TIMEOUT_S": 60, "CHATAPP_MAX_TOKENS": 1000}
    with serving(make_app(ledger=ledger, CHATAPP_PROVIDER_ATTEMPTS=1, **bounds)) as url:
        yield url
