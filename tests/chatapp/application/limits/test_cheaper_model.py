"""A cheaper model instead of a refusal, `at_limit`, and the warning before, `warn_at`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from chatapp import catalogue
from chatapp.accounts.store import Accounts
from chatapp.catalogue.usage import Usage
from chatapp.services import services_of
from tests.chatapp.application.limits.test_models_of_limits import policy, used
from tests.chatapp.application.upstreams.workers import busy
from tests.chatapp.conftest import AppMaker, raised_alerts, whole
from tests.chatapp.upstream_server import UpstreamServer

OPUS, HAIKU = "claude-opus-4-6", "claude-haiku-4-5"
MINI, NANO = "gpt-5.4-mini", "gpt-5.4-nano"
CHEAPER = {OPUS: HAIKU, MINI: NANO}
BUDGET = """
[[groups.calls.limits]]
name = "week"
limit = "0.0003 usd/week"
strategy = "fixed-window"
anchor = "week"
key = "user"
on_failure = "local"
models = ["claude-opus*", "gpt-5.4-mini"]
at_limit = ["claude-haiku-4-5", "gpt-5.4-nano"]
warn_at = 60
"""
ASKED = [{"role": "user", "content": "ping"}]
#: The address, its model, and its body without a model.
ADDRESSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("/chat", OPUS, {"message": "ping"}),
    "messages": ("/v1/messages", OPUS, {"max_tokens": 9, "messages": ASKED}),
    "completions": ("/v1/chat/completions", MINI, {"max_tokens": 90, "messages": ASKED}),
    "responses": ("/v1/responses", MINI, {"max_output_tokens": 90, "input": "ping"}),
}


@pytest.fixture(params=["memory", "redis"])
def start(
    request: pytest.FixtureRequest, make_app: AppMaker, provider: UpstreamServer, tmp_path: Path
) -> Callable[..., Flask]:
    """Starts the application with that budget, on each engine."""
    uri = "memory://" if request.param == "memory" else request.getfixturevalue("uri")

    def started(limits: str = BUDGET, **config: object) -> Flask:
        own = {"RATELIMIT_STORAGE_URI": uri, "CHATAPP_PROVIDER_ATTEMPTS": 1, **config}
        return make_app(RATELIMIT_POLICY_FILE=policy(tmp_path, limits), **own)

    return started


def ask(
    client: FlaskClient, name: str, *, model: str = "", stream: bool = False, **more: Any
) -> Any:
    """One call, read to its end."""
    path, own, body = ADDRESSES[name]
    body = {**body, "model": model or own, **({"stream": True} if stream else {})}
    return whole(client, path, json=body, **more)


def spend(client: FlaskClient, name: str) -> Any:
    """Use the budget up by answers of the model itself; returns the first answer of another."""
    for _ in range(8):
        answer = ask(client, name)
        assert answer.status_code == 200, answer.data
        if "x-cheaper-model" in answer.headers:
            return answer
    raise AssertionError("the budget is not used up")


def bill(provider: UpstreamServer) -> dict[str, int]:
    """What the provider has to be paid for each model, in micro-dollars."""
    prices = catalogue.load()
    total: dict[str, int] = {}
    for call in provider.calls:
        model = str(call.body["model"])
        usage = Usage(12, 5, cached_input_tokens=8)
        if model.startswith("claude"):
            usage = Usage(23, 5, cached_input_tokens=8, cache_write_tokens=3)
        total[model] = total.get(model, 0) + prices.price(model, usage)
    return total


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ADDRESSES)
def test_a_cheaper_model_answers_as_if_it_had_been_asked(
    start: Callable[..., Flask], provider: UpstreamServer, name: str, *, stream: bool
) -> None:
    """The same bytes go to the provider, and the same come back; a header names it."""
    client = start().test_client()
    first, model = spend(client, name), ADDRESSES[name][1]
    cheaper = CHEAPER[model]
    answer = ask(client, name, stream=stream)
    direct = ask(client, name, model=cheaper, stream=stream)
    assert [first.headers["x-cheaper-model"], answer.headers["x-cheaper-model"]] == [cheaper] * 2
    assert "x-cheaper-model" not in direct.headers
    instead, itself = provider.calls[-2:]
    assert (instead.raw, instead.path) == (itself.raw, itself.path)
    assert answer.data == direct.data
    assert cheaper.encode() in answer.data
    assert model.encode() not in answer.data


def test_the_bill_is_the_providers(start: Callable[..., Flask], provider: UpstreamServer) -> None:
    """Each call is charged once, as what answered: in the limits and in the ledger, under both
    names."""
    app = start()
    client = app.test_client()
    spend(client, "messages")
    for stream in (False, True):
        for name in ("chat", "messages"):
            assert ask(client, name, stream=stream).status_code == 200
    billed = bill(provider)
    assert billed.keys() == {OPUS, HAIKU}
    counted = {name: round(dollars * 1e6) for name, dollars in used(app, None).items()}
    assert (counted["week"], counted["usd-month"]) == (billed[OPUS], sum(billed.values()))
    services = services_of(app)
    assert services.ledger.flush()
    rows = list(services.reports.calls())
    assert sum(row["cost_micro_usd"] for row in rows) == sum(billed.values())
    assert {(row["model"], row["slug"]) for row in rows} == {(OPUS, OPUS), (OPUS, HAIKU)}
    assert counted["plan"] == len(provider.calls) * 1e6


def test_calls_at_once_are_billed_once(
    start: Callable[..., Flask], provider: UpstreamServer
) -> None:
    """Three at a time, while the budget is used up between them: what the limits have counted is
    what the provider has to be paid, and the expensive model never exceeds its budget by more than
    one call."""
    app = start()

    def call(number: int) -> int:
        stream = number % 2 == 0
        return int(ask(app.test_client(), "messages", stream=stream).status_code)

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(call, range(10))) == {200}
    billed = bill(provider)
    assert len(provider.calls) == 10
    counted = {name: round(dollars * 1e6) for name, dollars in used(app, None).items()}
    assert (counted["week"], counted["usd-month"]) == (billed[OPUS], sum(billed.values()))
    assert billed[OPUS] <= 300 + 208


def test_a_caller_may_rather_be_refused(
    start: Callable[..., Flask], provider: UpstreamServer
) -> None:
    """By a header; then it is the budget's ordinary 429, and the provider is not called."""
    client = start().test_client()
    spend(client, "messages")
    calls = len(provider.calls)
    refused = ask(client, "messages", headers={"X-Cheaper-Model": "never"})
    assert (refused.status_code, "x-cheaper-model" in refused.headers) == (429, False)
    assert '"week";r=' in refused.headers["RateLimit"]
    assert len(provider.calls) == calls


