"""The guard before the providers, in the whole application: real SDKs, a real server, two workers
on one storage."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from chatapp import catalogue
from chatapp.ledger.call import EXTENSION_KEY as LEDGER_KEY
from chatapp.providers import Usage
from tests.chatapp.conftest import AppMaker
from tests.chatapp.provider_server import (
    ANTHROPIC_PATH,
    OPENAI_PATH,
    Answer,
    ProviderServer,
    Stream,
    anthropic_error,
    anthropic_events,
    named,
    openai_body,
    openai_error,
)
from tests.chatapp.recording_ledger import RecordingLedger

OPENAI, ANTHROPIC = "gpt-5.4-mini", "claude-haiku-4-5"
SMALLER = "gpt-5.4-nano"
MESSAGES = [{"role": "user", "content": "ping"}]
DOLLARS = {"usd-hour": 2.0, "usd-day": 5.0, "usd-month": 30.0}


class Workers:
    """Two applications on one Redis, as two processes have them."""

    def __init__(self, make_app: AppMaker, uri: str, **config: object) -> None:
        common = {"RATELIMIT_STORAGE_URI": uri, "CHATAPP_PROVIDER_TIMEOUT_S": 2, **config}
        apps = [make_app(**common) for _ in range(2)]
        self.ledger = RecordingLedger()
        for app in apps:
            app.extensions[LEDGER_KEY] = self.ledger
        self.one, self.other = (app.test_client() for app in apps)


@pytest.fixture
def uri(redis_client: Any, redis_server: Any) -> str:
    """An empty storage."""
    return str(redis_server.uri)


@pytest.fixture
def workers(make_app: AppMaker, provider: ProviderServer, uri: str) -> Workers:
    return Workers(make_app, uri)


def chat(client: FlaskClient, model: str = OPENAI, **more: object) -> Any:
    """One message, read to its end."""
    with client.post("/chat", json={"message": "ping", "model": model, **more}) as response:
        response.get_data()
        return response


def left(client: FlaskClient) -> dict[str, float]:
    response = client.get("/usage")
    assert response.json is not None
    return {limit["name"]: limit["remaining"] for limit in response.json["limits"]}


def busy(retry_after: str | None = None, status: int = 429) -> Answer:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return openai_error(status, code="rate_limit_exceeded", headers=headers)


# -- cooling down ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_all_workers_obey_within_one_request(
    workers: Workers, provider: ProviderServer, status: int
) -> None:
    """OpenAI asks one worker for 7 s: the other does not ask it, and tells its caller the wait."""
    provider.script(busy("7", status))
    refused = chat(workers.one)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "7")
    asked = len(provider.calls)
    denied = chat(workers.other)
    assert (denied.status_code, denied.json["code"]) == (503, "server_is_overloaded")
    assert 6000 < int(denied.headers["retry-after-ms"]) <= 7000
    assert "no room" in denied.json["error"]
    assert len(provider.calls) == asked == 1


@pytest.mark.parametrize(
    ("refusal", "wait_ms"),
    [
        (anthropic_error(429, kind="rate_limit_error", headers={"retry-after": "9"}), 9000),
        (anthropic_error(529, kind="overloaded_error", headers={"retry-after": "5"}), 5000),
    ],
)
def test_anthropic_is_left_alone_as_well(
    workers: Workers, provider: ProviderServer, refusal: Answer, wait_ms: int
) -> None:
    """In its own protocol's shape."""
    provider.script(refusal)
    body = {"model": ANTHROPIC, "max_tokens": 9, "messages": MESSAGES}
    assert workers.one.post("/v1/messages", json=body).status_code == 503
    denied = workers.other.post("/v1/messages", json=body)
    assert denied.status_code == 503
    assert denied.json is not None
    assert denied.json["error"]["type"] == "overloaded_error"
    assert denied.json["error"]["details"]["error_code"] == "server_is_overloaded"
    assert wait_ms - 1000 < int(denied.headers["retry-after-ms"]) <= wait_ms
    assert len(provider.calls) == 1


