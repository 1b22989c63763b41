"""A provider refuses a key because of a spending cap or a lack of credit: another key serves the
call, the operator learns it, and no client reads of it."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.chatapp.application.upstreams.workers import MESSAGES, left
from tests.chatapp.conftest import AppMaker, raised_alerts, two_keys
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    EMBEDDINGS_PATH,
    FIRST,
    OPENAI_PATH,
    RESPONSES_PATH,
    SECOND,
    Answer,
    Stream,
    UpstreamServer,
    anthropic_error,
    anthropic_events,
    event,
    named,
    openai_chunks,
    openai_error,
    response_events,
)

BILLING = "Your plan and billing details: https://example.com/billing"
SOON = datetime.now(UTC) + timedelta(days=3)
SPECIFIED = f"API usage limits. You will regain access on {SOON:%Y-%m-%d} at 00:00 UTC."
OPENAI_CAPS = {
    "insufficient_quota": openai_error(429, code="insufficient_quota", message=BILLING),
    "billing_hard_limit_reached": openai_error(
        400, code="billing_hard_limit_reached", message=BILLING
    ),
    "billing_not_active": openai_error(403, code="billing_not_active", message=BILLING),
    **{
        code: openai_error(429, code=code, kind="insufficient_quota", message=BILLING)
        for code in (
            *("project_spend_limit_exceeded", "organization_spend_limit_exceeded"),
            *("organization_usage_limit_exceeded", "credit_balance_exhausted"),
            "a_code_of_next_year",
        )
    },
}


def _specified(whose: str) -> Answer:
    message = f"You have reached your specified {whose}{SPECIFIED}"
    return anthropic_error(400, kind="invalid_request_error", message=message)


ANTHROPIC_CAPS = {
    "specified": _specified(""),
    "specified workspace": _specified("workspace "),
    "credit balance": anthropic_error(
        400,
        kind="invalid_request_error",
        message="Your credit balance is too low to access the Anthropic API. Please go to Plans & "
        "Billing to upgrade or purchase credits.",
    ),
    "billing_error": anthropic_error(402, kind="billing_error", message=BILLING),
    "organization_on_hold": anthropic_error(
        400, kind="invalid_request_error", error_code="organization_on_hold", message=BILLING
    ),
    **{
        code: anthropic_error(429, kind="rate_limit_error", error_code=code, message=BILLING)
        for code in (
            "enforced_spend_limit_reached",
            "linked_organization_spend_limit_reached",
            "contract_usage_exhausted",
        )
    },
}
GPT, CLAUDE = "gpt-5.4-mini", "claude-haiku-4-5"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/chat", {"message": "ping"}),
    "chat stream": ("/chat", {"message": "ping", "stream": True}),
    "completions": (OPENAI_PATH, {"messages": MESSAGES}),
    "completions stream": (OPENAI_PATH, {"messages": MESSAGES, "stream": True}),
    "responses": (RESPONSES_PATH, {"input": "ping"}),
    "responses stream": (RESPONSES_PATH, {"input": "ping", "stream": True}),
    "embeddings": (EMBEDDINGS_PATH, {"model": "text-embedding-3-small", "input": "ping"}),
    "messages": (ANTHROPIC_PATH, {"messages": MESSAGES, "max_tokens": 9}),
    "messages stream": (ANTHROPIC_PATH, {"messages": MESSAGES, "max_tokens": 9, "stream": True}),
}
#: Each cap at a provider's main address, and one cap in every way.
CASES = [
    pytest.param(cap, way, model, id=f"{name}-{way}")
    for caps, model, paths in (
        (OPENAI_CAPS, GPT, (OPENAI_PATH, RESPONSES_PATH, EMBEDDINGS_PATH, "/chat")),
        (ANTHROPIC_CAPS, CLAUDE, (ANTHROPIC_PATH, "/chat")),
    )
    for name, cap in caps.items()
    for way, (path, _) in WAYS.items()
    if path == paths[0] or (path in paths and cap is next(iter(caps.values())))
]


@pytest.fixture
def client(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FlaskClient:
    """A client of an application with one attempt per call, and two keys for each protocol."""
    monkeypatch.setenv("KEY_1", FIRST)
    monkeypatch.setenv("KEY_2", SECOND)
    config = {"CHATAPP_PROVIDERS_FILE": two_keys(provider, tmp_path)}
    return make_app(CHATAPP_PROVIDER_ATTEMPTS=1, **config).test_client()


def ask(client: FlaskClient, way: str, model: str) -> Any:
    path, body = WAYS[way]
    return client.post(path, json={"model": model, **body})


def hides_billing(answer: Any) -> bool:
    text = answer.text.lower()
    return not any(
        word in text for word in ("billing", "credit", "secret-of", "--user", "usage limits")
    )


@pytest.mark.parametrize(("cap", "way", "model"), CASES)
def test_another_key_serves_the_same_call(
    client: FlaskClient, provider: UpstreamServer, cap: Answer, way: str, model: str
) -> None:
    """The capped one is left alone from then on."""
    provider.refuse(FIRST, cap)
    for _ in range(3):
        answer = ask(client, way, model)
        assert answer.status_code == 200, answer.text
        assert hides_billing(answer)
    assert provider.keys().count(FIRST) == 1
    assert provider.keys().count(SECOND) == 3


@pytest.mark.parametrize(("cap", "way", "model"), CASES)
def test_without_another_key_the_client_reads_no_bill(
    client: FlaskClient, provider: UpstreamServer, cap: Answer, way: str, model: str
) -> None:
    """A 502 that blames neither the request nor its sender, who is charged nothing."""
    before = left(client)
    del before["ip"]  # counts every request
    for key in (FIRST, SECOND):
        provider.refuse(key, cap)
    answer = ask(client, way, model)
    assert answer.status_code == 502
    assert "provider_refused" in answer.text
    assert hides_billing(answer)
    assert before.items() <= left(client).items()


BREAKS: dict[str, Callable[[], list[bytes]]] = {
    "completions stream": lambda: [
        *openai_chunks()[:2],
        event({"error": {"code": "x", "type": "insufficient_quota", "message": BILLING}}),
    ],
    "responses stream": lambda: [
        *response_events()[:4],
        response_events(
            end="failed", error={"code": "credit_balance_exhausted", "message": BILLING}
        )[-1],
    ],
    "messages stream": lambda: [
        *anthropic_events()[:4],
        named("error", error={"type": "billing_error", "message": BILLING}),
    ],
}


@pytest.mark.parametrize("way", BREAKS)
def test_a_cap_within_a_stream_is_hidden(
    client: FlaskClient, provider: UpstreamServer, way: str
) -> None:
    """The stream ends with an error, and its key rests."""
    provider.script(Stream(BREAKS[way]()))
    model = CLAUDE if way == "messages stream" else GPT
    answer = ask(client, way, model)
    assert b"provider_refused" in answer.data
    assert hides_billing(answer)
    (capped,) = provider.keys()
    for _ in range(3):
        assert ask(client, way, model).status_code == 200
    assert provider.keys().count(capped) == 1


def test_the_operator_learns_of_a_quota_by_the_day(
    client: FlaskClient, provider: UpstreamServer
) -> None:
    """Which the other key has left; the wait of a minute's quota is no news."""
    day = openai_error(429, code="rate_limit_exceeded", headers={"retry-after": "7200"})
    provider.refuse(FIRST, day)
    assert ask(client, "completions", GPT).status_code == 200
    (row,) = raised_alerts(client.application)
    assert (row["type"], row["identity"]) == ("key.exhausted", "openai/KEY_1")
    assert row["name"] == f"quota of openai/{GPT}"
    assert abs(row["resets_at"] - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)
    minute = openai_error(429, code="rate_limit_exceeded", headers={"retry-after": "20"})
    provider.refuse(SECOND, minute)
    ask(client, "completions", GPT)
    assert len(raised_alerts(client.application)) == 1


