"""The models that a plan and a key allow, for the providers' SDKs and for POST /chat."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from flask import Flask

from chatapp import POLICY_FILE
from chatapp.accounts.store import Accounts
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, json_of, policy_file
from tests.chatapp.upstream_server import UpstreamServer, openai_error
from tests.served import serving

ASKED = [{"role": "user", "content": "ping"}]
KEYS = 'limit = "1200/minute"'
STARTER = 'title = "Starter"\n'
MODELS = 'models = ["claude-haiku*", "gpt-5.4*"]\n'


def policy(tmp_path: Path, line: str = MODELS) -> str:
    """The packaged policy, with this line in the plan Starter, and keys that refill slowly."""
    text = POLICY_FILE.read_text()
    assert STARTER in text
    assert KEYS in text
    changed = text.replace(STARTER, STARTER + line).replace(KEYS, 'limit = "1200/day"')
    return policy_file(tmp_path, changed)


@pytest.fixture
def start(make_app: AppMaker, provider: UpstreamServer, tmp_path: Path) -> Callable[..., Flask]:
    """Starts a worker with that policy."""
    file = policy(tmp_path)
    return lambda **config: make_app(
        RATELIMIT_POLICY_FILE=file, CHATAPP_PROVIDER_ATTEMPTS=1, **config
    )


@pytest.fixture
def url(accounts: Accounts, start: Callable[..., Flask]) -> Iterator[str]:
    """A real server."""
    accounts.create_key("first", plan=None, default_plan="starter")
    with serving(start()) as address:
        yield address


def key_of(accounts: Accounts, user: str, plan: str = "starter", **options: Any) -> str:
    return accounts.create_key(user, plan=plan, default_plan=plan, **options).text


def test_openais_sdk_gets_the_models_of_the_plan(
    url: str, accounts: Accounts, provider: UpstreamServer
) -> None:
    """Those and no others, in the list and in calls; the refusal lists them."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key_of(accounts, "ada")) as sdk:
        listed = [model.id for model in sdk.models.list()]
        assert "gpt-5.4-mini" in listed
        assert all(name.startswith("gpt-5.4") for name in listed)
        called = sdk.chat.completions.create(model="gpt-5.4-mini-2026-03-17", messages=ASKED)  # type: ignore[call-overload]
        assert called.choices[0].message.content == "pong"
        calls = len(provider.calls)
        for refused in (
            lambda: sdk.chat.completions.create(model="gpt-4o", messages=ASKED),  # type: ignore[call-overload]
            lambda: sdk.models.retrieve("gpt-4o"),
            lambda: sdk.responses.create(model="gpt-4o", input="ping"),
            lambda: sdk.embeddings.create(model="text-embedding-3-small", input="ping"),
        ):
            with pytest.raises(openai.PermissionDeniedError) as caught:
                refused()
            assert caught.value.code == "model_not_allowed"
            assert caught.value.param == "model"
            message = str(caught.value)
            assert "The Starter plan does not allow the model" in message
            assert ". Choose one of: " in message
            assert "claude-haiku-4-5" in message
            assert "gpt-5.4-mini" in message
            assert "gpt-5.6" not in message
    assert len(provider.calls) == calls
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key_of(accounts, "zoe", "pro")) as sdk:
        assert {"gpt-4o", "offline"} <= {model.id for model in sdk.models.list()}


def test_anthropics_sdk_gets_the_models_of_the_plan(url: str, accounts: Accounts) -> None:
    """Counting tokens included; the error is the provider's `permission_error`."""
    with anthropic.Anthropic(base_url=url, api_key=key_of(accounts, "ada")) as sdk:
        listed = [model.id for model in sdk.models.list()]
        assert listed
        assert all(name.startswith("claude-haiku") for name in listed)
        asked: Any = {"model": "claude-haiku-4-5", "messages": ASKED}
        assert sdk.messages.create(max_tokens=9, **asked).content
        asked["model"] = "claude-opus-4-5"
        for refused in (
            lambda: sdk.messages.create(max_tokens=9, **asked),
            lambda: sdk.messages.count_tokens(**asked),
        ):
            with pytest.raises(anthropic.PermissionDeniedError) as caught:
                refused()
            body: Any = caught.value.body
            assert body["error"]["type"] == "permission_error"
            assert body["error"]["details"] == {"error_code": "model_not_allowed"}


