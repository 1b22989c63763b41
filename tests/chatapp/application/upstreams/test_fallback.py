"""A fallback answers for an overloaded model."""

from pathlib import Path
from typing import Any

import pytest

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from chatapp.services import services_of
from chatapp.settings import SettingsError
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
)
from tests.chatapp.conftest import AppMaker, json_of, two_keys
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    FIRST,
    OPENAI_PATH,
    SECOND,
    Answer,
    UpstreamServer,
    anthropic_error,
    openai_body,
    openai_error,
)

#: The names under which the pauses of their providers are kept.
UPSTREAM = {OPENAI: f"openai/{OPENAI}", ANTHROPIC: f"anthropic/{ANTHROPIC}"}


@pytest.fixture
def choosy(make_workers: MakeWorkers) -> Workers:
    """Workers whose models have fallbacks."""
    return make_workers(CHATAPP_FALLBACK_MODELS={OPENAI: ANTHROPIC, ANTHROPIC: SMALLER})


def test_a_fallback_answers_for_an_overloaded_model(choosy: Workers) -> None:
    """At the refusal, and from then on without calling the first model. It is billed and counted as
    itself, and is in the ledger under both names."""
    choosy.provider.script(busy("7"))
    first = chat(choosy.one)
    assert (first.status_code, first.json["model"]) == (200, ANTHROPIC)
    second = chat(choosy.other, stream=True)
    assert second.status_code == 200
    paths = [call.path for call in choosy.provider.calls]
    assert paths == [OPENAI_PATH, ANTHROPIC_PATH, ANTHROPIC_PATH]
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


def test_a_short_wait_is_for_the_model_that_named_it(make_workers: MakeWorkers) -> None:
    """Its fallback is closed for longer: after the wait the requested model answers."""
    plain = make_workers(CHATAPP_PROVIDER_ATTEMPTS=1)
    plain.provider.script(busy("30"), busy("1"))
    assert [chat(plain.one, model).status_code for model in (SMALLER, OPENAI)] == [503, 503]
    fallbacks = {OPENAI: SMALLER}
    choosy = make_workers(CHATAPP_PROVIDER_ATTEMPTS=1, CHATAPP_FALLBACK_MODELS=fallbacks)
    answer = chat(choosy.one)
    assert (answer.status_code, answer.json["model"]) == (200, OPENAI)


