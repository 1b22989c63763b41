"""Upstreams by configuration: several of one protocol side by side, and several keys of one."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from chatapp.services import services_of
from tests.chatapp.application.upstreams.workers import MESSAGES, busy, chat, left, quota_headers
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    FIRST,
    OPENAI_PATH,
    RESPONSES_PATH,
    SECOND,
    Answer,
    UpstreamServer,
    anthropic_error,
    openai_body,
    openai_error,
    response_body,
)

#: What every answer of `upstream_server` in OpenAI's protocol uses.
USAGE = Usage(12, 5, cached_input_tokens=8, reasoning_tokens=2)
KEYED = """
version = 1
[upstreams.acme]
protocol = "openai"
base_url = "{url}/v1"
keys = ["env:ACME_KEY_1", "env:ACME_KEY_2"]
patterns = ["acme-*"]
price = {{ input = 2.0, cached_input = 1.0, cache_write = 2.0, output = 8.0 }}
"""
Configured = Callable[..., Flask]


@pytest.fixture
def server() -> Iterator[UpstreamServer]:
    with UpstreamServer.running() as running:
        yield running


@pytest.fixture
def other() -> Iterator[UpstreamServer]:
    """A second service."""
    with UpstreamServer.running() as running:
        yield running


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of two keys."""
    monkeypatch.setenv("ACME_KEY_1", FIRST)
    monkeypatch.setenv("ACME_KEY_2", SECOND)


@pytest.fixture
def configured(make_app: AppMaker, tmp_path: Path) -> Configured:
    """Makes an application with this providers file, a short timeout and one attempt per call."""

    def make(text: str, **config: object) -> Flask:
        file = tmp_path / "upstreams.toml"
        file.write_text(text)
        usual = {"CHATAPP_PROVIDER_TIMEOUT_S": 5, "CHATAPP_PROVIDER_ATTEMPTS": 1}
        return make_app(**usual, CHATAPP_PROVIDERS_FILE=str(file), **config)

    return make


@pytest.fixture
def keyed(configured: Configured, server: UpstreamServer) -> FlaskClient:
    """A client of an application whose upstream has two keys."""
    return configured(KEYED.format(url=server.url)).test_client()


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Not even at DEBUG, by any library."""
    caplog.set_level(logging.DEBUG)
    yield
    assert "secret-of" not in caplog.text


# -- side by side ------------------------------------------------------------------------------

TWO = """
version = 1

[upstreams.azure]
protocol = "openai"
base_url = "{azure}/v1"
keys = ["env:ACME_KEY_1"]
key_header = "api-key"
query = {{ api-version = "preview" }}
headers = {{ X-Title = "gateway" }}
models_of = "openai"
patterns = ["gpt-4o*"]

[upstreams.azure.models.prod]
like = "gpt-5.4-mini"
price = {{ input = 1.0, cached_input = 0.5, cache_write = 1.0, output = 4.0 }}

[upstreams.vllm]
protocol = "openai"
base_url = "{vllm}/v1"
patterns = ["gpt-*", "org/*"]
price = "free"
default_model = "llama"

[upstreams.vllm.models.llama]
context = 8192
price = {{ input = 3.0, cached_input = 3.0, cache_write = 3.0, output = 3.0 }}
aliases = ["llama-3"]

