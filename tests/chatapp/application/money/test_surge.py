"""A key with unusual spending is stopped long before its plan's budget is spent."""

import time
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from chatapp.catalogue import load
from chatapp.catalogue.usage import Usage
from tests.chatapp.conftest import AppMaker, whole
from tests.chatapp.upstream_server import Answer, UpstreamServer, openai_body

MODEL = "gpt-5.4"
HOUR_S = 3600
DAY_S = 24 * HOUR_S
PROBLEM = "application/problem+json"


class Clock:
    """The time of the limits, which passes on request. It begins at noon: a budget of a day would
    be full again at midnight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.time() // DAY_S * DAY_S + DAY_S / 2
        monkeypatch.setattr(time, "time", lambda: self.now_s)

    def forward(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def costing(dollars: float) -> Answer:
    """An answer with output of about that cost."""
    per_token = load().price(MODEL, Usage(0, 1_000_000)) / 1e12
    usage = {"prompt_tokens": 1, "completion_tokens": round(dollars / per_token)}
    return Answer(200, {**openai_body(model=MODEL), "usage": usage})


def made_key(app: Flask, user: str, *more: str) -> str:
    words = ["chat", "keys", "create", "--user", user, "--plan", "team", *more]
    return app.test_cli_runner().invoke(args=words).stdout.strip()


def ask(client: FlaskClient, key: str, **headers: str) -> Any:
    sent = {"Authorization": f"Bearer {key}", **headers}
    body = {"message": "ping", "model": MODEL}
    return whole(client, "/chat", json=body, headers=sent)


def test_a_runaway_key_is_stopped(
    make_app: AppMaker, provider: UpstreamServer, clock: Clock
) -> None:
    """Half a dollar an hour is usual: at 10 dollars within an hour the key is stopped until the
    hour ends, with the reason. The owner's other key continues, and so does the key in the next
    hour."""
    keys = [made_key(make_app(), "alice") for _ in range(2)]
    client = make_app().test_client()
    for _ in range(5):
        provider.script(costing(0.5))
        assert ask(client, keys[0]).status_code == 200
        clock.forward(HOUR_S)
    for _ in range(5):
        provider.script(costing(2.0))
        assert ask(client, keys[0]).status_code == 200
        clock.forward(60)
    stopped = ask(client, keys[0], Accept=PROBLEM)
    assert stopped.status_code == 429
    problem = stopped.get_json(force=True)
    assert problem["type"].endswith("#abnormal-usage-detected")
    assert problem["code"] == "abnormal_usage"
    assert stopped.headers["x-should-retry"] == "false"
    assert HOUR_S - 600 < int(stopped.headers["Retry-After"]) <= HOUR_S - 300
    assert ask(client, keys[1]).status_code == 200
    clock.forward(HOUR_S)
    assert ask(client, keys[0]).status_code == 200


def test_a_runaway_user_of_a_chat_ui_stops_no_other(
    make_app: AppMaker, provider: UpstreamServer, clock: Clock
) -> None:
    """All users of the UI share its key: one who is far above what is usual for all of them is held
    by their own budgets. Without a name, the key itself is stopped."""
    key = made_key(make_app(), "ui", "--acts-for-users")
    client = make_app().test_client()
    ann, bob = ({"X-OpenWebUI-User-Email": f"{name}@example.com"} for name in ("ann", "bob"))
    for _ in range(5):
        provider.script(costing(0.5))
        assert ask(client, key, **ann).status_code == 200
        provider.script(costing(0.5))
        assert ask(client, key).status_code == 200
        clock.forward(HOUR_S)
    for headers, calls in ((bob, 6), ({}, 5)):
        for _ in range(calls):
            provider.script(costing(2.0))
            assert ask(client, key, **headers).status_code == 200
            clock.forward(60)
        assert ask(client, key, **ann).status_code == 200
    assert ask(client, key, **bob).status_code == 200
    assert ask(client, key).status_code == 429


def test_a_new_key_is_limited_by_its_plan(
    make_app: AppMaker, provider: UpstreamServer, clock: Clock
) -> None:
    """It may begin with an expensive day."""
    key = made_key(make_app(), "alice")
    client = make_app().test_client()
    for _ in range(20):
        provider.script(costing(5.0))
        assert ask(client, key).status_code == 200
        clock.forward(10)
