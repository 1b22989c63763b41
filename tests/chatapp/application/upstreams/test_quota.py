"""The guard in front of the providers, in the whole application: real SDKs, a real server, two
workers on one storage."""

import time
from typing import Any

import httpcore2
import pytest

from chatapp import catalogue
from chatapp.calls.throttle import RECENT_S, Throttle
from chatapp.catalogue.usage import Usage
from chatapp.services import services_of
from chatapp.upstreams import Quota, UpstreamError
from chatapp.upstreams.anthropic import PROTOCOL as ANTHROPIC_PROTOCOL
from chatapp.upstreams.openai import PROTOCOL as OPENAI_PROTOCOL
from chatapp.upstreams.sdk import UpstreamProtocol, upstream_errors
from chatapp.upstreams.transport import network_errors
from chatapp.web.call_limits import RequestLimits
from tests.chatapp.application.upstreams.workers import (
    ANTHROPIC,
    MESSAGES,
    OPENAI,
    SMALLER,
    MakeWorkers,
    Workers,
    busy,
    chat,
    left,
    quota_headers,
)
from tests.chatapp.conftest import GROUPS, AppMaker, json_of, replace_services
from tests.chatapp.upstream_server import (
    Answer,
    Stream,
    UpstreamServer,
    anthropic_error,
    anthropic_events,
    named,
    openai_body,
    openai_error,
)

DOLLARS = {"usd-hour": 2.0, "usd-day": 5.0, "usd-month": 30.0}


def assert_waits(denied: Any, wait_ms: int, begin: float) -> None:
    """It states this wait, which began after the moment, and what has passed of it at most."""
    passed_ms = 1000 * (time.monotonic() - begin)
    assert wait_ms - passed_ms - 1 <= int(denied.headers["retry-after-ms"]) <= wait_ms


# -- cooling down ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_a_cool_down_applies_to_all_workers_at_once(workers: Workers, status: int) -> None:
    """OpenAI names a wait of 7 s to one worker: the other does not call it, and its client gets the
    wait."""
    workers.provider.script(busy("7", status))
    begin = time.monotonic()
    refused = chat(workers.one)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "7")
    asked = len(workers.provider.calls)
    denied = chat(workers.other)
    assert (denied.status_code, denied.json["code"]) == (503, "server_is_overloaded")
    assert_waits(denied, 7000, begin)
    assert "is overloaded" in denied.json["error"]
    assert len(workers.provider.calls) == asked == 1


@pytest.mark.parametrize(
    ("refusal", "wait_ms"),
    [
        (anthropic_error(429, kind="rate_limit_error", headers={"retry-after": "9"}), 9000),
        (anthropic_error(529, kind="overloaded_error", headers={"retry-after": "5"}), 5000),
    ],
)
def test_a_cool_down_has_anthropics_format(workers: Workers, refusal: Answer, wait_ms: int) -> None:
    """At its endpoint."""
    workers.provider.script(refusal)
    body = {"model": ANTHROPIC, "max_tokens": 9, "messages": MESSAGES}
    begin = time.monotonic()
    assert workers.one.post("/v1/messages", json=body).status_code == 529
    denied = workers.other.post("/v1/messages", json=body)
    assert denied.status_code == 529
    assert json_of(denied)["error"]["type"] == "overloaded_error"
    assert denied.json["error"]["details"]["error_code"] == "server_is_overloaded"
    assert_waits(denied, wait_ms, begin)
    assert len(workers.provider.calls) == 1


def test_a_short_wait_is_waited_for(make_workers: MakeWorkers) -> None:
    """At either worker a call is answered after it, and the provider is not called before."""
    workers = make_workers(CHATAPP_PROVIDER_ATTEMPTS=1)
    workers.provider.script(busy("1"))
    assert chat(workers.one).status_code == 503
    assert [chat(client).status_code for client in (workers.other, workers.one)] == [200, 200]
    assert len(workers.provider.calls) == 3


def test_few_threads_wait(make_workers: MakeWorkers) -> None:
    """A request for which no place is left is refused at once."""
    workers = make_workers(CHATAPP_PROVIDER_ATTEMPTS=1, RATELIMIT_WAITING_MAX=1)
    with workers.other.application.test_request_context():
        assert services_of(workers.other.application).limiter.current.places.acquire()
    workers.provider.script(busy("2"))
    assert chat(workers.one).status_code == 503
    denied = chat(workers.other)
    assert (denied.status_code, denied.json["code"]) == (503, "server_is_overloaded")
    assert "x-should-retry" not in denied.headers
    assert len(workers.provider.calls) == 1