def test_it_passes_every_limit_that_covers_it(
    start: Callable[..., Flask], provider: UpstreamServer
) -> None:
    """A budget that is for all models refuses the cheaper one, too, once it does not fit; what is
    answered then is the first refusal."""
    limits = BUDGET.replace('models = ["claude-opus*", "gpt-5.4-mini"]\n', "")
    client = start(limits).test_client()
    spend(client, "messages")
    for _ in range(40):
        answer = ask(client, "messages")
        if answer.status_code == 429:
            break
    assert answer.status_code == 429
    assert "x-cheaper-model" not in answer.headers
    assert sum(bill(provider).values()) <= 300 + 65  # the last call may cost more than estimated
    models = [str(call.body["model"]) for call in provider.calls]
    assert models.count(HAIKU) > 1


@pytest.mark.parametrize("name", ["messages", "completions"])
def test_only_models_of_the_same_provider_that_the_key_allows(
    start: Callable[..., Flask], accounts: Accounts, provider: UpstreamServer, name: str
) -> None:
    """Otherwise it is refused."""
    app = start(
        BUDGET.replace('"claude-haiku-4-5", "gpt-5.4-nano"', '"*-4-5", "*5.4-nano", "gpt-4o-m*"')
    )
    model = ADDRESSES[name][1]
    both = accounts.create_key("ada", plan="pro", default_plan="pro").text
    strict = accounts.create_key(
        "ada", plan="pro", default_plan="pro", models=[model, "gpt-5.4*"]
    ).text
    client = app.test_client()
    answers = [
        ask(client, name, headers={"Authorization": f"Bearer {key}"})
        for key in [both] * 8 + [strict]
    ]
    cheapest = {OPUS: HAIKU, MINI: "gpt-4o-mini"}
    assert answers[-2].headers["x-cheaper-model"] == cheapest[model]
    assert {str(call.body["model"])[:3] for call in provider.calls} == {model[:3]}
    if name == "messages":
        assert answers[-1].status_code == 429
    else:
        assert answers[-1].headers["x-cheaper-model"] == NANO


