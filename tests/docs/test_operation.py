"""Pages of docs/operate and docs/gateway: each command does and prints what the page shows, in its
order, on a real Redis: after calls that were really denied, with a Redis that was really killed,
and a database that a newer version has upgraded."""

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from chatapp import POLICY_FILE
from chatapp.accounts.api_key import public_id_of
from chatapp.catalogue.usage import Usage
from chatapp.ledger import table
from chatapp.services import services_of
from chatapp.settings import SettingsError
from tests import servers
from tests.chatapp import conftest as chatapp
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import UpstreamServer
from tests.docs.commands import commands, comparable
from tests.docs.test_documents import ROOT, blocks
from tests.served import serving

bare_environment = chatapp.bare_environment
database_url, empty_database = chatapp.database_url, chatapp.empty_database
make_app, threads_end_with_the_test = chatapp.make_app, chatapp.threads_end_with_the_test
provider = chatapp.provider

PAGES = ROOT / "docs"
TOKEN = "a token of some length"
FLASK = ["flask", "--app", "wsgi"]
MODEL = {"provider": "openai", "slug": "gpt-5.4-mini", "model": "gpt-5.4-mini"}


class Scene:
    """chatapp on a Redis of its own, and two users: one is on call. Most methods are what happens
    before a command of a page."""

    def __init__(
        self, make_app: chatapp.AppMaker, database: Path, log: pytest.LogCaptureFixture
    ) -> None:
        self._make_app = make_app
        self.log = log
        self._left = ExitStack()
        self._server = ExitStack()
        self.redis = self._left.enter_context(servers.standalone())
        self._left.callback(self.stop)
        self.start()
        self.page = PAGES
        self.running: list[Any] = []
        self.printed = ""
        self.alice, self.olga = self.new_key("alice"), self.new_key("olga")
        #: What a page has, and what is here.
        self.names = {
            "/var/backups": str(self.redis.directory),
            "/opt/chatapp/instance": str(database.parent),
            "/opt/chatapp/chatapp": str(ROOT / "chatapp"),
            "068e7393371fa3aa": public_id_of(self.alice),
        }

    def close(self) -> None:
        self._left.close()

    def start(self) -> None:
        """What a new process of the service does."""
        config = {"CHATAPP_ADMIN_TOKEN": TOKEN, "RATELIMIT_STORAGE_URI": self.redis.uri}
        self.app = self._make_app(**config)
        self.url = self._server.enter_context(serving(self.app))

    def stop(self) -> None:
        self._server.close()

    def new_key(self, user: str) -> str:
        return self.flask("chat", "keys", "create", "--user", user).split()[0]

    def client(self, key: str) -> FlaskClient:
        client: FlaskClient = self.app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
        return client

    def flask(self, *words: str) -> str:
        output: str = self.app.test_cli_runner().invoke(args=words).output
        return output

    def run(self, line: str) -> str:
        """What the command prints. `systemctl` is the only one that stands for another."""
        line = self.here(line)
        words = shlex.split(line)
        if words[:3] == FLASK:
            self.printed = self.flask(*words[3:])
            return self.printed
        if words[0] == "systemctl":
            assert words[2] == "chatapp"
            for verb in {"restart": ["stop", "start"]}.get(words[1], [words[1]]):
                getattr(self, verb)()
            return ""
        assert words[0] in {"curl", "mkdir"}, f"no command of these pages: {line}"
        shell = ["bash", "-c", line.replace("localhost:8000", self.url)]
        variables = {**os.environ, "KEY": self.olga, "TOKEN": TOKEN}
        return subprocess.run(
            shell, env=variables, capture_output=True, text=True, check=True
        ).stdout

    def here(self, shown: str) -> str:
        """A text of a page with the names of this machine."""
        for name, here in self.names.items():
            shown = shown.replace(name, here)
        return shown

    def write(self, user: str, **fields: Any) -> None:
        call = begun(started_at=datetime.now(UTC), user=f"user:{user}", **MODEL)
        table.write(services_of(self.app).database, [finished(call, **fields)])

    def calls_that_cost(self) -> None:
        """Nearly all input was cached, which no limit in tokens counts: they are not restored."""
        self.new_key("mallory")
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
        self.running.append(self.client(self.new_key("bob")).post("/chat", json=body))

    def calls_that_fail(self) -> None:
        for status in ("overloaded", "timeout", "overloaded"):
            self.write("alice", usage=Usage(0, 0), cost_micro_usd=0, status=status)
        self.running.pop().close()
        assert services_of(self.app).ledger.flush()

    def redis_is_killed(self) -> None:
        self.redis.kill()

    def redis_comes_back_empty(self) -> None:
        self.redis.relaunch()
        servers.eventually(lambda: "The storage is back" in self.log.text)  # else it is output

    def a_typo_is_deployed(self) -> None:
        file = self.redis.directory / "policy.toml"
        groups = "[groups.calls]\nlimits = []\n[groups.counts]\nlimits = []\n"
        mistake = '[[default]]\nlimit = "30/minute"\nmode = "shadw"\n'
        file.write_text(f"version = 1\n\n{mistake}{groups}")
        self.app.config["RATELIMIT_POLICY_FILE"] = str(file)
        self.names["policy.toml"] = str(file)

    def answered_calls(self) -> None:
        client = self.client(self.alice)
        calls = [client.post("/chat", json={"message": "hi", "model": "gpt-4o"}) for _ in range(3)]
        assert [each.status_code for each in calls] == [200] * 3
        assert services_of(self.app).ledger.flush()

    def a_ui_forwards_its_users(self) -> None:
        """With the key that the command before has printed."""
        key = self.printed.split()[0]
        self.names["2f0c8e41b7d95a36"] = public_id_of(key)
        for name in ("ann", "bob"):
            headers = {"X-OpenWebUI-User-Email": f"{name}@example.com"}
            answer = self.client(key).post("/chat", json={"message": "hi"}, headers=headers)
            assert answer.status_code == 200

    def a_session_calls(self) -> None:
        """Under the packaged policy, with the limits that the page adds."""
        added, *_ = blocks(self.page, "toml")
        file = self.redis.directory / "policy.toml"
        file.write_text(POLICY_FILE.read_text() + added.text)
        self.app = self._make_app(
            RATELIMIT_STORAGE_URI=self.redis.uri, RATELIMIT_POLICY_FILE=str(file)
        )
        headers = {"X-Claude-Code-Session-Id": "4df4f2a4-5d3c-4f0a-8d23-7a1f1e2d3c4b"}
        client = self.client(self.alice)
        assert client.post("/chat", json={"message": "hi"}, headers=headers).status_code == 200

    def a_newer_schema(self) -> None:
        """This version is the old one now, and does not start."""
        database = services_of(self.app).database
        with database.writing() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(SettingsError, match="the database has schema 9999"):
            self._make_app(RATELIMIT_STORAGE_URI=self.redis.uri)

    def the_old_version(self) -> None:
        """It makes a new database in place of the one that was moved away."""
        self.app = self._make_app(RATELIMIT_STORAGE_URI=self.redis.uri)

    def a_file_of_upstreams(self) -> None:
        """The first one that the page has, with a file of a key that is here."""
        key = self.redis.directory / "openai-3"
        key.write_text("sk-test")
        shown, *_ = blocks(self.page, "toml")
        file = self.redis.directory / "upstreams.toml"
        file.write_text(shown.text.replace("/run/secrets/openai-3", str(key)))
        self.names["upstreams.toml"] = str(file)