def test_the_operator_learns_of_a_cap(
    client: FlaskClient, provider: UpstreamServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An ERROR and an alert, once a day, with the date that the provider has named."""
    provider.refuse(FIRST, ANTHROPIC_CAPS["specified"])
    provider.refuse(SECOND, ANTHROPIC_CAPS["credit balance"])
    for _ in range(3):
        assert ask(client, "messages", CLAUDE).status_code == 502
    said = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    what = "of the upstream anthropic has reached a spending cap or has no credit left"
    assert said == [
        f"The key KEY_1 {what}. It is tried again at {SOON:%Y-%m-%d} 00:00 UTC.",
        f"The key KEY_2 {what}. It is tried again every 10 minutes.",
    ]
    for _ in range(2):
        raised = {row["identity"]: row for row in raised_alerts(client.application)}
    assert {row["type"] for row in raised.values()} == {"key.capped"}
    assert f"{raised['anthropic/KEY_1']['resets_at']:%Y-%m-%d}" == f"{SOON:%Y-%m-%d}"
    assert raised["anthropic/KEY_2"]["resets_at"] is None
    assert any(
        each.message == f"The key KEY_2 {what}. Its provider refuses it for now."
        for each in caplog.records
    )


@pytest.mark.parametrize(
    "message",
    [
        f"You have reached your specified {SPECIFIED}: Extra inputs are not permitted",
        "Your credit balance is too low: Extra inputs are not permitted",
        "messages.0.content: Your credit balance is too low",
    ],
)
def test_no_caller_can_have_a_key_set_aside(
    client: FlaskClient, provider: UpstreamServer, message: str
) -> None:
    """Anthropic's complaint about a field begins with the field's name, which a caller chooses."""
    provider.script(anthropic_error(400, kind="invalid_request_error", message=message))
    assert ask(client, "messages", CLAUDE).status_code == 400
    for _ in range(3):
        assert ask(client, "messages", CLAUDE).status_code == 200
    assert {*provider.keys()[1:]} == {FIRST, SECOND}


def test_a_ramp_limit_is_no_cap(client: FlaskClient, provider: UpstreamServer) -> None:
    """It names its wait, like any rate limit."""
    error = anthropic_error(
        429, kind="rate_limit_error", error_code="ramp_limit_exceeded", headers={"retry-after": "7"}
    )
    for key in (FIRST, SECOND):
        provider.refuse(key, error)
    refused = ask(client, "messages", CLAUDE)
    assert (refused.status_code, refused.headers["Retry-After"]) == (529, "7")


def test_a_count_needs_no_key(client: FlaskClient, provider: UpstreamServer) -> None:
    """The tokens of a prompt are estimated while the provider does not count them."""
    for key in (FIRST, SECOND):
        provider.refuse(key, ANTHROPIC_CAPS["specified"])
    body = {"model": CLAUDE, "messages": MESSAGES}
    counted = client.post(f"{ANTHROPIC_PATH}/count_tokens", json=body)
    assert counted.status_code == 200
    assert counted.json["input_tokens"] > 0
