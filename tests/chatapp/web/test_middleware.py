"""What applies to every request: the host name, the request id, the ban on sniffing."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from flask.testing import FlaskClient

from chatapp.accounts.store import Accounts
from chatapp.services import services_of
from tests.chatapp.conftest import AppMaker, json_of, whole
from tests.chatapp.upstream_server import Answer, UpstreamServer, anthropic_error, openai_error
from tests.servers import eventually

ASKED: Final = {"message": "hi", "model": "offline"}
V1_MESSAGES: Final = "/v1/messages"
V1: Final = {"model": "offline", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


# -- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/", None, 200),
        ("GET", "/static/chat.js", None, 200),
        ("GET", "/healthz", None, 200),
        ("GET", "/v1/models", None, 200),
        ("GET", "/nowhere", None, 404),
        ("DELETE", "/chat", None, 405),
        ("POST", "/chat", ASKED, 200),
        ("POST", "/chat", {}, 422),
        ("POST", "/chat", {**ASKED, "stream": True}, 200),
        ("POST", "/v1/chat/completions", {**V1, "stream": True}, 200),
        ("POST", "/v1/messages", {**V1, "stream": True}, 200),
        ("OPTIONS", "/chat", None, 200),
    ],
)
def test_every_answer_forbids_sniffing(
    client: FlaskClient, method: str, path: str, body: object, expected: int
) -> None:
    """Including errors, files and streams."""
    answer = client.open(path, method=method, json=body)
    assert answer.status_code == expected
    assert answer.headers.getlist("X-Content-Type-Options") == ["nosniff"]


@pytest.mark.usefixtures("stopped_clock")
def test_a_denial_forbids_sniffing(make_app: AppMaker) -> None:
    """Also one that replaces a 404."""
    client = make_app().test_client()
    answers = [client.get("/nowhere") for _ in range(21)]
    assert answers[-1].status_code == 429
    assert answers[-1].headers.getlist("X-Content-Type-Options") == ["nosniff"]


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_no_429_is_kept_for_others(make_app: AppMaker, provider: UpstreamServer, path: str) -> None:
    """In each format: here that of a budget that other calls hold. Three of a dear model hold two
    dollars."""
    app = make_app()
    provider.think()
    long = "hi " * 40_000
    body = {
        "/chat": {"message": "hi", "model": "o1-pro"},
        "/v1/responses": {"input": "hi", "model": "o1-pro"},
        "/v1/messages": {
            "model": "claude-opus-5",
            "max_tokens": 64_000,
            "messages": [{"role": "user", "content": long}],
        },
    }.get(path, {**V1, "model": "o1-pro", "max_tokens": 64_000})
    dear = {"message": "hi", "model": "o1-pro"}
    with ThreadPoolExecutor(3) as pool:
        for number in range(3):
            pool.submit(app.test_client().post, "/chat", json=dear)
            eventually(lambda number=number: len(provider.calls) > number)
        answer = app.test_client().post(path, json=body)
        provider.go_on()
    assert (answer.status_code, "budget_in_use" in answer.text) == (429, True), answer.text
    assert answer.headers.getlist("Cache-Control") == ["no-store"]
    assert answer.headers["Retry-After"] == "2"
    assert "x-should-retry" not in answer.headers
    assert "x-call-id" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/models", "/v1/responses/resp_1", "/chat", V1_MESSAGES])
def test_no_answer_to_an_api_key_is_kept_for_others(
    make_app: AppMaker, accounts: Accounts, path: str
) -> None:
    """A shared cache in front keeps the answer to a GET, unless it is to Authorization."""
    key = accounts.create_key("alice", plan=None, default_plan="starter").text
    client, bodies = make_app().test_client(), {"/chat": ASKED, V1_MESSAGES: V1}
    method, body = ("POST", bodies[path]) if path in bodies else ("GET", None)
    answer = client.open(path, method=method, json=body, headers={"x-api-key": key})
    assert answer.status_code == (404 if "resp_1" in path else 200)
    assert answer.headers.getlist("Cache-Control") == ["no-store"]


# -- request ids --------------------------------------------------------------------------------

CHAT, OPENAI, ANTHROPIC = "/chat", "/v1/chat/completions", "/v1/messages"
MODELS: Final = {CHAT: "gpt-4o", OPENAI: "gpt-4o", ANTHROPIC: "claude-haiku-4-5"}
HEADERS: Final = {CHAT: "x-request-id", OPENAI: "x-request-id", ANTHROPIC: "request-id"}
OWN: Final = re.compile(r"req_[0-9a-f]{32}")


def ask(client: FlaskClient, path: str, **fields: object) -> Any:
    body: dict[str, object] = {"model": "offline", "message": "hi"}
    if path != CHAT:
        body = {"model": "offline", "max_tokens": 10, "messages": V1["messages"]}
    return whole(client, path, json={**body, **fields})


def own_id(path: str, response: Any) -> str:
    """The server's id in the header of the answer, and in the body of Anthropic's errors."""
    shown: str = response.headers[HEADERS[path]]
    assert OWN.fullmatch(shown)
    if path == ANTHROPIC:
        assert "x-request-id" not in response.headers
        if response.status_code >= 400:
            assert response.json["request_id"] == shown
    return shown


@pytest.mark.parametrize("path", HEADERS)
def test_an_answer_of_this_server_has_an_id(client: FlaskClient, path: str) -> None:
    """A different one for each answer of the offline model, whole or streamed, each error and each
    denial."""
    answers = [
        ask(client, path),
        ask(client, path, stream=True),
        ask(client, path, model="no such model"),
    ]
    answers += [ask(client, path) for _ in range(9)]
    assert {answer.status_code for answer in answers} >= {200, 429}
    assert len({own_id(path, answer) for answer in answers}) == len(answers)


@pytest.mark.usefixtures("stopped_clock")
@pytest.mark.parametrize("path", HEADERS)
def test_a_401_and_a_429_at_the_edge_have_an_id(
    make_app: AppMaker, accounts: Accounts, path: str
) -> None:
    """Also a denial that replaces a finished answer."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    client = make_app().test_client()
    answers = [ask(client, path) for _ in range(25)]
    assert {answer.status_code for answer in answers} == {401, 429}
    assert len({own_id(path, answer) for answer in answers}) == len(answers)


