"""Claude Code itself signs in, calls, goes on and signs out, with what a browser does and a real
OpenID provider on this machine."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from flask import Response, request

from chatapp import POLICY_FILE
from chatapp.accounts.store import Accounts
from tests.chatapp import conftest as chatapp
from tests.chatapp.conftest import AppMaker, policy_file
from tests.chatapp.identity_provider import IdentityProvider, running
from tests.chatapp.upstream_server import (
    ANTHROPIC_USAGE,
    Answer,
    AnthropicProtocol,
    Call,
    Reply,
    Stream,
    ToolCall,
    UpstreamServer,
    named,
    success,
)
from tests.e2e.clients.client_matrix import CLIENTS, variables
from tests.served import serving
from tests.servers import eventually, free_port

pytestmark = [
    pytest.mark.sdk_matrix,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("RATELIMIT_CLIENT_MATRIX"),
        reason="RATELIMIT_CLIENT_MATRIX=1 installs Claude Code",
    ),
]

bare_environment, database_url = chatapp.bare_environment, chatapp.database_url
empty_database, make_app = chatapp.empty_database, chatapp.make_app
threads_end_with_the_test = chatapp.threads_end_with_the_test
accounts, provider = chatapp.accounts, chatapp.provider

ALICE = "alice@example.com"
TIMEOUT_S = 120
MANAGED = {"model": "claude-sonnet-4-6", "permissions": {"deny": ["WebFetch", "Ä"]}}
#: The recipe of docs/gateway/accounts.md, and what it replaces.
AT_ONCE = 'name = "at-once"\nlimit = "16 in flight"\nkey = "user"\n'
RECIPE = AT_ONCE + 'wait = "30 seconds"\nkeep = { interactive = 2 }\npriority = "request_class"\n'
SUBAGENTS, FAN_OUT, JOB = 20, "start all subagents", "do the job of a subagent"
TASK = json.dumps({"description": "a job", "prompt": JOB, "subagent_type": "general-purpose"})
TOOL_USE = {"type": "tool_use", "name": "Agent", "input": {}}
#: In a line of its output.
INFO = "rate_limit_info"
OUTPUT_USD = 15e-6
#: Paths and statuses of what the client has asked.
ANSWERS: list[tuple[str, int]] = []


class ClaudeCode:
    """The installed client, with a home of its own and this gateway in its settings."""

    def __init__(self, home: Path, url: str) -> None:
        (client,) = [client for client in CLIENTS if client.name == "Claude Code"]
        self.home = home
        self.variables = variables(client.environment(), home)
        self.command = str(client.environment() / "node_modules" / ".bin" / "claude")
        self.variables["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
        (home / ".claude").mkdir()
        settings = {"forceLoginMethod": "gateway", "forceLoginGatewayUrl": url}
        (home / ".claude" / "settings.json").write_text(json.dumps(settings))

    @property
    def credentials(self) -> Path:
        return self.home / ".claude" / ".credentials.json"

    def run(self, *words: str, check: bool = True) -> str:
        return subprocess.run(
            [self.command, *words],
            cwd=self.home,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=check,
            timeout=TIMEOUT_S,
        ).stdout

    def sign_in(self, **form: str) -> dict[str, Any]:
        """Sign in as a program does that shows its questions to a person; returns the end."""
        with subprocess.Popen(
            [self.command, "auth", "login", "--gateway-json"],
            cwd=self.home,
            env=self.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            timer = threading.Timer(TIMEOUT_S, process.kill)
            timer.start()
            shown: dict[str, Any] = {}
            for line in process.stdout:
                shown = json.loads(line)
                if "shown" in shown:
                    answer = {"state": shown["state"], "shown": shown["shown"], "accept": True}
                    process.stdin.write(f"{json.dumps(answer)}\n")
                    process.stdin.flush()
                if shown["state"] == "polling":
                    browse(shown["browserUrl"], user_code=shown["userCode"], **form)
            timer.cancel()
        return shown


def browse(address: str, **form: str) -> None:
    """What a browser does on the page, at the provider, and back; or on the page alone."""
    origin = "://".join(urlsplit(address)[:2])
    headers = {"Origin": origin, "Content-Type": "application/x-www-form-urlencoded"}
    sent = fetched(f"{origin}/device", "POST", urlencode(form), headers)
    if sent.status == 303:
        back = fetched(sent.headers["Location"])
        cookie = sent.headers["Set-Cookie"].partition(";")[0]
        assert fetched(back.headers["Location"], headers={"Cookie": cookie}).status == 200


def fetched(
    address: str, method: str = "GET", body: str = "", headers: dict[str, str] | None = None
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, address.partition(urlsplit(address).netloc)[2], body, headers or {})
    return connection.getresponse()


def note(response: Response) -> Response:
    ANSWERS.append((request.path, response.status_code))
    return response


@pytest.fixture
def idp() -> Iterator[IdentityProvider]:
    with running() as provider:
        yield provider


@pytest.fixture
def claude(
    make_app: AppMaker,
    provider: UpstreamServer,
    idp: IdentityProvider,
    accounts: Accounts,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[ClaudeCode]:
    """With the packaged policy, in which a parameter replaces AT_ONCE."""
    port = free_port()
    idp.callback = f"http://127.0.0.1:{port}/oauth/callback"
    accounts.create_team("research")
    managed = tmp_path / "managed.json"
    managed.write_text(json.dumps({"pro/research": MANAGED}))
    text = POLICY_FILE.read_text()
    assert AT_ONCE in text
    file = policy_file(tmp_path, text.replace(AT_ONCE, getattr(request, "param", AT_ONCE)))
    config = {"CHATAPP_MANAGED_SETTINGS_FILE": str(managed), "RATELIMIT_POLICY_FILE": file}
    app = make_app(**idp.settings, **config)
    app.after_request(note)
    with serving(app, port=port) as url:
        (tmp_path / "home").mkdir()
        yield ClaudeCode(tmp_path / "home", url)


def test_claude_code_signs_in_and_out(
    claude: ClaudeCode, accounts: Accounts, idp: IdentityProvider
) -> None:
    """It calls with the key, asks for more time when that is about to end, and ends it itself."""
    assert claude.sign_in()["state"] == "done"
    assert ALICE in claude.run("auth", "status", "--text")
    assert claude.run("-p", "say hi")
    stored = json.loads(claude.credentials.read_text())
    stored["enterpriseGateway"]["expiresAt"] = int((time.time() + 60) * 1000)
    claude.credentials.write_text(json.dumps(stored))
    assert claude.run("-p", "say hi")
    assert idp.asked == ["authorization_code", "refresh_token"]
    (key,) = accounts.all_keys(ALICE)
    assert key.is_usable
    claude.run("auth", "logout")
    (key,) = accounts.all_keys(ALICE)
    assert key.revoked_at is not None


def test_claude_code_shows_a_denial(claude: ClaudeCode, accounts: Accounts) -> None:
    """The person has pressed Deny."""
    shown = claude.sign_in(deny="1")
    assert (shown["state"], shown["message"]) == ("error", "Sign-in was denied in the browser.")
    assert accounts.users() == []


def test_claude_code_takes_managed_settings_and_shows_the_budget(
    claude: ClaudeCode, provider: UpstreamServer
) -> None:
    """The model of the settings answers, and the client finds them unchanged by its checksum."""
    claude.sign_in()
    ANSWERS.clear()
    claude.run("-p", "say hi")
    shown = claude.run("-p", "/usage")
    assert [call.body["model"] for call in provider.calls] == [MANAGED["model"]]
    assert re.search(r"Spend limit: \$\d\S* / \$60 spent today \(\d+%\) · resets ", shown), shown
    assert [status for path, status in ANSWERS if path == "/managed/settings"] == [200, 304]
    assert ("/api/oauth/usage", 200) in ANSWERS


def test_claude_code_with_a_key_asks_for_neither(claude: ClaudeCode, accounts: Accounts) -> None:
    """Only after a sign-in does it ask a gateway for settings or usage."""
    key = accounts.create_key(ALICE, plan="pro", default_plan="starter").text
    url = json.loads((claude.home / ".claude" / "settings.json").read_text())
    (claude.home / ".claude" / "settings.json").unlink()
    claude.variables["ANTHROPIC_BASE_URL"] = url["forceLoginGatewayUrl"]
    claude.variables["ANTHROPIC_API_KEY"] = key
    ANSWERS.clear()
    claude.run("-p", "say hi")
    assert "Spend limit" not in claude.run("-p", "/usage")
    assert {path for path, _ in ANSWERS} <= {"/", "/v1/messages", "/v1/messages/count_tokens"}


def test_claude_code_warns_of_a_budget_and_shows_that_it_is_spent(
    claude: ClaudeCode, provider: UpstreamServer, accounts: Accounts
) -> None:
    """In its own words: with the share that is used, and then with the sentence of this server."""
    claude.sign_in()
    accounts.set_amount("user", ALICE, "usd-day", "1 usd/day")
    provider.script(*map(costly, (0.8, 0.2)))
    said = [claude.run("-p", "say hi", "--output-format", "stream-json", "--verbose") for _ in "12"]
    infos = [e["rate_limit_info"] for e in map(json.loads, said[1].splitlines()) if INFO in e]
    assert [each["status"] for each in infos] == ["allowed_warning"], said
    assert infos[0]["rateLimitType"] == "overage"
    assert infos[0]["surpassedThreshold"] in {0.75, 0.95}
    assert infos[0]["resetsAt"] % 86_400 == 0
    shown = claude.run("-p", "say hi", check=False)
    assert re.match(r"spend limit reached · resets .*m \(UTC\) · Your own limit of \$1\.00", shown)


def costly(dollars: float) -> Stream:
    """An answer of MANAGED's model."""
    usage = {"input_tokens": 1, "output_tokens": round(dollars / OUTPUT_USD)}
    message = AnthropicProtocol(Reply(model=MANAGED["model"], usage=usage))
    return Stream([*message.start(), message.delta("text", "pong"), *message.end()])


