"""GET /usage: what the caller has left and has spent."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from chatapp import catalogue
from chatapp.accounts.api_key import PresentedKey
from chatapp.accounts.store import Accounts
from chatapp.catalogue.usage import Usage
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.services import services_of
from tests import servers
from tests.chatapp.application.money.test_surge import Clock
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import Answer, UpstreamServer

ASKED = [{"role": "user", "content": "hi"}]


@pytest.fixture
def key(database_url: str) -> PresentedKey:
    """A key of alice, on the plan pro."""
    return Accounts(Database(database_url)).create_key("alice", plan="pro", default_plan="starter")


@pytest.fixture
def client(key: PresentedKey, make_app: AppMaker) -> FlaskClient:
    """A client with alice's key."""
    client = make_app().test_client()
    client.environ_base["HTTP_X_API_KEY"] = key.text
    return client


def usage(client: FlaskClient, more: str = "") -> dict[str, Any]:
    response = client.get(f"/usage{more}")
    assert response.status_code == 200, response.text
    assert response.headers["Cache-Control"] == "no-store"
    return json_of(response)


def limits(client: FlaskClient, query: str = "") -> dict[str, dict[str, Any]]:
    return {limit["name"]: limit for limit in usage(client, query)["limits"]}


def test_it_names_the_user_and_the_plan(client: FlaskClient) -> None:
    """The key's owner and their plan."""
    shown = usage(client)
    assert (shown["user"], shown["plan"]) == ("alice", "pro")


def test_it_shows_what_a_chat_has_left(client: FlaskClient) -> None:
    """The same figures as in the headers of a chat, for each of the caller's limits."""
    before = limits(client)
    assert before["user"]["remaining"] == 30
    assert before["user"] == {
        "name": "user",
        "unit": "requests",
        "limit": 180,
        "burst": 30,
        "period": 60,
        "remaining": 30,
        "reset_after": 0.0,
    }
    assert before["usd-hour"]["period"] == 3600
    assert before["usd-day"]["period"] == 86_400
    assert 28 <= before["usd-month"]["period"] / 86_400 <= 31
    assert client.post("/chat", json={"message": "hi"}).status_code == 200
    after = limits(client)
    assert (after["plan"]["remaining"], after["at-once"]["remaining"]) == (1999, 16)
    assert 0 < after["plan"]["reset_after"] <= 86_400
    assert "model" not in after


def test_it_charges_no_plan(client: FlaskClient) -> None:
    """The request counts toward the key's rate only."""
    shown = [limits(client) for _ in range(15)]
    assert {limit["plan"]["remaining"] for limit in shown} == {2000}
    assert {limit["user"]["remaining"] for limit in shown} == {30}
    assert shown[-1]["key"]["remaining"] < shown[0]["key"]["remaining"]
    assert "ip" not in shown[-1]


@pytest.mark.usefixtures("stopped_clock")
def test_it_answers_when_a_limit_is_used_up(client: FlaskClient) -> None:
    """Callers need it most then."""
    for _ in range(31):
        denied = client.post("/chat", json={"message": "hi"})
    assert denied.status_code == 429
    assert limits(client)["user"]["remaining"] == 0


def test_it_shows_what_was_spent(client: FlaskClient, database_url: str) -> None:
    """Today, this week and this month, by the ledger, exact to the micro-dollar."""
    now = datetime.now(UTC)
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    before = first - timedelta(microseconds=1)
    table.write(
        Database(database_url),
        [
            finished(begun(started_at=now)),
            finished(begun(started_at=first)),
            finished(begun(started_at=before)),
            finished(begun(started_at=now, user="user:bob")),
        ],
    )
    monday = now.date() - timedelta(days=now.weekday())
    week = 0.001485 * sum(each.date() >= monday for each in (now, first, before))
    today = 0.00297 if now.day == 1 else 0.001485
    spent = usage(client)["spent"]
    assert spent == {"today_usd": today, "week_usd": pytest.approx(week), "month_usd": 0.00297}


def test_a_call_is_in_it_at_once(online: FlaskClient) -> None:
    """The cost of a chat is the catalogue's price of its usage."""
    ledger = services_of(online.application).ledger
    response = online.post("/chat", json={"message": "hi", "model": "gpt-4o"})
    assert response.status_code == 200
    assert response.json is not None
    assert ledger.flush()
    cost = catalogue.load().price("gpt-4o", Usage(**response.json["usage"]))
    assert cost > 0
    spent = dict.fromkeys(("today_usd", "week_usd", "month_usd"), cost / 1e6)
    assert usage(online)["spent"] == spent