def test_other_models_are_not_affected(workers: Workers) -> None:
    """A cool-down is of one model's family, including its dated names."""
    workers.provider.script(busy("7"))
    chat(workers.one)
    assert chat(workers.other, SMALLER).status_code == 200
    assert chat(workers.other, ANTHROPIC).status_code == 200
    assert chat(workers.other, f"{OPENAI}-2026-03-17").status_code == 503


def test_an_unlisted_model_cools_down_alone(workers: Workers) -> None:
    """Unlisted models share a limit, but not a cool-down."""
    workers.provider.script(busy("7"))
    assert chat(workers.one, "gpt-99-new").status_code == 503
    assert chat(workers.other, "gpt-99-new").status_code == 503
    assert chat(workers.other, "gpt-98-new").status_code == 200


@pytest.mark.parametrize(
    ("path", "model", "special"),
    [
        ("/v1/messages", "claude-opus-5", {"speed": "fast"}),
        ("/v1/chat/completions", "gpt-5.4", {"service_tier": "priority"}),
        ("/v1/messages", "claude-sonnet-4-5", {"system": "word " * 150_000}),
    ],
    ids=["fast mode", "priority", "long context"],
)
def test_a_special_tiers_refusal_stops_no_other_call(
    workers: Workers, path: str, model: str, special: dict[str, str]
) -> None:
    """A tier has separate limits, which few may use: its callers get its wait, and all other calls
    continue."""
    refusal = anthropic_error(429, kind="rate_limit_error", headers={"retry-after": "3000"})
    workers.provider.script(refusal if path == "/v1/messages" else busy("3000"))
    body = {"model": model, "max_tokens": 9, "messages": MESSAGES}
    refused = workers.one.post(path, json={**body, **special})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3000")
    assert workers.other.post(path, json=body).status_code == 200


def test_no_pause_is_longer_than_a_minute(workers: Workers) -> None:
    """Even if a provider names a longer wait, a few calls try again after a minute."""
    workers.provider.script(busy("3000"))
    begin = time.monotonic()
    assert chat(workers.one).headers["Retry-After"] == "3000"
    denied = chat(workers.other)
    assert denied.status_code == 503
    assert_waits(denied, 60_000, begin)


TOO_LARGE = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 36278."


def test_a_request_above_the_quota_stops_no_other_call(workers: Workers) -> None:
    """OpenAI refuses it with a 429. Its sender learns that it never fits, in either format."""
    body = {"model": OPENAI, "messages": MESSAGES}
    workers.provider.script(*[openai_error(429, code="rate_limit_exceeded", message=TOO_LARGE)] * 2)
    refused = chat(workers.one)
    assert (refused.status_code, refused.json["code"]) == (400, "request_too_large")
    by_sdk = workers.one.post("/v1/chat/completions", json=body)
    assert (by_sdk.status_code, by_sdk.json["error"]["code"]) == (400, "request_too_large")
    for answer in (refused, by_sdk):
        assert "Retry-After" not in answer.headers
        assert "organization" not in answer.text
    assert len(workers.provider.calls) == 2
    assert chat(workers.other).status_code == 200


@pytest.mark.parametrize("cached", [False, True])
def test_a_prompt_above_anthropics_quota_stops_no_other_call(
    workers: Workers, cached: bool
) -> None:
    """Anthropic's message is the same for both, and its headers show it: 100 tokens a minute, and a
    prompt of thousands, cached or not."""
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "100",
        "anthropic-ratelimit-input-tokens-remaining": "100",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-25T00:00:00Z",
        "retry-after": "30",
    }
    workers.provider.script(anthropic_error(429, kind="rate_limit_error", headers=headers))
    text: dict[str, object] = {"type": "text", "text": "word " * 4000}
    if cached:
        text["cache_control"] = {"type": "ephemeral"}
    body = {"model": ANTHROPIC, "max_tokens": 9, "messages": [{"role": "user", "content": [text]}]}
    assert workers.one.post("/v1/messages", json=body).status_code == 529
    assert len(workers.provider.calls) == 1
    assert chat(workers.other, ANTHROPIC).status_code == 200