def test_a_request_that_it_could_not_answer_is_refused(start: Callable[..., Flask]) -> None:
    """Its longest answer would be refused by the provider."""
    client = start().test_client()
    spend(client, "messages")
    body = {"model": OPUS, "max_tokens": 100_000, "messages": ASKED}
    assert client.post("/v1/messages", json=body).status_code == 429
    assert client.post("/v1/messages", json={**body, "max_tokens": 64_000}).status_code == 200


def test_it_takes_the_files_of_the_conversation(
    start: Callable[..., Flask], provider: UpstreamServer
) -> None:
    """One that takes no images is not asked about one."""
    limits = BUDGET.replace(f'"{MINI}"', '"gpt-4o"').replace(f'"{NANO}"', '"gpt-3.5-turbo"')
    client = start(limits).test_client()
    body = {"message": "ping", "model": "gpt-4o"}
    answers = (client.post("/chat", json=body) for _ in range(8))
    cheaper = next(each for each in answers if "x-cheaper-model" in each.headers)
    assert cheaper.headers["x-cheaper-model"] == "gpt-3.5-turbo"
    image = {"data": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}
    provider.calls.clear()
    assert client.post("/chat", json={**body, "files": [image]}).status_code == 429
    assert provider.calls == []


def test_an_overloaded_cheaper_model_is_the_first_refusal(
    start: Callable[..., Flask], provider: UpstreamServer
) -> None:
    """The budget's, as that lasts longer."""
    client = start().test_client()
    spend(client, "messages")
    provider.script(busy("30"))
    assert ask(client, "messages").status_code == 529
    refused = ask(client, "messages")
    assert refused.status_code == 429
    assert "x-cheaper-model" not in refused.headers


def test_a_warning_comes_before_the_refusal(
    start: Callable[..., Flask], provider: UpstreamServer
) -> None:
    """In a header of answers and in `GET /usage` from that share on, and once in the alerts."""
    app = start()
    client = app.test_client()
    other = ask(client, "messages", model=HAIKU)
    assert "x-budget-warning" not in other.headers
    shown = {e["name"]: e for e in client.get("/usage").json["limits"]}  # type: ignore[index]
    assert (shown["week"]["warn_at"], shown["week"]["warning"]) == (60, False)
    assert "warning" not in shown["usd-month"]
    spend(client, "messages")
    streamed = ask(client, "messages", model=OPUS, headers={"X-Cheaper-Model": "never"})
    assert streamed.headers["x-budget-warning"].startswith("week;used=")
    shown = {e["name"]: e for e in client.get("/usage").json["limits"]}  # type: ignore[index]
    assert shown["week"]["warning"] is True
    raised = [(row["name"], row["threshold"] >= 60) for row in raised_alerts(app)]
    assert raised == [("week", True)]


def test_an_alert_of_a_budget_of_several_identities_names_the_user(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Path
) -> None:
    """Its model is in the name of the budget: each has its own."""
    limits = BUDGET.replace('key = "user"', 'key = ["model", "user"]')
    app = make_app(RATELIMIT_POLICY_FILE=policy(tmp_path, limits.replace("= 60", "= 20")))
    client = app.test_client()
    for name in ("messages", "completions"):
        assert ask(client, name).status_code == 200
        assert ask(client, name).status_code == 200
    raised = {(row["identity"], row["name"]) for row in raised_alerts(app)}
    assert raised >= {("ip:127.0.0.1", f"week of {OPUS}")}