@pytest.mark.parametrize("claude", [AT_ONCE, RECIPE], indirect=True, ids=["packaged", "recipe"])
def test_a_person_beside_twenty_subagents(
    claude: ClaudeCode, provider: UpstreamServer, request: pytest.FixtureRequest
) -> None:
    """All have a call in flight or wait for one. By the recipe, the person's next call goes to the
    provider at once; without it, after some of theirs."""
    has_recipe = "recipe" in request.node.name
    gate, jobs = threading.Event(), list[Call]()

    def answer(call: Call) -> Answer | Stream:
        text = json.dumps(call.body["messages"])
        if FAN_OUT in text and "tool_result" not in text:
            return fan_out()
        if JOB in text and FAN_OUT not in text:
            jobs.append(call)
            gate.wait(TIMEOUT_S)
        return success(call.path, call.body)

    provider.answer = answer  # type: ignore[method-assign, assignment]
    claude.sign_in()
    ANSWERS.clear()
    with ThreadPoolExecutor(2) as pool:
        try:
            team = pool.submit(claude.run, "-p", FAN_OUT, "--permission-mode", "acceptEdits")
            eventually(lambda: len(jobs) == (14 if has_recipe else 16), within_s=60)
            person = pool.submit(claude.run, "-p", "say hi")
            if has_recipe:
                assert "pong" in person.result()
            else:
                eventually(lambda: ANSWERS.count(("/v1/messages", 429)) > SUBAGENTS, within_s=60)
                assert not person.done()
            assert len(jobs) < SUBAGENTS
        finally:
            gate.set()
        assert "pong" in person.result()
        assert "pong" in team.result()
    assert len(jobs) == SUBAGENTS


def fan_out() -> Stream:
    """The model starts all subagents in one answer."""
    message = AnthropicProtocol(
        Reply(model=MANAGED["model"], usage=ANTHROPIC_USAGE, tool=ToolCall("Agent", {}))
    )
    blocks = [
        named(f"content_block_{kind}", index=number, **{key: value})
        for number in range(SUBAGENTS)
        for kind, key, value in (
            ("start", "content_block", {**TOOL_USE, "id": f"toolu_{number}"}),
            ("delta", "delta", {"type": "input_json_delta", "partial_json": TASK}),
            ("stop", "ignored", None),
        )
    ]
    return Stream([message.start()[0], *blocks, *message.end()[1:]])