def test_a_tier_without_capacity_stops_no_other_call(workers: Workers) -> None:
    """OpenAI refuses a call of the tier `flex`, which its caller chose."""
    body = {"model": OPENAI, "messages": MESSAGES, "service_tier": "flex"}
    refusal = openai_error(429, code="resource_unavailable", message="Resource Unavailable")
    workers.provider.script(refusal, refusal)
    assert workers.one.post("/v1/chat/completions", json=body).status_code == 502
    assert chat(workers.other).status_code == 200


def test_a_request_without_a_model_has_no_fallback(
    make_app: AppMaker, uri: str, tmp_path: Any
) -> None:
    """An overload of the whole application is a 503 for the page, too."""
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'version = 1\n{GROUPS}[[application]]\nlimit = "unless blocked"\nname = "whole"\n'
        'key = "global"\n'
    )
    app = make_app(RATELIMIT_STORAGE_URI=uri, RATELIMIT_POLICY_FILE=str(policy))
    with app.app_context():
        services_of(app).limiter.operators.block("whole", "*", for_s=9, reason="overloaded")
    assert app.test_client().get("/usage").status_code == 503


def test_a_cool_down_costs_its_callers_nothing(workers: Workers) -> None:
    """No call, token or dollar is charged, neither for the refused call nor for the denied one."""
    before = left(workers.one)
    workers.provider.script(busy("7"))
    chat(workers.one)
    for _ in range(3):
        chat(workers.other)
    after = left(workers.one)
    for name in ("plan", "at-once", "tokens", *DOLLARS):
        assert after[name] == before[name]


IN_STREAM = named("error", error={"type": "overloaded_error", "message": "no"})


@pytest.mark.parametrize("in_stream", [False, True])
def test_a_model_that_names_no_wait_stays_open(
    make_app: AppMaker, provider: UpstreamServer, uri: str, in_stream: bool
) -> None:
    """One refusal concerns its own call. When it refuses all, the worker sends a part of the calls,
    and all of them a second later."""
    now = [0.0]
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_PROVIDER_ATTEMPTS=1)
    replace_services(app, throttle=Throttle(clock=lambda: now[0]))
    client = app.test_client()
    refusal = anthropic_error(529, kind="overloaded_error")
    broken: Answer | Stream = Stream([*anthropic_events()[:4], IN_STREAM])
    provider.script(broken if in_stream else refusal)
    assert b"overloaded" in chat(client, ANTHROPIC, stream=in_stream).data
    assert chat(client, ANTHROPIC).status_code == 200
    provider.calls.clear()
    now[0] += RECENT_S
    provider.script(*[broken if in_stream else refusal] * 40)
    for number in range(40):
        client.environ_base["REMOTE_ADDR"] = f"192.0.2.{number}"
        answer = chat(client, ANTHROPIC, stream=in_stream)
        assert b"overloaded" in answer.data
        if answer.status_code != 200:  # a refused stream has begun
            assert answer.headers["Retry-After"] == "5"
            assert "x-should-retry" not in answer.headers
    assert 10 <= len(provider.calls) <= 30
    provider.end_script()
    now[0] += RECENT_S
    for number in range(20):
        client.environ_base["REMOTE_ADDR"] = f"192.0.2.{number}"
        assert chat(client, ANTHROPIC).status_code == 200


# -- attempts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_short_pause_is_waited_out(workers: Workers, stream: bool) -> None:
    """The caller gets the answer, the ledger has two attempts, and the bill one call."""
    workers.provider.script(openai_error(429, code="slow_down", headers={"retry-after-ms": "50"}))
    assert chat(workers.one, stream=stream).status_code == 200
    assert len(workers.provider.calls) == 2
    (call,) = workers.ledger.finished()
    assert (call.attempts, call.status) == (2, "answered")
    bill = catalogue.load().price(OPENAI, Usage(12, 5, cached_input_tokens=8))
    assert call.cost_micro_usd == bill
    remaining = left(workers.one)
    for name, budget in DOLLARS.items():
        assert round((budget - remaining[name]) * 1e6) == bill
    assert remaining["plan"] == 99