def test_a_short_wait_is_for_the_key_that_named_it(
    make_workers: MakeWorkers,
    provider: UpstreamServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other key of the upstream is closed for longer."""
    monkeypatch.setenv("KEY_1", FIRST)
    monkeypatch.setenv("KEY_2", SECOND)
    file = two_keys(provider, tmp_path)
    workers = make_workers(CHATAPP_PROVIDER_ATTEMPTS=1, CHATAPP_PROVIDERS_FILE=file)
    provider.script(busy("1"), busy("30"))
    assert chat(workers.one).status_code == 503
    assert chat(workers.other).status_code == 200
    assert provider.keys() == [FIRST, SECOND, FIRST]


def test_the_ledger_has_the_fallbacks_price(
    make_app: AppMaker, provider: UpstreamServer, uri: str
) -> None:
    """The database has the call under the model that answered."""
    fallbacks = {OPENAI: ANTHROPIC}
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_FALLBACK_MODELS=fallbacks)
    provider.script(busy("7"))
    assert chat(app.test_client()).status_code == 200
    assert services_of(app).ledger.flush()
    checked = app.test_cli_runner().invoke(args=["chat", "ledger", "check"])
    assert checked.exit_code == 0, checked.output
    assert "limits of 1 user compared; 0 problems" in checked.output


def test_a_fallback_has_no_fallback(choosy: Workers) -> None:
    """If both models cool down, the client gets an error, and no third model is called."""
    overloaded = anthropic_error(529, kind="overloaded_error", headers={"Retry-After": "7"})
    choosy.provider.script(busy("7"), overloaded)
    assert chat(choosy.one).status_code == 503
    assert chat(choosy.other).status_code == 503
    assert len(choosy.provider.calls) == 2


def test_a_providers_endpoint_falls_back_within_its_protocol(make_workers: MakeWorkers) -> None:
    """The body is forwarded with another model's name, otherwise unchanged."""
    workers = make_workers(CHATAPP_FALLBACK_MODELS={OPENAI: SMALLER})
    workers.provider.script(busy("7"))
    body = {"model": OPENAI, "messages": MESSAGES, "seed": 7}
    answered = workers.one.post("/v1/chat/completions", json=body)
    assert answered.status_code == 200
    assert json_of(answered)["model"] == SMALLER
    assert workers.provider.calls[-1].body == {**body, "model": SMALLER}
    again = workers.other.post("/v1/chat/completions", json=body)
    assert again.status_code == 200
    assert len(workers.provider.calls) == 3


def test_no_request_is_translated(choosy: Workers) -> None:
    """At OpenAI's endpoint a model of Anthropic is no fallback."""
    choosy.provider.script(busy("7"))
    body = {"model": OPENAI, "messages": MESSAGES}
    assert choosy.one.post("/v1/chat/completions", json=body).status_code == 503
    assert choosy.other.post("/v1/chat/completions", json=body).status_code == 503
    assert len(choosy.provider.calls) == 1


def test_a_blocked_fallback_is_not_called(choosy: Workers) -> None:
    """An operator's block applies to it."""
    app = choosy.one.application
    with app.app_context():
        services_of(app).limiter.operators.block("blocked-model", OPENAI, reason="closed")
    refused = chat(choosy.one)
    assert (refused.status_code, refused.json["code"]) == (503, "switched_off")
    assert choosy.provider.calls == []


def block(workers: Workers, name: str, model: str, **more: Any) -> None:
    app = workers.one.application
    with app.app_context():
        assert services_of(app).limiter.operators.block(name, model, **more)


def test_a_blocked_fallback_is_not_called_in_flight(choosy: Workers) -> None:
    """The provider refuses the requested model, and the fallback is blocked."""
    block(choosy, "blocked-model", ANTHROPIC, reason="closed")
    choosy.provider.script(busy("7"))
    refused = chat(choosy.one)
    assert (refused.status_code, refused.json["code"]) == (503, "server_is_overloaded")
    assert refused.headers["Retry-After"] == "7"
    assert len(choosy.provider.calls) == 1


def test_a_fallback_in_flight_is_counted_for_its_model(choosy: Workers) -> None:
    """By the limit that all callers of that model share."""
    choosy.provider.script(busy("7"))
    assert chat(choosy.one).json["model"] == ANTHROPIC
    assert '"model";r=2998;' in chat(choosy.other, ANTHROPIC).headers["RateLimit"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocked-model", {"reason": "closed"}),
        ("provider", {"reason": "overloaded", "for_s": 3000}),
    ],
    ids=["switched off", "paused for longer"],
)
def test_a_refusal_names_the_requested_model(
    choosy: Workers, name: str, words: dict[str, Any]
) -> None:
    """Whatever keeps the fallback from answering, the wait is the requested model's three
    seconds."""
    block(choosy, "provider", UPSTREAM[OPENAI], for_s=3, reason="overloaded")
    block(choosy, name, UPSTREAM[ANTHROPIC] if name == "provider" else ANTHROPIC, **words)
    refused = chat(choosy.other)
    assert (refused.status_code, refused.json["code"]) == (503, "server_is_overloaded")
    assert refused.headers["Retry-After"] == "3"
    assert "x-should-retry" not in refused.headers
    assert choosy.provider.calls == []


def test_the_wait_is_the_shorter_of_both_models(choosy: Workers) -> None:
    """A retry is useful when either can answer."""
    block(choosy, "provider", UPSTREAM[OPENAI], for_s=3000, reason="overloaded")
    block(choosy, "provider", UPSTREAM[ANTHROPIC], for_s=3, reason="overloaded")
    assert chat(choosy.other).headers["Retry-After"] == "3"


def test_a_fallback_is_called_once(make_workers: MakeWorkers) -> None:
    """However many attempts the first model has; the client gets the first model's wait."""
    fallbacks = {OPENAI: ANTHROPIC}
    workers = make_workers(CHATAPP_FALLBACK_MODELS=fallbacks, CHATAPP_PROVIDER_ATTEMPTS=5)
    soon = anthropic_error(529, kind="overloaded_error", headers={"retry-after-ms": "20"})
    workers.provider.script(busy("7"), soon, soon)
    refused = chat(workers.one)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "7")
    assert [call.path for call in workers.provider.calls] == [OPENAI_PATH, ANTHROPIC_PATH]
    (call,) = workers.ledger.finished()
    assert (call.slug, call.attempts, call.cost_micro_usd) == (ANTHROPIC, 2, 0)


