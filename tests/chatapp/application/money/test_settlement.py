"""The real cost of calls, in limits and ledger: through the SDKs, to the micro-dollar."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from chatapp.services import services_of
from tests.chatapp.application.upstreams.workers import left
from tests.chatapp.conftest import json_of, replace_services, whole
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    Answer,
    Stream,
    UpstreamServer,
    openai_body,
    openai_chunks,
    openai_error,
)

MODEL = "gpt-5.4-mini"
BILLED = Usage(input_tokens=12, cached_input_tokens=8, output_tokens=5)
DOLLARS = {"usd-hour": 2.0, "usd-day": 5.0, "usd-month": 30.0}


def ask(client: FlaskClient, **more: object) -> Any:
    """Send one message, and read the answer to its end."""
    return whole(client, "/chat", json={"message": "ping", "model": MODEL, **more})


def price(usage: Usage = BILLED) -> int:
    return catalogue.load().price(MODEL, usage)


def test_a_whole_answer_costs_what_was_billed(online: FlaskClient) -> None:
    """Cached input at its price, nothing left of the estimate, and the slot is free again."""
    assert ask(online).status_code == 200
    remaining = left(online)
    assert price() > 0
    for name, budget in DOLLARS.items():
        assert round((budget - remaining[name]) * 1e6) == price()
    assert remaining["at-once"] == 4
    assert remaining["plan"] == 99


def test_a_stream_costs_what_was_billed(online: FlaskClient, provider: UpstreamServer) -> None:
    """Its usage comes last, and counts when the stream is over."""
    provider.script(Stream(openai_chunks()))
    assert ask(online, stream=True).status_code == 200
    remaining = left(online)
    assert round((5.0 - remaining["usd-day"]) * 1e6) == price()
    assert remaining["at-once"] == 4


@pytest.mark.parametrize(
    "trouble",
    [
        openai_error(500, code="trouble"),
        openai_error(429, code="trouble"),
        openai_error(503, code="trouble"),
        openai_error(529, code="trouble"),
    ],
    ids=["500", "429", "503", "529"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_failed_call_is_refunded(
    online: FlaskClient, provider: UpstreamServer, trouble: Answer, stream: bool
) -> None:
    """The day's calls, the tokens and the dollars, but not the request of the address."""
    before = left(online)
    provider.script(trouble)
    assert ask(online, stream=stream).status_code >= 500
    after = left(online)
    for name in ("plan", "at-once", *DOLLARS):
        assert after[name] == before[name], name
    assert after["ip"] < 20


def test_limits_and_ledger_agree(online: FlaskClient) -> None:
    """For answers, streams and failures."""
    ledger = RecordingLedger()
    replace_services(online.application, ledger=ledger)
    provider_calls = [{}, {"stream": True}, {}, {}]
    for more in provider_calls:
        ask(online, **more)
    spent = sum(call.cost_micro_usd for call in ledger.finished(len(provider_calls)))
    assert spent == round((5.0 - left(online)["usd-day"]) * 1e6) > 0


def test_a_prompt_above_the_plan_is_refused_before_it_is_sent(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """A call that exceeds the plan's whole minute costs nothing."""
    body = {"model": "gpt-5.4", "messages": [{"role": "user", "content": "word " * 240_000}]}
    before = left(online)
    with online.post("/v1/chat/completions", json={**body, "max_tokens": 120_000}) as response:
        assert response.status_code == 400
        assert json_of(response)["error"]["code"] == "request_too_large"
        assert "Retry-After" not in response.headers
    assert not provider.calls
    assert left(online)["usd-day"] == before["usd-day"]


def test_a_spent_budget_stops_the_sdk(online: FlaskClient) -> None:
    """429 `insufficient_quota` with an exact wait, and no retries."""
    limiter = services_of(online.application).limiter
    with online.application.test_request_context("/chat", method="POST"):
        for limit in limiter.limit_manager.resolve_limits(online.application, "chat.chat")[1]:
            if limit.limit.options.name == "usd-day":
                identity, scope = "ip:127.0.0.1", limit.scope_for("chat.chat", "POST")
                while limiter.limiter.hit(limit.limit, identity, scope, cost=1_000_000):
                    pass
                limiter.limiter.hit(limit.limit, identity, scope, cost=999_999)
    response = ask(online)
    assert (response.status_code, response.json["code"]) == (429, "insufficient_quota")
    assert response.headers["x-should-retry"] == "false"
    assert response.json["policy"] == "usd-day"


def test_a_body_without_usage_keeps_an_estimate(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """An answer without usage is charged by its size, never nothing."""
    body = openai_body(text="word " * 100)
    del body["usage"]
    provider.script(Answer(200, body))
    with online.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "ping"}]},
    ) as response:
        assert response.status_code == 200
    assert left(online)["usd-day"] < 5.0
