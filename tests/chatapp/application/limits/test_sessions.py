"""Limits of sessions, on a real Redis: what a session is, that calls at once do not exceed its
budget, and how a paused one goes on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from chatapp.services import services_of
from tests.chatapp.application.limits.test_teams import new_key
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.blueprints.test_admin import log_in, send
from tests.chatapp.conftest import AppMaker, json_of, policy_file
from tests.chatapp.upstream_server import UpstreamServer
from tests.chatapp.web.test_authentication import ANTHROPIC, BODIES, OPENAI
from tests.chatapp.web.test_identities import left

#: A call costs 65 micro-dollars.
POLICY = """
version = 1
[groups.counts]
limits = []
[[groups.calls.limits]]
name = "session-usd"
limit = "0.005 usd per session"
idle = "30 minutes"
key = "session"
on_failure = "local"
[[groups.calls.limits]]
name = "session-calls"
limit = "300 calls per session"
key = "session"
"""
HEADER = "X-Claude-Code-Session-Id"
RUN = {HEADER: "4df4f2a4-5d3c-4f0a-8d23-7a1f1e2d3c4b"}


@pytest.fixture
def start(
    make_app: AppMaker, provider: UpstreamServer, uri: str, tmp_path: Path
) -> Callable[[], Flask]:
    file = policy_file(tmp_path, POLICY)
    return lambda: make_app(
        RATELIMIT_STORAGE_URI=uri, RATELIMIT_POLICY_FILE=file, CHATAPP_ADMIN_TOKEN=TOKEN
    )


def ask(app: Flask, headers: dict[str, str], path: str = OPENAI, **body: object) -> TestResponse:
    """A call that reserves little more than it costs."""
    model = {} if path == ANTHROPIC else {"model": "gpt-4o"}
    short = {"max_tokens": 10} if path == OPENAI else {}
    return app.test_client().post(
        path, json={**BODIES[path], **model, **short, **body}, headers=headers
    )


def test_parallel_calls_of_a_session_cost_at_most_its_budget(start: Callable[[], Flask]) -> None:
    """280 subagents of one session, from two workers; another session is not affected."""
    first = start()
    key = {"x-api-key": new_key(first, "ada")}
    workers = (first, start())
    with ThreadPoolExecutor(32) as pool:
        asked = pool.map(lambda n: ask(workers[n % 2], {**key, **RUN}).status_code, range(280))
        statuses = list(asked)
    assert set(statuses) == {200, 429}
    for app in workers:
        assert services_of(app).ledger.flush()
    (spent,) = services_of(first).reports.spending(by="tag:session", since=None)
    assert (spent.subject, spent.calls) == (RUN[HEADER], statuses.count(200))
    assert 4_000 < spent.cost_micro_usd <= 5_000
    other = ask(first, {**key, HEADER: "another"})
    assert (other.status_code, left(other)["session-calls"]) == (200, 299)


def test_a_paused_session_goes_on_once_it_is_raised(start: Callable[[], Flask]) -> None:
    """By command or on the page, which show it. The refusal says how to go on, and its wait is the
    idle time, which no client is asked to sit out."""
    app = start()
    key = {"x-api-key": new_key(app, "ada")}
    paused = next(r for r in (ask(app, {**key, **RUN}) for _ in range(90)) if r.status_code != 200)
    error = json_of(paused)["error"]
    assert (paused.status_code, error["code"]) == (429, "insufficient_quota")
    assert "'session-usd' exceeded: 0.005 usd per session" in error["message"]
    assert "ask the operator to raise it, or start another session" in error["message"]
    assert paused.headers["x-should-retry"] == "false"
    assert 1790 < int(paused.headers["Retry-After"]) <= 1800
    assert '"session-usd";q=5000;qu="micro-usd"' in paused.headers["RateLimit-Policy"]
    session = f"session:ada/{RUN[HEADER]}"
    runner = app.test_cli_runner()
    assert "session-usd" in runner.invoke(args=["ratelimit", "inspect", session]).output
    words = ["override", "set", session, "session-usd", "0.01 usd per session", "--until", "7d"]
    done = runner.invoke(args=["ratelimit", *words])
    assert done.exit_code == 0, done.output
    services_of(app).limiter._components.overrides.refresh()
    assert ask(app, {**key, **RUN}).status_code == 200
    admin = app.test_client()
    log_in(admin)
    assert "Raise a session" in admin.get("/admin/limits").text
    fields = {"identity": session, "limit": "session-usd", "amount": "0.02 usd per session"}
    assert send(admin, "put_override", **fields).status_code == 200
    services_of(app).limiter._components.overrides.refresh()
    policy = ask(app, {**key, **RUN}).headers["RateLimit-Policy"]
    assert '"session-usd";q=20000;qu="micro-usd"' in policy


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        (ANTHROPIC, {}, {"metadata": {"user_id": f'{{"session_id":"{RUN[HEADER]}"}}'}}),
        (ANTHROPIC, {}, {"metadata": {"user_id": f"user_5f_account__session_{RUN[HEADER]}"}}),
        (OPENAI, {"session-id": RUN[HEADER], "thread-id": "t1"}, {}),
        (OPENAI, {"session-id": RUN[HEADER], "thread-id": "t2"}, {}),
        (OPENAI, {"X-OpenWebUI-Chat-Id": RUN[HEADER]}, {}),
        (OPENAI, {}, {"metadata": {"session_id": RUN[HEADER]}}),
    ],
)
def test_agents_name_their_session(
    start: Callable[[], Flask], path: str, headers: dict[str, str], body: dict[str, object]
) -> None:
    """As Claude Code 2.1.332, whose subagents send the same, Codex 0.171, whose subagents have
    other threads of the session, Open WebUI 0.12.4 and others. Another caller's is another one."""
    app = start()
    ada, bob = ({"x-api-key": new_key(app, user)} for user in ("ada", "bob"))
    assert left(ask(app, {**ada, **RUN}))["session-calls"] == 299
    assert left(ask(app, {**ada, **headers}, path, **body))["session-calls"] == 298
    assert left(ask(app, {**bob, **headers}, path, **body))["session-calls"] == 299


def test_no_id_is_one_of_another_callers_session(start: Callable[[], Flask]) -> None:
    """A slash in an id does not end the name of a user."""
    app = start()
    ada, other = ({"x-api-key": new_key(app, user)} for user in ("ada", "ada/lab"))
    assert left(ask(app, {**other, HEADER: "1"}))["session-calls"] == 299
    assert left(ask(app, {**ada, HEADER: "lab/1"}))["session-calls"] == 299


def test_without_an_id_a_call_is_of_its_keys_session(start: Callable[[], Flask]) -> None:
    """A caller leaves a session by naming none, and has one more by that."""
    app = start()
    first, second = ({"x-api-key": new_key(app, "ada")} for _ in range(2))
    shown = [left(ask(app, key))["session-calls"] for key in (first, first, second)]
    assert shown == [299, 298, 299]