def test_others_models_go_on(workers: Workers, provider: ProviderServer) -> None:
    """A cool-down is of one model's family; dated names of it are the same."""
    provider.script(busy("7"))
    chat(workers.one)
    assert chat(workers.other, SMALLER).status_code == 200
    assert chat(workers.other, ANTHROPIC).status_code == 200
    assert chat(workers.other, f"{OPENAI}-2026-03-17").status_code == 503


def test_a_model_that_is_not_listed_cools_down_alone(
    workers: Workers, provider: ProviderServer
) -> None:
    """Those without a price of their own share an allowance, and not a provider's pause."""
    provider.script(busy("7"))
    assert chat(workers.one, "gpt-99-new").status_code == 503
    assert chat(workers.other, "gpt-99-new").status_code == 503
    assert chat(workers.other, "gpt-98-new").status_code == 200


TOO_LARGE = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 36278."


def test_somebody_elses_huge_request_stops_nobody(
    workers: Workers, provider: ProviderServer
) -> None:
    """OpenAI refuses a request that is above the quota of a minute with a 429: its sender is told
    that it never fits, in either shape, and everybody else goes on."""
    body = {"model": OPENAI, "messages": MESSAGES}
    provider.script(*[openai_error(429, code="rate_limit_exceeded", message=TOO_LARGE)] * 2)
    refused = chat(workers.one)
    assert (refused.status_code, refused.json["code"]) == (400, "request_too_large")
    told = workers.one.post("/v1/chat/completions", json=body)
    assert (told.status_code, told.json["error"]["code"]) == (400, "request_too_large")
    for answer in (refused, told):
        assert "Retry-After" not in answer.headers
        assert "organization" not in answer.text
    assert len(provider.calls) == 2
    assert chat(workers.other).status_code == 200


def test_a_prompt_above_anthropics_quota_stops_nobody(
    workers: Workers, provider: ProviderServer
) -> None:
    """Anthropic's sentence is the same for both, and its headers tell: 100 tokens a minute, and a
    prompt of thousands."""
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "100",
        "anthropic-ratelimit-input-tokens-remaining": "100",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-25T00:00:00Z",
        "retry-after": "30",
    }
    provider.script(anthropic_error(429, kind="rate_limit_error", headers=headers))
    body = {"message": "word " * 4000, "model": ANTHROPIC}
    assert workers.one.post("/chat", json=body).status_code == 503
    assert len(provider.calls) == 1
    assert chat(workers.other, ANTHROPIC).status_code == 200


def test_a_cool_down_costs_its_callers_nothing(workers: Workers, provider: ProviderServer) -> None:
    """No call of the day, no token, no dollar: neither the one that was refused nor the denied."""
    before = left(workers.one)
    provider.script(busy("7"))
    chat(workers.one)
    for _ in range(3):
        chat(workers.other)
    after = left(workers.one)
    for name in ("plan", "at-once", "tokens", *DOLLARS):
        assert after[name] == before[name]


def test_an_error_in_a_stream_cools_down_too(workers: Workers, provider: ProviderServer) -> None:
    """`event: error` in a 200: who comes next is not sent into it."""
    overloaded = named("error", error={"type": "overloaded_error", "message": "no"})
    provider.script(Stream([*anthropic_events()[:4], overloaded]))
    assert b"overloaded" in chat(workers.one, ANTHROPIC, stream=True).data
    denied = chat(workers.other, ANTHROPIC)
    assert denied.status_code == 503
    assert int(denied.headers["retry-after-ms"]) <= 1000
    assert len(provider.calls) == 1


# -- attempts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_short_pause_is_waited_out(
    workers: Workers, provider: ProviderServer, stream: bool
) -> None:
    """The caller sees the answer, the ledger two attempts, and the bill one."""
    provider.script(openai_error(429, code="slow_down", headers={"retry-after-ms": "50"}))
    assert chat(workers.one, stream=stream).status_code == 200
    assert len(provider.calls) == 2
    (call,) = workers.ledger.finished()
    assert (call.attempts, call.status) == (2, "answered")
    bill = catalogue.load().price(OPENAI, Usage(12, 5, cached_input_tokens=8))
    assert call.cost_micro_usd == bill
    remaining = left(workers.one)
    for name, budget in DOLLARS.items():
        assert round((budget - remaining[name]) * 1e6) == bill
    assert remaining["plan"] == 99