[upstreams.vllm.models.short]
name = "org/a-long-name"
context = 8192
"""


@pytest.fixture
def two(
    configured: Configured, server: UpstreamServer, other: UpstreamServer, ledger: RecordingLedger
) -> FlaskClient:
    """A client before an Azure-like service and one without a key; its calls are in `ledger`."""
    return configured(TWO.format(azure=server.url, vllm=other.url), ledger=ledger).test_client()


def test_an_upstream_has_its_own_address_key_and_parameters(
    two: FlaskClient, server: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Azure wants them; what the environment says for OpenAI is not sent there."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: a")
    raw = b'{"messages": [{"role": "user", "content": "ping"}],  "model": "gpt-4o", "seed": 1e2}'
    answered = two.post("/v1/chat/completions", data=raw, content_type="application/json")
    assert answered.status_code == 200, answered.text
    [call] = server.calls
    assert call.path == f"{OPENAI_PATH}?api-version=preview"
    assert call.raw == raw
    assert (call.headers["api-key"], call.headers["x-title"]) == (FIRST, "gateway")
    assert call.headers.keys().isdisjoint({"authorization", "openai-organization", "x-team"})


def test_an_upstream_without_keys_gets_none(two: FlaskClient, other: UpstreamServer) -> None:
    """Streams work as well."""
    body = {"model": "llama", "messages": MESSAGES, "stream": True}
    assert b"[DONE]" in two.post("/v1/chat/completions", json=body).data
    assert other.keys() == [""]


@pytest.mark.parametrize(
    ("asked", "provider", "sent", "slug", "cost"),
    [
        # 4 whole, 8 cached and 5 generated tokens.
        ("gpt-4o", "azure", "gpt-4o", "azure/gpt-4o", None),
        ("gpt-4o-2024-08-06", "azure", "gpt-4o-2024-08-06", "azure/gpt-4o", None),
        ("azure/gpt-4o", "azure", "gpt-4o", "azure/gpt-4o", None),
        ("prod", "azure", "prod", "azure/prod", 4 + 4 + 20),
        ("azure/prod", "azure", "prod", "azure/prod", 4 + 4 + 20),
        # The dearest of the upstream, o1-pro and others aside.
        ("gpt-4o-99", "azure", "gpt-4o-99", "azure-other", None),
        ("gpt-99", "vllm", "gpt-99", "vllm-other", 0),
        ("vllm/gpt-4o", "vllm", "gpt-4o", "vllm-other", 0),
        ("llama", "vllm", "llama", "vllm/llama", 51),
        ("vllm/llama-3", "vllm", "llama-3", "vllm/llama", 51),
        ("short", "vllm", "org/a-long-name", "vllm/short", 0),
        ("org/model", "vllm", "org/model", "vllm-other", 0),
        ("vllm/org/model", "vllm", "org/model", "vllm-other", 0),
    ],
)
def test_a_name_chooses_upstream_and_price(
    *,
    two: FlaskClient,
    ledger: RecordingLedger,
    asked: str,
    provider: str,
    sent: str,
    slug: str,
    cost: int | None,
    server: UpstreamServer,
    other: UpstreamServer,
) -> None:
    """By the first pattern, or by the upstream's name; the bill is exact, by the upstream's own
    prices."""
    assert chat(two, asked).status_code == 200
    [call] = (server if provider == "azure" else other).calls
    assert call.body["model"] == sent
    [row] = ledger.finished()
    prices = catalogue.load()
    if slug == "azure/gpt-4o":
        cost = prices.price("gpt-4o", USAGE)
    elif slug == "azure-other":
        own = [s for s in prices.tariffs if s.startswith("gpt-4o")]
        cost = max(28, *(prices.price(s, USAGE) for s in own))
    assert (row.provider, row.slug, row.cost_micro_usd) == (provider, slug, cost)
    assert round((2 - left(two)["usd-hour"]) * 1e6) == cost


def test_a_providers_model_can_have_another_price(
    configured: Configured, server: UpstreamServer, ledger: RecordingLedger
) -> None:
    """That of the operator's contract; all else is as in models.toml."""
    text = f"""
        version = 1
        [upstreams.openai]
        protocol = "openai"
        base_url = "{server.url}/v1"
        patterns = ["gpt-*"]
        [upstreams.openai.models.gpt-4o]
        like = "gpt-4o"
        price = {{ input = 1.0, cached_input = 1.0, cache_write = 1.0, output = 1.0 }}
    """
    client = configured(text, ledger=ledger).test_client()
    for model in ("gpt-4o-2024-08-06", "gpt-4o-mini"):
        assert chat(client, model).status_code == 200
    mine, listed = ledger.finished(2)
    assert (mine.slug, mine.cost_micro_usd) == ("openai/gpt-4o", 17)
    cost = catalogue.load().price("gpt-4o-mini", USAGE)
    assert (listed.slug, listed.cost_micro_usd) == ("gpt-4o-mini", cost)


COPIED = """
version = 1

[upstreams.azure]
protocol = "openai"
base_url = "{url}/v1"
models_of = "openai"
patterns = ["gpt-*"]
price = {{ input = 1.0, cached_input = 1.0, cache_write = 1.0, output = 1.0 }}
"""


