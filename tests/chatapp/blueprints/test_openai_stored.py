"""Stored responses are only their user's; and counting the tokens of an input."""

import json

import pytest
from flask.testing import FlaskClient
from sqlalchemy.exc import OperationalError
from werkzeug.test import TestResponse

from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from chatapp.services import services_of
from tests.chatapp.conftest import AppMaker, json_of, replace_services
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    RESPONSES_PATH,
    Answer,
    Stream,
    UpstreamServer,
    openai_error,
    response_body,
    response_events,
)
from tests.chatapp.web.test_identities import left

MODEL = "gpt-5.4-mini"


@pytest.fixture
def keys(database_url: str) -> dict[str, str]:
    """Two keys of alice and one of bob."""
    accounts = Accounts(Database(database_url))
    users = {"alice": "alice", "alice again": "alice", "bob": "bob"}
    return {
        name: accounts.create_key(user, plan="pro", default_plan="starter").text
        for name, user in users.items()
    }


@pytest.fixture
def client(make_app: AppMaker, provider: UpstreamServer, keys: dict[str, str]) -> FlaskClient:
    return make_app(CHATAPP_PROVIDER_ATTEMPTS=1).test_client()


def ask(client: FlaskClient, key: str, **fields: object) -> TestResponse:
    body = {"model": MODEL, "input": "ping", **fields}
    return client.post(RESPONSES_PATH, json=body, headers={"Authorization": f"Bearer {key}"})


def call(client: FlaskClient, key: str, method: str, path: str) -> TestResponse:
    url = f"{RESPONSES_PATH}/{path}"
    return client.open(url, method=method, headers={"Authorization": f"Bearer {key}"})


ADDRESSES = [
    ("GET", "resp_1"),
    ("DELETE", "resp_1"),
    ("POST", "resp_1/cancel"),
    ("GET", "resp_1/input_items"),
]


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_a_response_is_only_its_users(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer, method: str, path: str
) -> None:
    """With any of their keys. For another user it does not exist, and the provider is not asked."""
    assert ask(client, keys["alice"]).status_code == 200
    body = b'{"some":   "answer", "x": 1.50}'
    provider.script(Answer(200, body, {"x-request-id": "req-7"}))
    own = call(client, keys["alice again"], method, path)
    assert (own.status_code, own.data) == (200, body)
    assert own.headers["x-request-id"] == "req-7"
    asked = provider.calls[-1]
    assert (asked.method, asked.path, asked.raw) == (method, f"{RESPONSES_PATH}/{path}", b"")
    others = call(client, keys["bob"], method, path)
    assert others.status_code == 404
    assert json_of(others)["error"]["code"] == "response_not_found"
    assert len(provider.calls) == 2


def test_an_unknown_response_is_the_same_404(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer
) -> None:
    """Nothing tells another user's response from none."""
    ask(client, keys["alice"])
    others, none = (call(client, keys["bob"], "GET", id_) for id_ in ("resp_1", "resp_9"))
    assert others.json is not None
    assert none.json is not None
    assert others.text.replace("resp_1", "resp_9") == none.text
    assert {**others.headers}.keys() == {**none.headers}.keys()


@pytest.mark.parametrize("stream", [False, True])
def test_only_its_user_continues_a_response(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer, stream: bool
) -> None:
    """By its id or by an item of it, which reach the provider unchanged."""
    assert ask(client, keys["alice"], stream=stream).data
    item = {"type": "item_reference", "id": "msg_1"}
    for user, status in (("alice again", 200), ("bob", 404)):
        by_id = ask(client, keys[user], previous_response_id="resp_1")
        by_item = ask(client, keys[user], input=[item, {"role": "user", "content": "on"}])
        assert (by_id.status_code, by_item.status_code) == (status, status)
    assert [c.body.get("previous_response_id") for c in provider.calls[1:]] == ["resp_1", None]


