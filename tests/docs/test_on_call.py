"""docs/operate/on-call.md: each command does and prints what the page shows, on a real Redis, after
calls that were really denied, and with a Redis that was really killed."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient

from chatapp.accounts.api_key import public_id_of
from chatapp.catalogue.usage import Usage
from chatapp.ledger import table
from chatapp.services import services_of
from tests import servers
from tests.chatapp import conftest as chatapp
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.served import serving
from tests.docs.commands import Command, commands, comparable
from tests.docs.test_documents import ROOT

bare_environment = chatapp.bare_environment
database_url, empty_database = chatapp.database_url, chatapp.empty_database
make_app, threads_end_with_the_test = chatapp.make_app, chatapp.threads_end_with_the_test

PAGE = ROOT / "docs" / "operate" / "on-call.md"
FLASK = ["flask", "--app", "wsgi"]
MODEL = {"provider": "openai", "slug": "gpt-5.4-mini", "model": "gpt-5.4-mini"}


class Scene:
    """A worker of three users, one of whom is on call, and what goes wrong. Each method is what
    happens before a command of the page."""

    def __init__(self, app: Any, redis: servers.Server, log: pytest.LogCaptureFixture) -> None:
        self.app = app
        self.redis = redis
        self.log = log
        self.database = services_of(app).database
        self.running: list[Any] = []
        alice, self.key, self.bob = map(self.new_key, ("alice", "olga", "bob"))
        self.new_key("mallory")
        #: What the page has, and what is here.
        self.names = {"068e7393371fa3aa": public_id_of(alice)}

    def new_key(self, user: str) -> str:
        return self.flask("chat", "keys", "create", "--user", user).split()[0]

    def flask(self, *words: str) -> str:
        return self.app.test_cli_runner().invoke(args=words).output

    def client(self, key: str) -> FlaskClient:
        client: FlaskClient = self.app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
        return client

    def write(self, user: str, **fields: Any) -> None:
        call = begun(started_at=datetime.now(UTC), user=f"user:{user}", **MODEL)
        table.write(self.database, [finished(call, **fields)])

    def calls_that_cost(self) -> None:
        """Nearly all input was cached, which no limit in tokens counts: they are not restored."""
        for user, tokens, cost in (("mallory", 4_100_000, 20_600_000), ("alice", 2_300, 11_485)):
            for _ in range(2):
                usage = Usage(tokens, 20, cached_input_tokens=tokens)
                self.write(user, usage=usage, cost_micro_usd=cost)

    def denied_calls(self) -> None:
        client = self.client(self.new_key("alice"))
        calls = [client.post("/chat", json={"message": "hello"}) for _ in range(15)]
        assert [each.status_code for each in calls] == [200] * 10 + [429] * 5

    def a_call_in_flight(self) -> None:
        body = {"message": "hello", "stream": True}
        self.running.append(self.client(self.bob).post("/chat", json=body))

    def calls_that_fail(self) -> None:
        for status in ("overloaded", "timeout", "overloaded"):
            self.write("alice", usage=Usage(0, 0), cost_micro_usd=0, status=status)
        self.running.pop().close()
        assert services_of(self.app).ledger.flush()

    def redis_is_killed(self) -> None:
        self.redis.kill()

    def redis_comes_back_empty(self) -> None:
        """The worker's log would be among the next command's output."""
        self.redis.relaunch()
        servers.eventually(lambda: "The storage is back" in self.log.text)

    def a_typo_is_deployed(self) -> None:
        file = self.redis.directory / "policy.toml"
        file.write_text('version = 1\n\n[[default]]\nlimit = "30/minute"\nmode = "shadw"\n')
        self.app.config["RATELIMIT_POLICY_FILE"] = str(file)
        self.names["policy.toml"] = str(file)


#: What happens before a command that begins so.
BEFORE = {
    "flask --app wsgi chat spend": Scene.calls_that_cost,
    "flask --app wsgi ratelimit why": Scene.denied_calls,
    "flask --app wsgi ratelimit top": Scene.a_call_in_flight,
    "flask --app wsgi chat ledger outcomes": Scene.calls_that_fail,
    "curl -s localhost:8000/readyz": Scene.redis_is_killed,
    "flask --app wsgi chat ledger restore": Scene.redis_comes_back_empty,
    "flask --app wsgi ratelimit check": Scene.a_typo_is_deployed,
}


@pytest.fixture
def scene(
    make_app: chatapp.AppMaker, caplog: pytest.LogCaptureFixture
) -> Iterator[tuple[Scene, str]]:
    """The application on a Redis of its own, and its address."""
    with servers.standalone() as redis:
        app = make_app(RATELIMIT_STORAGE_URI=redis.uri)
        with serving(app) as url:
            yield Scene(app, redis, caplog), url


def run(scene: Scene, command: Command, url: str) -> str:
    """What the command prints here."""
    line = command.line
    for name, here in scene.names.items():
        line = line.replace(name, here)
    words = shlex.split(line)
    if words[:3] == FLASK:
        return scene.flask(*words[3:])
    assert words[0] == "curl", f"no command of this page: {line}"
    variables = {**os.environ, "KEY": scene.key}
    shell = ["bash", "-c", line.replace("localhost:8000", url)]
    return subprocess.run(shell, env=variables, capture_output=True, text=True, check=True).stdout


def test_each_command_prints_what_the_page_shows(scene: tuple[Scene, str]) -> None:
    """In the order of the page."""
    here, url = scene
    left = dict(BEFORE)
    for command in commands(PAGE):
        happens = next((each for each in left if command.line.startswith(each)), None)
        if happens is not None:
            left.pop(happens)(here)
        output = command.output
        for name, path in here.names.items():
            output = output.replace(name, path)
        assert comparable(run(here, command, url)) == comparable(output), command.line
    assert not left