def test_budgets_of_the_calendar_have_a_forecast(online: FlaskClient, database_url: str) -> None:
    """Once something is known of the caller; limits by the hour and of other units have none."""
    services, now = services_of(online.application), datetime.now(UTC)
    chat = {"message": "hi", "model": "gpt-4o"}
    past = [
        finished(begun(started_at=now - timedelta(days=days), user="ip:127.0.0.1"))
        for days in range(1, 20)
    ]
    table.write(Database(database_url), past)
    assert not any("forecast" in each for each in limits(online).values())
    assert online.post("/chat", json=chat).status_code == 200
    assert services.ledger.flush()
    found = {name: each["forecast"] for name, each in limits(online).items() if "forecast" in each}
    lasts = {"used_up_at": None, "sure": 0.0}
    assert found == {"usd-day": lasts, "usd-month": lasts}


@pytest.mark.parametrize(
    ("now", "days"), [("2027-01-31T23:59:50+00:00", 31), ("2028-02-29T23:59:50+00:00", 29)]
)
def test_dollars_of_a_day_and_a_month_end_with_the_calendar(
    online: FlaskClient, monkeypatch: pytest.MonkeyPatch, now: str, days: int
) -> None:
    """In UTC, as `spent` does. The plan's calls per day count for 24 hours."""
    clock = Clock(monkeypatch)
    clock.now_s = datetime.fromisoformat(now).timestamp()
    assert online.post("/chat", json={"message": "hi", "model": "gpt-4o"}).status_code == 200
    before = limits(online)
    used = before["usd-month"]["limit"] - before["usd-month"]["remaining"]
    assert used > 0
    for name, length in (("day", 1), ("month", days)):
        limit = before[f"usd-{name}"]
        assert (limit["anchor"], limit["period"]) == (name, length * 86_400)
        assert limit["reset_after"] == 10
        assert limit["limit"] - limit["remaining"] == pytest.approx(used)
    assert "anchor" not in before["usd-hour"]
    clock.forward(10)
    after = limits(online)
    for name in ("usd-day", "usd-month"):
        assert after[name]["remaining"] == after[name]["limit"]
    assert after["plan"]["remaining"] == after["plan"]["limit"] - 1
    assert after["usd-hour"]["remaining"] < after["usd-hour"]["limit"]


def test_what_is_spent_is_what_the_limits_hold(online: FlaskClient) -> None:
    """`spent` equals what the dollar limits of the same day and month have counted."""
    for _ in range(3):
        assert online.post("/chat", json={"message": "hi", "model": "gpt-4o"}).status_code == 200
    assert services_of(online.application).ledger.flush()
    shown = usage(online)
    for name, spent in (("usd-day", "today_usd"), ("usd-month", "month_usd")):
        limit = next(limit for limit in shown["limits"] if limit["name"] == name)
        assert limit["limit"] - limit["remaining"] == pytest.approx(shown["spent"][spent])