def test_a_key_allows_less_than_its_plan(url: str, accounts: Accounts) -> None:
    """Never more; the list says whose it is."""
    key = key_of(accounts, "ada", models=["gpt-5*", "gpt-4o"])
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as sdk:
        listed = {model.id for model in sdk.models.list()}
        assert "gpt-5.4-mini" in listed
        assert not listed & {"gpt-4o", "gpt-5.6-luna"}
        for model, owner in (("gpt-4o", "The Starter plan"), ("claude-haiku-4-5", "This API key")):
            with pytest.raises(openai.OpenAIError, match=f"{owner} does not allow|belongs to"):
                sdk.chat.completions.create(model=model, messages=ASKED)  # type: ignore[call-overload]


def chat(app: Flask, key: str, **body: object) -> Any:
    answer = app.test_client().post(
        "/chat", json={"message": "hi", **body}, headers={"x-api-key": key}
    )
    return answer.status_code, answer.json


def test_without_a_model_the_first_allowed_one_answers(
    accounts: Accounts, start: Callable[..., Flask]
) -> None:
    """A provider's default, or else the first one in the order of the patterns."""
    ada, zoe = key_of(accounts, "ada"), key_of(accounts, "zoe", "pro")
    bob = key_of(accounts, "bob", models=["o3", "gpt-5.4-nano", "gpt-5.4-mini"])
    app = start(CHATAPP_DEFAULT_MODEL="gpt-4o")
    assert chat(app, ada)[1]["model"] == "claude-haiku-4-5"
    assert chat(app, zoe)[1]["model"] == "gpt-4o"
    assert chat(app, bob)[1]["model"] == "gpt-5.4-nano"
    status, body = chat(app, ada, model="gpt-4o")
    assert (status, body["code"]) == (403, "model_not_allowed")
    app = start(CHATAPP_DEFAULT_MODEL="gpt-5.4-mini")
    assert chat(app, ada)[1]["model"] == "gpt-5.4-mini"


def test_a_plan_without_an_available_model_refuses(
    accounts: Accounts, make_app: AppMaker, tmp_path: Path
) -> None:
    """Without providers there is only the offline model; the refusal has the patterns."""
    ada = key_of(accounts, "ada")
    app = make_app(RATELIMIT_POLICY_FILE=policy(tmp_path))
    status, body = chat(app, ada)
    assert (status, body["code"]) == (403, "model_not_allowed")
    assert body["error"].endswith('the model "offline". Choose one of: claude-haiku*, gpt-5.4*.')
    shown = app.test_client().get(
        "/v1/models", headers={"x-api-key": ada, "anthropic-version": "2023-06-01"}
    )
    assert shown.json == {"data": [], "has_more": False, "first_id": None, "last_id": None}


def test_a_fallback_that_is_not_allowed_is_not_called(
    accounts: Accounts, start: Callable[..., Flask], provider: UpstreamServer
) -> None:
    """The overload is answered as such; a plan that allows it gets the fallback's answer."""
    ada, zoe = key_of(accounts, "ada"), key_of(accounts, "zoe", "pro")
    app = start(CHATAPP_FALLBACK_MODELS='{"gpt-5.4-mini": "gpt-4o"}')
    for key, status in ((zoe, 200), (ada, 503)):
        provider.script(openai_error(503, code="server_is_overloaded"))
        assert chat(app, key, model="gpt-5.4-mini")[0] == status
        run(app, "unblock", "model", "gpt-5.4-mini", status=1)
        app = start(CHATAPP_FALLBACK_MODELS='{"gpt-5.4-mini": "gpt-4o"}')
    assert [call.body["model"] for call in provider.calls] == [
        "gpt-5.4-mini",
        "gpt-4o",
        "gpt-5.4-mini",
    ]


def test_a_refusal_charges_only_the_edge(accounts: Accounts, start: Callable[..., Flask]) -> None:
    """No plan and no budget; the key's rate, so that trying many names is limited."""
    ada = key_of(accounts, "ada")
    app = start()
    for _ in range(20):
        assert chat(app, ada, model="gpt-4o")[0] == 403
    usage = json_of(app.test_client().get("/usage", headers={"x-api-key": ada}))
    left = {limit["name"]: limit["remaining"] for limit in usage["limits"]}
    assert (left["plan"], left["user"], left["at-once"]) == (100, 10, 4)
    assert left["key"] == 200 - 20 - 1  # this one, too


