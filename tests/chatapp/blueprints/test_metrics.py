"""GET /metrics of chatapp: who may read it, and what it says of calls."""

import pytest

from ratelimit_ext.metrics import prometheus
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import (
    Answer,
    Stream,
    UpstreamServer,
    Wait,
    openai_body,
    openai_chunks,
)

TOKEN = "a token of some length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(prometheus.DIRECTORY, raising=False)


def test_calls_tokens_and_retries_are_counted(make_app: AppMaker) -> None:
    """By model; a retry is what the providers' SDKs call one."""
    client = make_app(CHATAPP_METRICS_TOKEN=TOKEN).test_client()
    for count in ("0", "1", "2"):
        body = {"message": "hello", "user_id": "ada"}
        answer = client.post("/chat", json=body, headers={"x-stainless-retry-count": count})
        assert answer.status_code == 200
    found = client.get("/metrics", headers=BEARER).text
    assert 'chatapp_calls_total{model="offline",status="answered"} 3.0' in found
    assert 'chatapp_tokens_total{direction="output",model="offline"}' in found
    assert "chatapp_client_retries_total 2.0" in found
    assert (
        'ratelimit_decisions_total{limit="plan",outcome="allowed",strategy="sliding-window"} 3.0'
        in (found)
    )
    assert "ada" not in found


def test_calls_in_flight_are_counted(make_app: AppMaker, provider: UpstreamServer) -> None:
    """From the beginning of each to its end, which also a failed one has."""
    client = make_app(CHATAPP_METRICS_TOKEN=TOKEN).test_client()

    def in_flight() -> float:
        lines = client.get("/metrics", headers=BEARER).text.splitlines()
        found = [line.split()[1] for line in lines if line.startswith("chatapp_calls_in_flight ")]
        return float(found[0]) if found else 0

    asked = {"message": "ping", "model": "gpt-5.4-mini"}
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:2], Wait(), *pieces[2:]]))
    with client.post("/chat", json={**asked, "stream": True}, buffered=False) as answer:
        events = iter(answer.response)
        next(events)
        assert provider.waiting.wait(60)
        assert in_flight() == 1
        provider.go_on()
        assert b"event: done" in b"".join(events)
    assert in_flight() == 0
    provider.script(Answer(400, {"error": {"message": "no", "type": "invalid_request_error"}}))
    assert client.post("/chat", json=asked).status_code >= 400
    assert in_flight() == 0


def test_invented_models_make_no_series(make_app: AppMaker, provider: UpstreamServer) -> None:
    """Each has quotas of its own, and they share the label of unlisted models."""
    client = make_app(CHATAPP_METRICS_TOKEN=TOKEN).test_client()
    quotas = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "1m",
    }
    names = ("gpt-5.4-mini", *(f"gpt-invented-{number}" for number in range(4)))
    for name in names * 2:  # the first answer reports the quota that the second call has
        provider.script(Answer(200, openai_body(model=name), quotas))
        assert client.post("/chat", json={"message": "hello", "model": name}).status_code == 200
    found = client.get("/metrics", headers=BEARER).text
    shown = {line.partition("}")[0] for line in found.splitlines() if "quota_remaining{" in line}
    assert {line.partition("identity=")[2].partition(",")[0] for line in shown} == {
        '"openai/gpt-5.4-mini"',
        '"openai/openai-other"',
    }
    assert "invented" not in found


def test_a_wrong_token_is_refused_and_counts_against_its_address(make_app: AppMaker) -> None:
    """120 guesses a minute with a burst of 20, as for every caller without a key."""
    client = make_app(CHATAPP_METRICS_TOKEN=TOKEN).test_client()
    wrong = (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer ä"},
        {"x-api-key": TOKEN},
    )
    answers = [client.get("/metrics", headers=headers) for headers in wrong]
    assert [answer.status_code for answer in answers] == [401] * 4
    assert answers[0].json["code"] == "invalid_token"
    assert answers[0].headers["WWW-Authenticate"] == 'Bearer realm="metrics"'
    assert [client.get("/metrics").status_code for _ in range(20)].count(429) > 0


def test_without_a_token_there_are_no_metrics(make_app: AppMaker) -> None:
    """The address is unknown, whatever is sent."""
    assert make_app().test_client().get("/metrics", headers=BEARER).status_code == 404