def test_attempts_end(workers: Workers, provider: ProviderServer) -> None:
    """Two by default, and the caller is told to come again."""
    headers = {"retry-after-ms": "20"}
    provider.script(*[openai_error(503, code="server_is_overloaded", headers=headers)] * 5)
    assert chat(workers.one).status_code == 503
    assert len(provider.calls) == 2
    (call,) = workers.ledger.finished()
    assert (call.attempts, call.cost_micro_usd) == (2, 0)


def test_a_failure_inside_is_tried_again(workers: Workers, provider: ProviderServer) -> None:
    """A 500 was not answered, and another attempt may be."""
    provider.script(Answer(500, {"error": {"message": "no"}}))
    assert chat(workers.one).status_code == 200
    assert len(provider.calls) == 2


def test_a_timeout_is_not_tried_again(
    make_app: AppMaker, provider: ProviderServer, uri: str
) -> None:
    """It may have been billed."""
    workers = Workers(make_app, uri, CHATAPP_PROVIDER_TIMEOUT_S=0.3)
    provider.silence()
    assert chat(workers.one).status_code == 504
    assert len(provider.calls) == 1


# -- learned quotas ----------------------------------------------------------------------------


def told(**quotas: tuple[int, int, str]) -> dict[str, str]:
    """OpenAI's headers."""
    headers = {}
    for unit, (limit, remaining, reset) in quotas.items():
        headers |= {
            f"x-ratelimit-limit-{unit}": str(limit),
            f"x-ratelimit-remaining-{unit}": str(remaining),
            f"x-ratelimit-reset-{unit}": reset,
        }
    return headers


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_a_quota_that_is_used_up_is_not_overrun(
    workers: Workers, provider: ProviderServer, unit: str
) -> None:
    """An answer says that nothing is left: the other worker's caller is told to wait, and OpenAI
    is not asked."""
    headers = told(**{unit: (60, 0, "60s")})
    provider.script(Answer(200, openai_body(), headers))
    assert chat(workers.one).status_code == 200
    denied = chat(workers.other)
    assert (denied.status_code, denied.json["code"]) == (503, "server_is_overloaded")
    assert 0 < int(denied.headers["retry-after-ms"]) <= 60_000
    assert len(provider.calls) == 1


def test_what_is_left_can_be_used(workers: Workers, provider: ProviderServer) -> None:
    """Two of sixty are left: two pass, whichever worker they meet, and the third waits."""
    provider.script(Answer(200, openai_body(), told(requests=(60, 2, "58s"))))
    answers = [chat(client).status_code for client in (workers.one, workers.other, workers.one)]
    assert answers == [200, 200, 200]
    assert chat(workers.other).status_code == 503


def test_a_cached_prompt_is_not_counted_by_anthropic(
    workers: Workers, provider: ProviderServer
) -> None:
    """Of a limit of 2,000 input tokens a prompt of 20,000 that is cached leaves most: the next
    call passes."""
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "2000",
        "anthropic-ratelimit-input-tokens-remaining": "1900",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-25T00:00:00Z",
    }
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": ANTHROPIC,
        "content": [{"type": "text", "text": "pong"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 12, "output_tokens": 5, "cache_read_input_tokens": 20_000},
    }
    provider.script(*[Answer(200, body, headers)] * 4)
    cached = [{"type": "text", "text": "x " * 9000, "cache_control": {"type": "ephemeral"}}]
    asked = {"model": ANTHROPIC, "max_tokens": 9, "system": cached, "messages": MESSAGES}
    for client in (workers.one, workers.other, workers.one, workers.other):
        assert client.post("/v1/messages", json=asked).status_code == 200


# -- a second choice ---------------------------------------------------------------------------


@pytest.fixture
def choosy(make_app: AppMaker, provider: ProviderServer, uri: str) -> Workers:
    """Workers whose models have another to fall back to."""
    fallbacks = {OPENAI: ANTHROPIC, ANTHROPIC: SMALLER}
    return Workers(make_app, uri, CHATAPP_FALLBACK_MODELS=fallbacks)