def test_a_price_for_all_models_is_not_all_of_their_price(
    configured: Configured, server: UpstreamServer, ledger: RecordingLedger
) -> None:
    """Tools and tiers cost what they cost with the listed models of the upstream."""
    client = configured(COPIED.format(url=server.url), ledger=ledger).test_client()
    search = {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "a"}}
    usage = {"input_tokens": 10_000, "output_tokens": 0}
    for tier in ("default", "priority"):
        answer = response_body(output=[search], usage=usage, service_tier=tier)
        server.script(Answer(200, json.dumps(answer).encode()))
        body = {"model": "gpt-99", "input": "ping", "tools": [{"type": "web_search"}]}
        assert client.post(RESPONSES_PATH, json=body).status_code == 200
    usual, priority = ledger.finished(2)
    assert (usual.slug, usual.cost_micro_usd) == ("azure-other", 20_000)
    assert priority.cost_micro_usd > 29_000


def test_names_are_listed_with_their_upstream(two: FlaskClient, server: UpstreamServer) -> None:
    """For clients of the upstream's protocol; the default is that of the first with one."""
    listed = json_of(two.get("/v1/models"))
    ids = {each["id"]: each["owned_by"] for each in listed["data"]}
    assert ids["azure/gpt-4o"] == ids["azure/prod"] == "azure"
    assert ids["vllm/llama"] == "vllm"
    assert "gpt-4o" not in ids
    assert two.get("/v1/models/azure/gpt-4o").status_code == 200
    assert chat(two, None).json["model"] == "llama"  # type: ignore[arg-type]
    claude = json_of(two.get("/v1/models", headers={"anthropic-version": "2023-06-01"}))
    assert [each["id"] for each in claude["data"]] == ["offline"]


def test_the_messages_protocol_works_elsewhere_too(
    configured: Configured, server: UpstreamServer
) -> None:
    """With the key in the header that the service reads."""
    text = f"""
        version = 1
        [upstreams.foundry]
        protocol = "anthropic"
        base_url = "{server.url}"
        keys = ["env:ACME_KEY_1"]
        key_header = "x-api-key"
        models_of = "anthropic"
    """
    client = configured(text).test_client()
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": MESSAGES}
    assert client.post(ANTHROPIC_PATH, json=body).status_code == 200
    counted = client.post(f"{ANTHROPIC_PATH}/count_tokens", json={**body, "max_tokens": None})
    assert counted.json == {"input_tokens": 23}
    assert server.keys() == [FIRST, FIRST]
    assert chat(client, "foundry/claude-haiku-4-5").status_code == 200
    wrong = client.post(OPENAI_PATH, json={"model": "claude-haiku-4-5", "messages": MESSAGES})
    assert wrong.status_code == 404
    assert "foundry" not in wrong.text


def test_a_field_that_changes_the_price_there_is_refused(
    configured: Configured, server: UpstreamServer
) -> None:
    """As the operator says; null is no request for it."""
    text = KEYED.format(url=server.url) + 'refuse = ["plugins", "models"]'
    client = configured(text).test_client()
    body = {"model": "acme-1", "messages": MESSAGES, "plugins": None, "tools": []}
    assert client.post(OPENAI_PATH, json=body).status_code == 200
    refused = client.post(OPENAI_PATH, json={**body, "plugins": [{"id": "web"}]})
    assert refused.status_code == 400
    assert json_of(refused)["error"]["code"] == "unpriced_field"
    assert refused.json["error"]["param"] == "plugins"


def test_a_fallback_may_be_the_same_model_elsewhere(
    configured: Configured, server: UpstreamServer, other: UpstreamServer
) -> None:
    """In the same protocol: the request is forwarded, with the name alone changed."""
    text = TWO.format(azure=server.url, vllm=other.url)
    app = configured(text, CHATAPP_FALLBACK_MODELS={"azure/gpt-4o": "vllm/llama"})
    server.script(busy("7"))
    body = {"model": "gpt-4o", "messages": MESSAGES, "seed": 7}
    answered = app.test_client().post(OPENAI_PATH, json=body)
    assert answered.status_code == 200
    assert other.calls[0].body == {**body, "model": "llama"}