#: What happens before a command that begins so, by page.
BEFORE: Mapping[str, Mapping[str, Callable[[Scene], None]]] = {
    "operate/on-call": {
        "flask --app wsgi chat spend": Scene.calls_that_cost,
        "flask --app wsgi ratelimit why": Scene.denied_calls,
        "flask --app wsgi ratelimit top": Scene.a_call_in_flight,
        "flask --app wsgi chat ledger outcomes": Scene.calls_that_fail,
        "curl -s localhost:8000/readyz": Scene.redis_is_killed,
        "flask --app wsgi chat ledger restore": Scene.redis_comes_back_empty,
        "flask --app wsgi ratelimit check": Scene.a_typo_is_deployed,
    },
    "operate/upgrades": {
        "flask --app wsgi chat db backup": Scene.answered_calls,
        "systemctl stop chatapp": Scene.a_newer_schema,
        "flask --app wsgi chat db restore": Scene.the_old_version,
    },
    "gateway/from-litellm": {"flask --app wsgi chat providers check": Scene.a_file_of_upstreams},
    "gateway/providers": {"flask --app wsgi chat providers check": Scene.a_file_of_upstreams},
    "operate/deployment": {},
    "gateway/sessions": {"flask --app wsgi ratelimit inspect": Scene.a_session_calls},
    "gateway/open-webui": {"flask --app wsgi chat users list": Scene.a_ui_forwards_its_users},
    "operate/management-api": {},
}


@pytest.fixture
def scene(
    make_app: chatapp.AppMaker, database_url: str, caplog: pytest.LogCaptureFixture
) -> Iterator[Scene]:
    scene = Scene(make_app, Path(database_url.removeprefix("sqlite:///")), caplog)
    yield scene
    scene.close()


def follow(page: str, scene: Scene) -> None:
    """Run the commands of a page, and compare what they print."""
    left, scene.page = dict(BEFORE[page]), PAGES / f"{page}.md"
    shown = commands(scene.page)
    assert shown
    for command in shown:
        happens = next((each for each in left if command.line.startswith(each)), None)
        if happens is not None:
            left.pop(happens)(scene)
        printed = scene.run(command.line)
        assert comparable(printed) == comparable(scene.here(command.output)), command.line
    assert not left


def test_what_a_person_on_call_does(scene: Scene) -> None:
    """Each symptom has its command."""
    follow("operate/on-call", scene)


def test_an_upgrade_and_the_way_back(provider: UpstreamServer, scene: Scene) -> None:
    """The keys and calls of before are there in the end."""
    follow("operate/upgrades", scene)
    assert scene.client(scene.alice).get("/usage").status_code == 200


@pytest.mark.parametrize(
    "page",
    [
        "gateway/from-litellm",
        "gateway/providers",
        "gateway/open-webui",
        "gateway/sessions",
        "operate/deployment",
        "operate/management-api",
    ],
)
def test_files_are_checked_and_limits_set(
    page: str, provider: UpstreamServer, scene: Scene
) -> None:
    """The upstreams of a page are valid, and its limits are known."""
    follow(page, scene)