@pytest.mark.parametrize("path", ["/nowhere", "/usage", "/v1/models", "/v1/nowhere", "/"])
def test_other_addresses_have_an_id(client: FlaskClient, path: str) -> None:
    """Known or unknown."""
    assert OWN.fullmatch(client.get(path).headers["x-request-id"])


@pytest.mark.parametrize("path", HEADERS)
def test_the_log_has_the_id_of_a_500(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """The operator finds the error by it."""
    app = make_app()
    monkeypatch.setattr(services_of(app).router, "answer", None)
    response = ask(app.test_client(), path)
    assert response.status_code == 500
    assert f"Request {own_id(path, response)} failed" in caplog.text


UPSTREAM_ERRORS: Final = (400, 401, 404, 429, 500, 503)


@pytest.mark.parametrize("status", UPSTREAM_ERRORS)
@pytest.mark.parametrize("path", HEADERS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_provider_keeps_its_id(
    online: FlaskClient, provider: UpstreamServer, path: str, status: int, stream: bool
) -> None:
    """Whether its body is forwarded or replaced."""
    provider.script(upstream_error(path, status, "req_7"))
    response = ask(online, path, model=MODELS[path], stream=stream)
    assert response.status_code >= 400
    assert response.headers[HEADERS[path]] == "req_7"
    if path == ANTHROPIC and response.status_code >= 500:
        assert response.json["request_id"] == "req_7"


@pytest.mark.parametrize("path", HEADERS)
def test_an_invalid_id_of_the_provider_is_replaced(
    online: FlaskClient, provider: UpstreamServer, path: str
) -> None:
    """The server would reject the header, and the whole answer with it."""
    provider.script(upstream_error(path, 500, "a\x01b"))
    response = ask(online, path, model=MODELS[path])
    assert response.status_code in {502, 503}
    own_id(path, response)


@pytest.mark.parametrize("path", HEADERS)
def test_an_answer_of_the_provider_without_an_id_gets_one(online: FlaskClient, path: str) -> None:
    """The scripted provider sends none."""
    response = ask(online, path, model=MODELS[path])
    assert response.status_code == 200
    own_id(path, response)


def upstream_error(path: str, status: int, request_id: str) -> Answer:
    """An error of the provider behind that address."""
    if path == ANTHROPIC:
        headers = {"request-id": request_id}
        return anthropic_error(status, kind="api_error", headers=headers)
    return openai_error(status, code="trouble", headers={"x-request-id": request_id})


# -- host names ---------------------------------------------------------------------------------


def status(client: FlaskClient, host: str, path: str = "/chat") -> int:
    headers = {"Host": host}
    if path == "/chat":
        return client.post(path, json=ASKED, headers=headers).status_code
    return client.get(path, headers=headers).status_code


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:54321", 200),
        ("[::1]:8000", 200),
        ("localhost.", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example:8000", 400),
        ("[::1].evil.example", 400),
        ("evil.example:80:localhost", 400),
        ("", 400),
    ],
)
def test_without_keys_only_loopback_names_are_answered(
    client: FlaskClient, host: str, expected: int
) -> None:
    """At any port."""
    assert status(client, host) == expected


def test_with_keys_every_name_is_answered(make_app: AppMaker, accounts: Accounts) -> None:
    """A page of another site has no key, so it cannot spend anything."""
    key = accounts.create_key("alice", plan=None, default_plan="starter").text
    headers = {"Host": "chat.example", "Authorization": f"Bearer {key}"}
    client = make_app().test_client()
    assert client.post("/chat", json=ASKED, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [("chat.example:443", 200), ("a.b.example", 200), ("b.example", 200), ("ab.example", 400)],
)
def test_the_setting_lists_the_trusted_hosts(make_app: AppMaker, host: str, expected: int) -> None:
    """Only those; a leading dot includes all subdomains."""
    client = make_app(CHATAPP_TRUSTED_HOSTS="chat.example, .b.example").test_client()
    assert status(client, host) == expected


def test_a_star_trusts_every_host(make_app: AppMaker) -> None:
    """By the operator's choice."""
    assert status(make_app(CHATAPP_TRUSTED_HOSTS="*").test_client(), "evil.example") == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_may_use_any_name(client: FlaskClient, path: str) -> None:
    """A probe uses the address of a container, which is unknown in advance."""
    assert status(client, "10.1.2.3:8000", path) == 200


@pytest.mark.parametrize("path", ["/", "/static/chat.js", "/v1/models", "/usage", "/nowhere"])
def test_nothing_else_is_exempt(client: FlaskClient, path: str) -> None:
    """Neither the page, whose script would call with the other site's name, nor unknown
    addresses."""
    assert status(client, "evil.example", path) == 400


def test_the_refusal_has_the_format_of_the_endpoint(client: FlaskClient) -> None:
    """It names the host and the setting."""
    headers = {"Host": "evil.example"}
    shown = json_of(client.post("/chat", json=ASKED, headers=headers))
    assert shown["code"] == "untrusted_host"
    assert "evil.example" in shown["error"]
    assert "CHATAPP_TRUSTED_HOSTS" in shown["error"]
    openai = json_of(client.post("/v1/chat/completions", json={}, headers=headers))
    assert openai["error"]["code"] == "untrusted_host"
    anthropic = json_of(client.post("/v1/messages", json={}, headers=headers))
    assert anthropic["error"]["details"] == {"error_code": "untrusted_host"}


def test_untrusted_hosts_are_charged_to_the_edge(client: FlaskClient) -> None:
    """Repeated refusals become 429."""
    answers = [status(client, "evil.example") for _ in range(25)]
    assert answers.count(400) == 20
    assert answers[-1] == 429