def test_a_fallback_elsewhere_must_have_a_price(
    configured: Configured, server: UpstreamServer, other: UpstreamServer
) -> None:
    """For each field of the request, by the rules of its own upstream."""
    text = TWO.format(azure=server.url, vllm=other.url).replace(
        'default_model = "llama"', 'refuse = ["seed"]'
    )
    app = configured(text, CHATAPP_FALLBACK_MODELS={"azure/gpt-4o": "vllm/llama"})
    server.refuse(FIRST, busy("30"))
    body = {"model": "gpt-4o", "messages": MESSAGES}
    assert app.test_client().post(OPENAI_PATH, json=body).status_code == 200
    assert app.test_client().post(OPENAI_PATH, json={**body, "seed": 7}).status_code == 503
    assert len(other.calls) == 1


def test_an_upstream_has_its_own_timeouts(configured: Configured, server: UpstreamServer) -> None:
    """Shorter ones than the settings'."""
    server.silence()
    text = KEYED.format(url=server.url) + "timeouts = { read_s = 0.2, first_byte_s = 0.2 }"
    assert chat(configured(text).test_client(), "acme-1").status_code == 504


# -- several keys ------------------------------------------------------------------------------


def test_keys_are_used_in_turn(keyed: FlaskClient, server: UpstreamServer) -> None:
    """Each call has one."""
    for _ in range(4):
        assert chat(keyed, "acme-1").status_code == 200
    assert sorted(server.keys()) == [FIRST, FIRST, SECOND, SECOND]
    assert server.keys()[:2] != [server.keys()[0]] * 2


def test_a_stored_response_stays_with_its_key(keyed: FlaskClient, server: UpstreamServer) -> None:
    """Other organisations do not have it, so that no other key takes over either."""
    body = {"model": "acme-1", "input": "ping"}
    assert keyed.post(RESPONSES_PATH, json=body).status_code == 200
    (own,) = server.keys()
    for _ in range(2):
        more = {**body, "previous_response_id": "resp_1"}
        assert keyed.post(RESPONSES_PATH, json=more).status_code == 200
        assert keyed.get(f"{RESPONSES_PATH}/resp_1").status_code == 200
    assert server.keys() == [own] * 5
    server.refuse(own, openai_error(401, code="invalid_api_key"))
    assert keyed.post(RESPONSES_PATH, json=more).status_code == 502
    assert server.keys() == [own] * 6