@pytest.mark.parametrize("kind", ["reasoning", "image_generation_call"])
def test_an_item_without_its_content_is_not_another_users(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer, kind: str
) -> None:
    """The provider would complete it. One that no user is known to have made may be a copy."""
    item = {"type": kind, "id": "rs_1"}
    provider.script(Answer(200, response_body(output=[{**item, "summary": []}])))
    assert ask(client, keys["alice"]).status_code == 200

    def status(user: str, **more: object) -> int:
        return ask(client, keys[user], input=[{**item, **more}]).status_code

    assert (status("alice again"), status("bob"), status("bob", id="rs_2")) == (200, 404, 200)
    own = {"reasoning": "encrypted_content", "image_generation_call": "result"}[kind]
    assert status("bob", **{own: "bytes"}) == 200
    blank = [{"type": "reasoning_text", "text": " "}]
    assert status("bob", content=blank, encrypted_content=" ") == 404


def test_the_next_turn_reserves_the_conversation_so_far(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """Which the request does not contain: 40,000 tokens and their answer."""
    replace_services(client.application, ledger=ledger)
    usage = {"input_tokens": 40_000, "output_tokens": 2_000}
    provider.script(Answer(200, json.dumps(response_body(usage=usage)).encode()))
    ask(client, keys["alice"])
    ask(client, keys["alice"], previous_response_id="resp_1")
    first, second = ledger.begun
    assert first.estimated_input_tokens < 20
    assert 42_000 < second.estimated_input_tokens < 42_020


def test_a_conversation_of_unknown_length_reserves_more(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """After an answer that was cut off: its id came with its first event."""
    replace_services(client.application, ledger=ledger)
    provider.script(Stream(response_events()[:3]))
    assert ask(client, keys["alice"], stream=True).data
    assert ask(client, keys["alice"], previous_response_id="resp_1").status_code == 200
    assert ledger.begun[-1].estimated_input_tokens > 50_000


def test_what_the_provider_does_not_store_is_not_recorded(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer
) -> None:
    """With `store: false` the provider does not know its id either, whatever its answer says."""
    provider.script(Answer(200, response_body(store=False)), Stream(response_events(store=False)))
    provider.script(Answer(200, response_body()), Stream(response_events()))
    ask(client, keys["alice"])
    assert ask(client, keys["alice"], stream=True).data
    ask(client, keys["alice"], store=False)
    assert ask(client, keys["alice"], store=False, stream=True).data
    assert call(client, keys["alice"], "GET", "resp_1").status_code == 404


def test_another_worker_knows_a_response_at_once(
    make_app: AppMaker, provider: UpstreamServer, keys: dict[str, str]
) -> None:
    """Through the database, also if it is not written yet."""
    one, other = make_app().test_client(), make_app().test_client()
    for number in range(5):
        provider.script(Answer(200, response_body(id_=f"resp_{number}")))
        ask(one, keys["alice"])
        assert call(other, keys["alice"], "GET", f"resp_{number}").status_code == 200


def test_an_id_never_changes_its_user(client: FlaskClient, keys: dict[str, str]) -> None:
    """Even if a provider were to give one id twice."""
    answers = services_of(client.application).stored_answers
    for id_, written in (("resp_1", True), ("resp_2", False)):
        answers.note([id_], user="user:alice", provider="openai")
        assert not written or answers.flush()
        answers.note([id_], user="user:bob", provider="openai")
        assert answers.flush()
        assert answers.find([id_], user="user:alice")
        assert not answers.find([id_], user="user:bob")


def test_reading_uses_no_plan(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer
) -> None:
    """It has the limit of counting tokens, and headers like all answers."""
    ask(client, keys["alice"])
    read = call(client, keys["alice"], "GET", "resp_1")
    assert set(left(read)) == {"key", "count-tokens"}
    assert read.headers["x-ratelimit-limit-requests"] == "40"


def test_the_parameters_of_the_address_are_forwarded(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer
) -> None:
    """Those that OpenAI defines; a stored response is not streamed."""
    ask(client, keys["alice"])
    call(client, keys["alice"], "GET", "resp_1/input_items?limit=2&include[]=a&include[]=b&x=1")
    asked = provider.calls[-1].path.partition("?")[2]
    assert asked.replace("%5B%5D", "[]") == "include[]=a&include[]=b&limit=2"
    refused = call(client, keys["alice"], "GET", "resp_1?stream=true")
    assert (refused.status_code, len(provider.calls)) == (400, 2)


def test_the_providers_errors_are_passed_on(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer
) -> None:
    """As of a response that was not in the background, or is deleted."""
    ask(client, keys["alice"])
    provider.script(
        openai_error(400, code="invalid", message="Only background"),
        openai_error(404, code="gone", message="Deleted"),
        Answer(500, b"no"),
    )
    cancelled = call(client, keys["alice"], "POST", "resp_1/cancel")
    deleted = call(client, keys["alice"], "GET", "resp_1")
    assert (cancelled.status_code, deleted.status_code) == (400, 404)
    assert "Only background" in cancelled.text
    assert "Deleted" in deleted.text
    assert call(client, keys["alice"], "GET", "resp_1").status_code == 503


def test_without_a_database_nothing_is_given_away(
    client: FlaskClient, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503 with a wait, and no answer of another user."""
    ask(client, keys["alice"])
    assert call(client, keys["bob"], "GET", "resp_1").status_code == 404
    services = services_of(client.application)
    assert services.stored_answers.flush()

    def broken(*_: object) -> None:
        raise OperationalError("no", {}, Exception("no"))

    with monkeypatch.context() as outage:
        outage.setattr(services.database, "reading", broken)
        denied = call(client, keys["bob"], "GET", "resp_1")
    assert (denied.status_code, denied.headers["Retry-After"]) == (503, "2")
    assert "stored_responses_unavailable" in denied.text


def count(client: FlaskClient, key: str, **fields: object) -> TestResponse:
    body = {"model": MODEL, "input": "ping", **fields}
    headers = {"Authorization": f"Bearer {key}"}
    return client.post(f"{RESPONSES_PATH}/input_tokens", json=body, headers=headers)


def test_input_tokens_are_counted_by_the_provider(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """It is not a call: no plan, no tokens, no dollars, no row in the ledger."""
    replace_services(client.application, ledger=ledger)
    counted = count(client, keys["alice"])
    assert counted.json == {"object": "response.input_tokens", "input_tokens": 29}
    assert set(left(counted)) == {"key", "count-tokens"}
    assert ledger.begun == []


@pytest.mark.parametrize("answer", [404, 405])
def test_input_tokens_are_estimated_otherwise(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer, answer: int
) -> None:
    """For the offline model, and where a provider has no such address; with instructions, tools
    and images."""
    plain = count(client, keys["alice"], model="offline").json
    tools = [{"type": "function", "name": "f", "parameters": {"a": "b" * 400}}]
    more = count(client, keys["alice"], model="offline", instructions="be " * 40, tools=tools).json
    assert plain is not None
    assert more is not None
    assert plain["object"] == "response.input_tokens"
    assert more["input_tokens"] > plain["input_tokens"] + 30 + 100
    provider.script(*[openai_error(answer, code="no")] * 2)
    image = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    seen = [{"role": "user", "content": [{"type": "input_text", "text": "a"}, image]}]
    assert 2_500 < count(client, keys["alice"], input=seen).json["input_tokens"] < 2_600  # type: ignore[index]


def test_only_its_user_counts_a_conversation(
    client: FlaskClient, keys: dict[str, str], provider: UpstreamServer
) -> None:
    """The count would tell its length."""
    ask(client, keys["alice"])
    assert count(client, keys["alice"], previous_response_id="resp_1").status_code == 200
    assert count(client, keys["bob"], previous_response_id="resp_1").status_code == 404
