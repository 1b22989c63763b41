"""POST /v1/messages/count_tokens: the provider's count, or an estimate. It is not a call."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapp.accounts.store import Accounts
from chatapp.catalogue import load
from chatapp.database.connection import Database
from chatapp.estimates.tokens import input_tokens
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, json_of, replace_services
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    COUNT_PATH,
    Answer,
    UpstreamServer,
    anthropic_error,
)
from tests.chatapp.web.test_identities import left
from tests.served import serving
from tests.servers import Server

MODEL = "claude-haiku-4-5"
MESSAGES: Any = [{"role": "user", "content": "ping"}]
BURST = 40


def count(client: FlaskClient, **fields: object) -> TestResponse:
    return client.post(COUNT_PATH, json={"model": MODEL, "messages": MESSAGES, **fields})


@pytest.fixture
def sdk(provider: UpstreamServer, make_app: AppMaker) -> Iterator[anthropic.Anthropic]:
    """The SDK in front of a real server in front of `provider`."""
    with (
        serving(make_app(CHATAPP_PROVIDER_TIMEOUT_S=5)) as url,
        anthropic.Anthropic(base_url=url, api_key="mine") as sdk,
    ):
        yield sdk


def test_the_sdk_gets_the_providers_count(sdk: anthropic.Anthropic) -> None:
    """And an estimate for the offline model."""
    assert sdk.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens == 23
    assert sdk.beta.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens == 23
    offline = sdk.messages.count_tokens(model="offline", messages=MESSAGES)
    assert 1 <= offline.input_tokens < 30


def test_request_and_answer_are_forwarded_byte_for_byte(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """With the headers and the parameter of the protocol."""
    sent = json.dumps(
        {"model": MODEL, "messages": MESSAGES, "system": "s", "max_tokens": 1, "new": [1.50]},
        indent=3,
    ).encode()
    answer = b'{"input_tokens":   7, "new": null}'
    provider.script(Answer(200, answer, {"request-id": "req_7"}))
    response = online.post(
        f"{COUNT_PATH}?beta=true&other=1",
        data=sent,
        content_type="application/json",
        headers={"anthropic-version": "2023-06-01", "anthropic-beta": "token-counting-2024-11-01"},
    )
    assert (response.status_code, response.data) == (200, answer)
    assert response.headers["request-id"] == "req_7"
    [call] = provider.calls
    assert (call.path, call.raw) == (f"{COUNT_PATH}?beta=true", sent)
    assert call.headers["anthropic-version"] == "2023-06-01"
    assert call.headers["anthropic-beta"] == "token-counting-2024-11-01"


def test_it_is_not_a_call(online: FlaskClient, ledger: RecordingLedger) -> None:
    """It charges no plan, no limit of user or model, no tokens and no dollars, and the ledger has
    no row."""
    replace_services(online.application, ledger=ledger)
    before = online.get("/usage").json
    answers = [count(online) for _ in range(14)]  # as Claude Code's /context
    assert Counter(answer.status_code for answer in answers) == {200: 14}
    assert set(left(answers[-1])) == {"ip", "count-tokens"}
    assert answers[-1].headers["anthropic-ratelimit-requests-limit"]
    after = online.get("/usage").json
    assert before is not None
    assert after is not None
    for then, now in zip(before["limits"], after["limits"], strict=True):
        if then["name"] != "ip":
            assert (now["name"], now["remaining"]) == (then["name"], then["remaining"])
    assert ledger.begun == []


def test_it_has_a_separate_limit(make_app: AppMaker, database_url: str) -> None:
    """By user, over all keys. Calls still pass when it is used up."""
    accounts = Accounts(Database(database_url))
    keys = [accounts.create_key("alice", plan="pro", default_plan="starter") for _ in range(2)]
    client = make_app().test_client()
    answers = []
    for number in range(BURST + 10):
        client.environ_base["HTTP_X_API_KEY"] = keys[number % 2].text
        answers.append(count(client, model="offline"))
    assert {answer.status_code for answer in answers[:BURST]} == {200}
    denied = answers[-1]
    assert (denied.status_code, denied.json and denied.json["error"]["type"]) == (
        429,
        "rate_limit_error",
    )
    body = {"model": "offline", "max_tokens": 10, "messages": MESSAGES}
    assert client.post(ANTHROPIC_PATH, json=body).status_code == 200


@pytest.mark.parametrize("status", [404, 405])
def test_a_provider_without_this_address_is_estimated(
    online: FlaskClient, provider: UpstreamServer, status: int
) -> None:
    """Servers that speak Anthropic's protocol need not have it."""
    provider.script(anthropic_error(status, kind="not_found_error"))
    response = count(online)
    model = load().model(MODEL, "anthropic")
    expected = input_tokens(model, {"model": MODEL, "messages": MESSAGES}).expected
    assert (response.status_code, response.json) == (200, {"input_tokens": expected})
    assert expected > 0
    assert response.headers["request-id"].startswith("req_")


ADDITIONS: dict[str, dict[str, object]] = {
    "system": {"system": [{"type": "text", "text": "be brief " * 40}]},
    "tools": {"tools": [{"name": "f", "description": "does it " * 40, "input_schema": {}}]},
    "thinking": {
        "messages": [
            *MESSAGES,
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "so " * 120}]},
        ]
    },
    "the result of a tool": {
        "messages": [{"role": "user", "content": [{"type": "tool_result", "content": "so " * 120}]}]
    },
    "a document": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "document", "source": {"type": "text", "data": "so " * 120}}],
            }
        ]
    },
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_the_estimate_counts_what_the_model_reads(client: FlaskClient, name: str) -> None:
    """Not only the text of the messages: 360 bytes are 90 tokens of the offline model."""
    answer = count(client, model="offline", **ADDITIONS[name]).json
    assert answer is not None
    assert 80 <= answer["input_tokens"] < 160


@pytest.mark.parametrize(
    ("words", "status"),
    [(["user", "alice"], 403), (["key"], 403), (["model", MODEL], 503), (["all"], 503)],
    ids=["user", "key", "model", "all"],
)
def test_the_switches_apply(
    make_app: AppMaker,
    redis_client: Any,
    redis_server: Server,
    provider: UpstreamServer,
    database_url: str,
    words: list[str],
    status: int,
) -> None:
    """A blocked user, key or model cannot count; after the block it can."""
    key = Accounts(Database(database_url)).create_key("alice", plan=None, default_plan="starter")
    app = make_app(RATELIMIT_STORAGE_URI=redis_server.uri)
    client = app.test_client()
    client.environ_base["HTTP_X_API_KEY"] = key.text
    named = [*words, key.public_id] if words == ["key"] else words
    run(app, "block", *named)
    response = count(client)
    assert response.status_code == status
    assert json_of(response)["type"] == "error"
    assert provider.calls == []
    run(app, "unblock", *named)
    assert count(client).status_code == 200