def test_a_fallback_has_a_separate_estimate(choosy: Workers) -> None:
    """By another tokenizer, and the same before the call and in flight."""
    long = "antidisestablishmentarianism " * 500
    chat(choosy.one, ANTHROPIC, message=long)
    choosy.provider.script(busy("7"))
    chat(choosy.one, message=long)  # in flight
    chat(choosy.other, message=long)  # at once
    chat(choosy.other, SMALLER, message=long)
    asked, in_flight, at_once, other = choosy.ledger.finished(4)
    assert {call.slug for call in (asked, in_flight, at_once)} == {ANTHROPIC}
    expected = asked.estimated_input_tokens
    assert in_flight.estimated_input_tokens == at_once.estimated_input_tokens == expected
    assert other.estimated_input_tokens < expected  # else the test proves nothing


def test_a_dated_name_has_the_fallback_of_its_family(choosy: Workers) -> None:
    """It is the same model."""
    choosy.provider.script(busy("7"))
    assert chat(choosy.one, f"{OPENAI}-2026-03-17").json["model"] == ANTHROPIC


def test_an_unlisted_model_has_its_own_fallback(make_workers: MakeWorkers) -> None:
    """Unlisted models are counted as one, and have fallbacks by name."""
    workers = make_workers(CHATAPP_FALLBACK_MODELS={"gpt-99-new": SMALLER})
    workers.provider.script(busy("7"))
    assert chat(workers.one, "gpt-99-new").status_code == 200
    workers.provider.script(busy("7"))
    assert chat(workers.one, "gpt-98-new").status_code == 503


def test_no_model_is_its_own_fallback(make_app: AppMaker, provider: UpstreamServer) -> None:
    """Under no name of its family; this is an error at the start."""
    with pytest.raises(SettingsError, match="are the same model"):
        make_app(CHATAPP_FALLBACK_MODELS={OPENAI: f"{OPENAI}-2026-03-17"})


DEAR = "o1-pro"  # holds 0.62 dollars for a call, and 2 are left of the hour


def test_an_expensive_fallback_must_fit_into_the_budget(make_workers: MakeWorkers) -> None:
    """It is decided by its own estimate: three calls spend the hour's dollars. The fourth is
    refused as the requested model, and charges nothing."""
    workers = make_workers(CHATAPP_FALLBACK_MODELS={OPENAI: DEAR}, CHATAPP_PROVIDER_ATTEMPTS=1)
    dear = {"prompt_tokens": 8, "completion_tokens": 1_100, "total_tokens": 1_108}
    for _ in range(2):
        answered = Answer(200, {**openai_body(model=DEAR), "usage": dear})
        workers.provider.script(openai_error(500, code="trouble"), answered)
        assert chat(workers.one).json["model"] == DEAR
    hour = left(workers.one)["usd-hour"]
    assert 0.66 < hour < 0.69
    # What is held of the first is part of what the second may hold.
    workers.provider.script(openai_error(500, code="trouble"), answered)
    assert chat(workers.one).json["model"] == DEAR
    workers.provider.script(openai_error(500, code="trouble"))
    calls, before = len(workers.provider.calls), left(workers.one)
    refused = chat(workers.one)
    assert (refused.status_code, refused.json["code"]) == (502, "provider_unavailable")
    assert len(workers.provider.calls) == calls + 1
    assert left(workers.one)["usd-hour"] == before["usd-hour"] < 0.03
    assert [call.slug for call in workers.ledger.finished(4)] == [DEAR] * 3 + [OPENAI]


def test_a_fallbacks_answer_is_bounded_by_its_price(make_workers: MakeWorkers) -> None:
    """The budget pays any answer of the cheap model, and 3,000 tokens of the expensive one."""
    workers = make_workers(CHATAPP_FALLBACK_MODELS={OPENAI: DEAR}, CHATAPP_PROVIDER_ATTEMPTS=1)
    workers.provider.script(openai_error(500, code="trouble"))
    body = {"model": OPENAI, "messages": MESSAGES}
    assert workers.one.post("/v1/chat/completions", json=body).status_code == 200
    first, second = workers.provider.calls
    assert "max_completion_tokens" not in first.body
    bound = second.body["max_completion_tokens"]
    assert isinstance(bound, int)
    assert 3_000 < bound < 3_334