@pytest.mark.parametrize(
    "refusal",
    [
        busy("30"),
        openai_error(429, code="insufficient_quota"),
        openai_error(401, code="invalid_api_key", message=f"Incorrect API key: {FIRST}"),
        openai_error(403, code="forbidden"),
    ],
    ids=["rate limit", "no credit", "wrong", "forbidden"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_another_key_takes_over_at_once(
    keyed: FlaskClient, server: UpstreamServer, refusal: Answer, stream: bool
) -> None:
    """Within the call, although it has one attempt; from then on the refused key is left alone."""
    server.refuse(FIRST, refusal)
    body = {"model": "acme-1", "messages": MESSAGES, "stream": stream}
    for _ in range(4):
        assert keyed.post(OPENAI_PATH, json=body).status_code == 200
    assert server.keys().count(FIRST) == 1
    assert server.keys().count(SECOND) == 4


def test_a_rejected_key_is_logged_once(
    keyed: FlaskClient, server: UpstreamServer, caplog: pytest.LogCaptureFixture
) -> None:
    """By its variable."""
    server.refuse(FIRST, openai_error(401, code="invalid_api_key", message=f"wrong: {FIRST}"))
    for model in ("acme-1", "acme-2", "acme-1"):
        assert chat(keyed, model).status_code == 200
    said = [line for line in caplog.messages if "ACME_KEY_1" in line]
    assert said == [
        "The key ACME_KEY_1 of the upstream acme was rejected. It is tried again every 10 minutes."
    ]


def test_a_key_may_be_forbidden_one_model(keyed: FlaskClient, server: UpstreamServer) -> None:
    """It is still used for the others: no caller can put it out of use."""
    server.refuse(FIRST, openai_error(403, code="forbidden"))
    for _ in range(2):
        assert chat(keyed, "acme-1").status_code == 200
    server.refuse(FIRST, None)
    for _ in range(2):
        assert chat(keyed, "acme-2").status_code == 200
    assert server.keys().count(FIRST) == 2


def test_the_operator_learns_which_upstream_rejects_all_keys(
    keyed: FlaskClient, server: UpstreamServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets a 502 that names neither upstream nor key; each key was tried once."""
    for key in (FIRST, SECOND):
        server.refuse(key, openai_error(401, code="invalid_api_key", message=f"wrong: {key}"))
    for path, body in (
        ("/chat", {"message": "ping", "model": "acme-1"}),
        (OPENAI_PATH, {"model": "acme-1", "messages": MESSAGES}),
    ):
        refused = keyed.post(path, json=body)
        assert refused.status_code == 502
        assert refused.headers["x-should-retry"] == "false"
        assert "provider_refused" in refused.text
        assert "acme" not in refused.text.replace("acme-1", "")
        assert "secret-of" not in refused.text + str(refused.headers)
    assert server.keys()[:2] in ([FIRST, SECOND], [SECOND, FIRST])
    assert sum(
        line.startswith("acme did not answer for acme-other: auth") for line in caplog.messages
    )


def test_an_exhausted_key_pauses_no_other(
    configured: Configured, server: UpstreamServer, uri: str
) -> None:
    """A refusal to one worker is known to all, for that key. With no key left, the client gets the
    shortest wait."""
    text = KEYED.format(url=server.url)
    apps = [configured(text, RATELIMIT_STORAGE_URI=uri) for _ in range(2)]
    one, two = (app.test_client() for app in apps)
    server.refuse(FIRST, busy("60"))
    assert {chat(one, "acme-1").status_code for _ in range(2)} == {200}
    assert server.keys().count(FIRST) == 1
    assert {chat(two, "acme-1").status_code for _ in range(4)} == {200}
    assert server.keys().count(FIRST) == 1
    server.refuse(SECOND, busy("30"))
    assert chat(two, "acme-1").status_code == 503
    asked = len(server.calls)
    refused = chat(one, "acme-1")
    assert (refused.status_code, refused.json["code"]) == (503, "server_is_overloaded")
    assert int(refused.headers["Retry-After"]) <= 30
    assert len(server.calls) == asked
    assert chat(one, "acme-2").status_code == 503  # asked: the pause is of a model
    assert len(server.calls) > asked


def test_a_quota_is_that_of_its_key(
    configured: Configured, server: UpstreamServer, uri: str
) -> None:
    """One key has nothing left by its own report; the other one serves all further calls."""
    app = configured(KEYED.format(url=server.url), RATELIMIT_STORAGE_URI=uri)
    client = app.test_client()
    spent = Answer(200, openai_body(model="acme-1"), quota_headers(requests=(60, 0, "24h0m0s")))
    server.script(spent)
    for _ in range(5):
        assert chat(client, "acme-1").status_code == 200
    used = server.keys()
    assert used.count(used[0]) == 1


def test_a_key_in_a_file_is_read_again(
    configured: Configured, server: UpstreamServer, tmp_path: Path
) -> None:
    """As soon as it changes, also a rejected one; an empty file changes nothing."""
    file = tmp_path / "key"
    file.write_text(f"{FIRST}\n")
    text = KEYED.format(url=server.url).replace("env:ACME_KEY_1", f"file:{file}")
    client = configured(text.replace(', "env:ACME_KEY_2"', "")).test_client()
    server.refuse(FIRST, openai_error(401, code="invalid_api_key"))
    assert chat(client, "acme-1").status_code == 502
    file.write_text("")
    assert chat(client, "acme-1").status_code == 502
    file.write_text(SECOND)
    assert chat(client, "acme-1").status_code == 200
    file.unlink()
    assert chat(client, "acme-1").status_code == 200
    assert server.keys() == [FIRST, FIRST, SECOND, SECOND]


def test_a_pause_is_lifted_for_all_keys(
    configured: Configured, server: UpstreamServer, uri: str
) -> None:
    """By `chat unblock model`."""
    text = KEYED.format(url=server.url) + "\n[upstreams.acme.models.acme-1]\ncontext = 1000\n"
    app = configured(text, RATELIMIT_STORAGE_URI=uri)
    client = app.test_client()
    for key in (FIRST, SECOND):
        server.refuse(key, busy("40"))
    assert chat(client, "acme-1").status_code == 503
    for key in (FIRST, SECOND):
        server.refuse(key, None)
    assert chat(client, "acme-1").status_code == 503
    done = app.test_cli_runner().invoke(args=["chat", "unblock", "model", "acme/acme-1"])
    assert "is no longer blocked" in done.output
    assert chat(client, "acme-1").status_code == 200


def test_a_misspelt_variable_of_a_key_is_named(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The offline provider would answer, and nothing say why."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    make_app()
    warning = "OPENAI_API_KEY is not set, but OPENAI_KEY is, which nothing reads. Rename it."
    assert [each for each in caplog.messages if each.startswith("OPENAI")] == [warning]


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OPENAI_API_KEY": "sk-ant-1"}, "OPENAI_API_KEY"),
        ({"OPENAI_API_KEY": "sk-chat-1"}, "OPENAI_API_KEY"),
        ({"ANTHROPIC_API_KEY": "sk-proj-1"}, "ANTHROPIC_API_KEY"),
        ({"OPENAI_API_KEY": "sk-proj-1", "ANTHROPIC_API_KEY": "sk-ant-1"}, ""),
        ({"ANTHROPIC_API_KEY": "sk-1", "ANTHROPIC_BASE_URL": "https://proxy.invalid"}, ""),
    ],
)
def test_a_key_of_another_service_is_named(
    make_app: AppMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    named: str,
) -> None:
    """Before its provider rejects it in a call. At another address it may be right."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    make_app()
    shown = [line for line in caplog.messages if "another service" in line]
    assert [line.partition(" ")[0] for line in shown] == [named] * bool(named)


def test_a_missing_key_leaves_the_others_in_use(
    configured: Configured,
    server: UpstreamServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged at the start. Without any key the models are unavailable, as without that of a
    provider."""
    monkeypatch.delenv("ACME_KEY_1")
    client = configured(KEYED.format(url=server.url)).test_client()
    assert "Upstream acme: there is no key in ACME_KEY_1" in caplog.messages
    assert not [each for each in caplog.messages if "Rename" in each]  # ACME_KEY_2 is read
    assert {chat(client, "acme-1").status_code for _ in range(2)} == {200}
    assert server.keys() == [SECOND, SECOND]
    monkeypatch.setenv("ACME_KEY_2", "two words")
    client = configured(KEYED.format(url=server.url)).test_client()
    refused = chat(client, "acme-1")
    assert (refused.status_code, refused.json["code"]) == (422, "model_unavailable")


def test_a_named_upstream_is_not_replaced_by_another(
    configured: Configured,
    server: UpstreamServer,
    other: UpstreamServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without its key a pattern leads to the next upstream, and its name to nothing."""
    monkeypatch.delenv("ACME_KEY_1")
    text = TWO.format(azure=server.url, vllm=other.url).replace('"org/*"', '"*/*"')
    client = configured(text).test_client()
    assert chat(client, "gpt-4o").status_code == 200
    assert [call.body["model"] for call in other.calls] == ["gpt-4o"]
    refused = chat(client, "azure/gpt-4o")
    assert (refused.status_code, refused.json["code"]) == (422, "model_unavailable")


def test_no_representation_has_a_secret(keyed: FlaskClient) -> None:
    """Not of a provider, its keys, or the services."""
    services = services_of(keyed.application)
    router: Any = services.router
    provider = router._upstreams["acme"]
    shown = repr([services, provider, vars(provider), vars(provider.keys), provider.keys._keys])
    assert "secret-of" not in shown
    assert "ACME_KEY_1" in shown


def test_anthropics_refusals_change_the_key_too(
    configured: Configured, server: UpstreamServer
) -> None:
    """In its own errors."""
    text = KEYED.format(url=server.url).replace('"openai"', '"anthropic"').replace("/v1", "")
    client = configured(text).test_client()
    server.refuse(FIRST, anthropic_error(401, kind="authentication_error", message=FIRST))
    body = {"model": "acme-1", "max_tokens": 9, "messages": MESSAGES}
    for _ in range(3):
        assert client.post(ANTHROPIC_PATH, json=body).status_code == 200
    assert server.keys().count(FIRST) == 1