def test_a_second_choice_answers_in_its_place(choosy: Workers, provider: ProviderServer) -> None:
    """At the refusal, and from then on without asking the first; billed and counted as what it is,
    in the ledger under both names."""
    provider.script(busy("7"))
    first = chat(choosy.one)
    assert (first.status_code, first.json["model"]) == (200, ANTHROPIC)
    second = chat(choosy.other, stream=True)
    assert second.status_code == 200
    assert [call.path for call in provider.calls] == [OPENAI_PATH, ANTHROPIC_PATH, ANTHROPIC_PATH]
    bill = catalogue.load().price(
        ANTHROPIC, Usage(23, 5, cached_input_tokens=8, cache_write_tokens=3)
    )
    calls = choosy.ledger.finished(2)
    assert [(c.model, c.slug, c.provider, c.cost_micro_usd) for c in calls] == [
        (OPENAI, ANTHROPIC, "anthropic", bill)
    ] * 2
    assert [call.attempts for call in calls] == [2, 1]
    remaining = left(choosy.one)
    assert round((5.0 - remaining["usd-day"]) * 1e6) == 2 * bill
    assert remaining["plan"] == 98


def test_the_ledger_agrees_with_a_second_choice(
    make_app: AppMaker, provider: ProviderServer, uri: str
) -> None:
    """The database has the call under the model that answered, and its price."""
    fallbacks = {OPENAI: ANTHROPIC}
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_FALLBACK_MODELS=fallbacks)
    provider.script(busy("7"))
    assert chat(app.test_client()).status_code == 200
    assert app.extensions[LEDGER_KEY].flush()
    checked = app.test_cli_runner().invoke(args=["chat", "ledger", "check"])
    assert checked.exit_code == 0, checked.output
    assert "limits of 1 users compared; 0 problems" in checked.output


def test_a_second_choice_has_none_of_its_own(choosy: Workers, provider: ProviderServer) -> None:
    """Where both cool down the caller is told, and nobody is asked a third."""
    provider.script(busy("7"), anthropic_error(529, kind="overloaded_error"))
    assert chat(choosy.one).status_code == 503
    assert chat(choosy.other).status_code == 503
    assert len(provider.calls) == 2


def test_a_vendors_endpoint_falls_back_within_its_protocol(
    make_app: AppMaker, provider: ProviderServer, uri: str
) -> None:
    """The body is handed on with another model's name in it, and nothing else changed."""
    workers = Workers(make_app, uri, CHATAPP_FALLBACK_MODELS={OPENAI: SMALLER})
    provider.script(busy("7"))
    body = {"model": OPENAI, "messages": MESSAGES, "seed": 7}
    answered = workers.one.post("/v1/chat/completions", json=body)
    assert answered.status_code == 200
    assert answered.json is not None
    assert answered.json["model"] == SMALLER
    assert provider.calls[-1].body == {**body, "model": SMALLER}
    again = workers.other.post("/v1/chat/completions", json=body)
    assert again.status_code == 200
    assert len(provider.calls) == 3


def test_no_request_is_translated(choosy: Workers, provider: ProviderServer) -> None:
    """At OpenAI's endpoint a second choice of Anthropic's is none."""
    provider.script(busy("7"))
    body = {"model": OPENAI, "messages": MESSAGES}
    assert choosy.one.post("/v1/chat/completions", json=body).status_code == 503
    assert choosy.other.post("/v1/chat/completions", json=body).status_code == 503
    assert len(provider.calls) == 1


def test_a_second_choice_is_no_way_around_a_block(
    choosy: Workers, provider: ProviderServer
) -> None:
    """What an operator has switched off stays off."""
    app = choosy.one.application
    with app.app_context():
        app.extensions["chatapp.limiter"].block("blocked-model", OPENAI, reason="closed")
    refused = chat(choosy.one)
    assert (refused.status_code, refused.json["code"]) == (503, "switched_off")
    assert provider.calls == []