def test_attempts_are_bounded(workers: Workers) -> None:
    """Two by default, and the client gets a wait."""
    headers = {"retry-after-ms": "20"}
    workers.provider.script(*[openai_error(503, code="server_is_overloaded", headers=headers)] * 5)
    assert chat(workers.one).status_code == 503
    assert len(workers.provider.calls) == 2
    (call,) = workers.ledger.finished()
    assert (call.attempts, call.cost_micro_usd) == (2, 0)


def test_an_internal_error_is_retried(workers: Workers) -> None:
    """Another attempt may succeed after a 500."""
    workers.provider.script(Answer(500, {"error": {"message": "no"}}))
    assert chat(workers.one).status_code == 200
    assert len(workers.provider.calls) == 2


def test_a_timeout_is_not_retried(make_workers: MakeWorkers) -> None:
    """It may have been billed."""
    workers = make_workers(CHATAPP_PROVIDER_TIMEOUT_S=0.3)
    workers.provider.silence()
    assert chat(workers.one).status_code == 504
    (call,) = workers.ledger.finished()
    assert (call.status, call.attempts) == ("timeout", 1)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [(httpcore2.ConnectTimeout("no"), "unavailable"), (TimeoutError("no"), "timeout")],
    ids=["no connection", "no answer"],
)
@pytest.mark.parametrize(
    "protocol", [OPENAI_PROTOCOL, ANTHROPIC_PROTOCOL], ids=["openai", "anthropic"]
)
def test_a_connect_timeout_is_retried(
    protocol: UpstreamProtocol, cause: Exception, kind: str
) -> None:
    """Only a provider that has read the prompt can bill it."""
    with pytest.raises(UpstreamError) as failed, upstream_errors(protocol), network_errors():
        raise cause
    assert failed.value.kind == kind


# -- learned quotas ----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_a_used_up_quota_is_respected(workers: Workers, unit: str) -> None:
    """An answer reports that nothing is left: the other worker's client gets a wait, and OpenAI is
    not called."""
    headers = quota_headers(**{unit: (60, 0, "60s")})
    workers.provider.script(Answer(200, openai_body(), headers))
    assert chat(workers.one).status_code == 200
    denied = chat(workers.other)
    assert (denied.status_code, denied.json["code"]) == (503, "server_is_overloaded")
    assert 0 < int(denied.headers["retry-after-ms"]) <= 60_000
    assert len(workers.provider.calls) == 1


def test_the_rest_of_a_quota_can_be_used(workers: Workers) -> None:
    """Two of sixty are left: two calls pass, at either worker, and the third waits."""
    workers.provider.script(Answer(200, openai_body(), quota_headers(requests=(60, 2, "58s"))))
    answers = [chat(client).status_code for client in (workers.one, workers.other, workers.one)]
    assert answers == [200, 200, 200]
    assert chat(workers.other).status_code == 503


def test_a_cached_prompt_is_not_counted_by_anthropic(workers: Workers) -> None:
    """A cached prompt of 20,000 tokens hardly uses a limit of 2,000 input tokens: the next call
    passes."""
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
    workers.provider.script(*[Answer(200, body, headers)] * 4)
    cached = [{"type": "text", "text": "x " * 9000, "cache_control": {"type": "ephemeral"}}]
    asked = {"model": ANTHROPIC, "max_tokens": 9, "system": cached, "messages": MESSAGES}
    for client in (workers.one, workers.other, workers.one, workers.other):
        assert client.post("/v1/messages", json=asked).status_code == 200


def test_a_quota_counts_as_of_its_request() -> None:
    """An answer that took a minute reports the quota of a minute ago, and the bucket has refilled
    since."""
    reported: list[dict[str, object]] = []

    class Reservation:
        def report(self, unit: str, **what: object) -> None:
            reported.append(what)

        renew = settle = cancel = report

    class Current:
        reservation = Reservation()

        def verdict(self, name: str) -> None:
            """There is no limit of that name."""

    limits = RequestLimits(Current(), shares_pauses=True)  # type: ignore[arg-type]
    limits.report([Quota("requests", 60, 0, 60.0)], asked_at=12.5)
    assert reported == [{"amount": 60, "used": 60, "period_s": 60, "as_of": 12.5}]