def test_without_accounts_the_plan_of_the_user_id_applies(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Path
) -> None:
    """As for its limits."""
    app = make_app(RATELIMIT_POLICY_FILE=policy(tmp_path), CHATAPP_PLANS={"zoe": "pro"})
    assert chat(app, "", model="gpt-4o", user_id="ada")[0] == 403
    assert chat(app, "", model="gpt-4o", user_id="zoe")[0] == 200


def test_a_pattern_that_matches_no_model_is_logged(
    make_app: AppMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be meant, but it may be misspelt."""
    make_app(RATELIMIT_POLICY_FILE=policy(tmp_path, 'models = ["gtp-5*", "gpt-4o"]\n'))
    (warning,) = [r.getMessage() for r in caplog.records if "matches no model" in r.getMessage()]
    assert "plans.starter.models: 'gtp-5*'" in warning
    assert "gpt-4o" not in warning


def test_the_models_of_a_key_are_set_by_command(make_app: AppMaker, accounts: Accounts) -> None:
    """At its creation and later."""
    app = make_app()
    made = run(app, "keys", "create", "--user", "ada", "--model", "gpt-5*", "--model", "o3")
    key = made.stdout.strip()
    assert "valid  gpt-5*, o3" in run(app, "keys", "list").output
    assert "allows gpt-4o;" in run(app, "keys", "set", key, "--model", "gpt-4o").output
    assert accounts.all_keys()[0].models == ["gpt-4o"]
    assert "allows all models of its plan" in run(app, "keys", "set", key, "--model", "").output
    assert accounts.all_keys()[0].models is None
    assert "There is no key" in run(app, "keys", "set", "0" * 16, "--model", "o3", status=1).stderr
    run(app, "keys", "set", key, "--model", "gpt 5", status=2)


AZURE = """
version = 1

[upstreams.azure]
protocol = "openai"
base_url = "{url}/v1"

[upstreams.azure.models."gpt-5.4-mini"]
like = "gpt-5.4-mini"
name = "my-deployment"
aliases = ["mini"]

[upstreams.azure.models.dear]
like = "gpt-5.4"
name = "gpt-5.4-deployment"
"""


def test_a_pattern_matches_what_callers_call_a_model(
    start: Callable[..., Flask], provider: UpstreamServer, tmp_path: Path
) -> None:
    """With or without its upstream; not what the upstream calls it. In calls, counts and lists."""
    file = tmp_path / "upstreams.toml"
    file.write_text(AZURE.format(url=provider.url))
    client = start(CHATAPP_PROVIDERS_FILE=str(file)).test_client()

    def statuses(*names: str) -> list[int]:
        counting = "/v1/responses/input_tokens"
        bodies = [{"model": name, "input": "ping"} for name in names]
        return [
            client.post(path, json=body).status_code
            for body in bodies
            for path in ("/v1/responses", counting)
        ]

    assert statuses("gpt-5.4-mini", "azure/gpt-5.4-mini", "mini") == [200] * 6
    assert {call.body["model"] for call in provider.calls} == {"my-deployment"}
    assert statuses("dear", "azure/dear") == [403] * 4
    refused = client.post("/v1/responses", json={"model": "dear", "input": "ping"}).text
    assert '"dear' in refused.replace("\\", "")
    assert "deployment" not in refused
    listed = json_of(client.get("/v1/models"))
    assert [model["id"] for model in listed["data"]] == ["azure/gpt-5.4-mini"]


def test_an_upstreams_name_may_be_a_pattern(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Path
) -> None:
    """Also of models that are not listed."""
    file = tmp_path / "upstreams.toml"
    vllm = '[upstreams.vllm]\nprotocol = "openai"\npatterns = ["llama*"]\nprice = "free"\n'
    file.write_text(f'version = 1\n{vllm}base_url = "{provider.url}/v1"\n')
    app = make_app(
        CHATAPP_PROVIDERS_FILE=str(file),
        RATELIMIT_POLICY_FILE=policy(tmp_path, 'models = ["vllm/*"]\n'),
    )
    body = {"model": "llama-3", "messages": ASKED}
    assert app.test_client().post("/v1/chat/completions", json=body).status_code == 200