def test_without_accounts_it_is_about_the_address(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller without a name is counted by IP."""
    client = make_app().test_client()
    Clock(monkeypatch)  # a bucket refills in two seconds
    client.post("/chat", json={"message": "hi"})
    shown = usage(client)
    assert (shown["user"], shown["plan"]) == (None, "starter")
    assert limits(client)["user"]["remaining"] == 9
    assert limits(client, "?user_id=bob")["user"]["remaining"] == 10


def test_without_accounts_it_is_about_the_named_user(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The query names a user as the body of a chat does, with the same checks."""
    client = make_app().test_client()
    Clock(monkeypatch)
    client.post("/chat", json={"message": "hi", "user_id": "bob"})
    assert limits(client, "?user_id=bob")["user"]["remaining"] == 9
    assert limits(client)["user"]["remaining"] == 10
    for query in ("user_id=", "user_id=%00", f"user_id={'u' * 257}"):
        refused = client.get(f"/usage?{query}")
        assert refused.status_code == 422
        assert json_of(refused)["code"] == "invalid_user_id"


def test_with_accounts_no_user_sees_another(client: FlaskClient) -> None:
    """The key's owner, whatever the query says."""
    client.post("/chat", json={"message": "hi"})
    assert usage(client, "?user_id=bob")["user"] == "alice"
    assert limits(client, "?user_id=bob")["plan"]["remaining"] == 1999


def test_models_have_their_context_and_price(online: FlaskClient) -> None:
    """Those of every provider, in dollars per million tokens; none that makes embeddings."""
    shown = usage(online, "/models")
    models = {model.pop("name"): model for model in shown["models"]}
    assert models["claude-haiku-4-5"] == {
        "provider": "anthropic",
        "context_tokens": 200_000,
        "input_usd": 1.0,
        "output_usd": 5.0,
        "files": ["image", "pdf"],
        "image_tokens": 1_600,
    }
    assert models["gpt-4"]["files"] == []
    assert shown["pdf_bytes_per_token"] == 2.25
    assert {"offline", "gpt-5.4-mini"} <= models.keys()
    assert "text-embedding-3-small" not in models
    assert shown["default"] == "gpt-5.6-luna"
    assert shown["most_output_tokens"] == 2048


def test_an_unlisted_default_model_is_shown(make_app: AppMaker, provider: UpstreamServer) -> None:
    """By its name, at the price of its provider's dearest model."""
    client = make_app(CHATAPP_DEFAULT_MODEL="gpt-77-nova").test_client()
    shown = usage(client, "/models")
    assert shown["default"] == "gpt-77-nova"
    first = shown["models"][0]
    assert (first["name"], first["context_tokens"]) == ("gpt-77-nova", None)
    assert first["output_usd"] >= 50


def test_only_models_that_the_key_allows_are_shown(
    provider: UpstreamServer, make_app: AppMaker, database_url: str
) -> None:
    """The default is one of them, or null."""
    accounts = Accounts(Database(database_url))
    for patterns, names in ((["claude-haiku-4-5"], ["claude-haiku-4-5"]), (["llama*"], [])):
        key = accounts.create_key("bob", plan=None, default_plan="starter", models=patterns)
        client = make_app().test_client()
        client.environ_base["HTTP_X_API_KEY"] = key.text
        shown = usage(client, "/models")
        assert [model["name"] for model in shown["models"]] == names
        assert shown["default"] == (names[0] if names else None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_can_be_looked_up(online: FlaskClient, stream: bool) -> None:
    """By the id in the answer's header: what it cost."""
    body = {"message": "hi", "model": "gpt-4o", "user_id": "bob", "stream": stream}
    response = online.post("/chat", json=body)
    assert response.text  # all of the stream
    assert services_of(online.application).ledger.flush()
    id_ = response.headers["x-call-id"]
    shown = usage(online, f"/calls/{id_}?user_id=bob")
    used = {key: value for key, value in shown.pop("usage").items() if value is not None}
    cost = catalogue.load().price("gpt-4o", Usage(**used))
    assert shown == {
        "id": id_,
        "model": "gpt-4o",
        "status": "answered",
        "cost_usd": cost / 1e6,
        "estimated": False,
        "basis": None,
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", [None, Answer(500, {"error": {"message": "x"}})])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"message": "hi", "model": "gpt-4o"}),
        ("/v1/chat/completions", {"model": "gpt-4o", "messages": ASKED}),
        ("/v1/responses", {"model": "gpt-4o", "input": "hi"}),
        ("/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": ASKED}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "hi"}),
    ],
)
def test_every_answer_names_its_row(
    online: FlaskClient,
    provider: UpstreamServer,
    path: str,
    body: dict[str, Any],
    failure: Answer | None,
    stream: bool,
) -> None:
    """At each address, whole, streamed, and if the provider fails. An answer without a row has no
    id."""
    if failure is not None:
        provider.script(*[failure] * 2)
    streamed = {"stream": True} if stream and path != "/v1/embeddings" else {}
    response = online.post(path, json={**body, **streamed})
    assert response.text
    assert (response.status_code == 200) == (failure is None)
    services = services_of(online.application)
    assert services.ledger.flush()
    [row] = services.reports.calls()
    assert response.headers.getlist("x-call-id") == [row["id"]]
    for other in (online.post(path, json={}), online.get("/usage")):
        assert "x-call-id" not in other.headers


def test_a_call_of_another_user_is_unknown(client: FlaskClient, database_url: str) -> None:
    """So is any id that no call has."""
    of_bob = finished(begun(user="user:bob"))
    table.write(Database(database_url), [of_bob])
    for id_ in (of_bob.id, "x", "%00", "a" * 3000):
        response = client.get(f"/usage/calls/{id_}")
        assert response.status_code == 404
        assert json_of(response)["code"] == "unknown_call"


def test_a_lost_ledger_is_a_503_of_a_call(client: FlaskClient, database_url: str) -> None:
    """With a sentence, not a 500."""
    with Database(database_url).writing() as connection:
        connection.execute(text("DROP TABLE calls"))
    response = client.get("/usage/calls/x")
    assert response.status_code == 503
    assert json_of(response)["code"] == "ledger_unavailable"


def test_a_lost_ledger_leaves_the_limits(client: FlaskClient, database_url: str) -> None:
    """`spent` is null then."""
    with Database(database_url).writing() as connection:
        connection.execute(text("DROP TABLE calls"))
    shown = usage(client)
    assert shown["spent"] is None
    assert shown["limits"]


def test_without_limits_the_list_is_empty(make_app: AppMaker) -> None:
    """It is not an error."""
    assert usage(make_app(RATELIMIT_ENABLED=False).test_client())["limits"] == []


def test_a_lost_storage_is_no_500(make_app: AppMaker) -> None:
    """The storage fallback shows what this worker has counted."""
    uri = f"redis://127.0.0.1:{servers.free_port()}"
    response = make_app(RATELIMIT_STORAGE_URI=uri).test_client().get("/usage")
    assert response.status_code in {200, 503}
