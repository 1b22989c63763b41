"""GET /v1/models: each provider's SDK gets the list that it can read."""

from datetime import UTC, datetime

import anthropic
import openai
import pytest
from flask.testing import FlaskClient

from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from tests.chatapp.conftest import AppMaker, json_of

SPEAKS_ANTHROPIC = {"anthropic-version": "2023-06-01"}


def test_anthropics_sdk_lists_its_models(served: str) -> None:
    """Claude's models and the offline model, on one page."""
    with anthropic.Anthropic(base_url=served, api_key="mine") as sdk:
        page = sdk.models.list()
        listed = {model.id: model for model in page}
        ids = list(listed)
        one = sdk.models.retrieve("claude-haiku-4-5")
        with pytest.raises(anthropic.NotFoundError, match="Unknown model"):
            sdk.models.retrieve("llama")
    assert {"offline", "claude-haiku-4-5"} <= set(listed)
    assert not any(name.startswith("gpt") for name in listed)
    assert {model.type for model in listed.values()} == {"model"}
    assert page.has_more is False
    assert [page.first_id, page.last_id] == [ids[0], ids[-1]]
    assert one == listed["claude-haiku-4-5"]
    assert one.display_name == "claude-haiku-4-5"
    assert one.created_at == datetime(1970, 1, 1, tzinfo=UTC)
    assert (one.max_input_tokens, one.max_tokens) == (200_000, 64_000)
    assert one.capabilities is not None
    assert one.capabilities.image_input.supported
    assert one.capabilities.pdf_input.supported


def test_sizes_are_in_both_lists(client: FlaskClient) -> None:
    """By the names of both; null for what is unknown."""
    for headers in ({}, SPEAKS_ANTHROPIC):
        model = client.get("/v1/models/offline", headers=headers).json
        assert model is not None
        assert model["max_input_tokens"] == model["context_window"] == 128_000
        assert model["max_tokens"] is model["max_completion_tokens"] is None
        assert model["capabilities"]["thinking"] == {"supported": False}


def test_anthropics_list_has_pages(served: str) -> None:
    """The SDK walks through all of them, forwards and backwards."""
    with anthropic.Anthropic(base_url=served, api_key="mine") as sdk:
        everything = [model.id for model in sdk.models.list()]
        first = sdk.models.list(limit=2)
        assert ([each.id for each in first.data], first.has_more) == (everything[:2], True)
        assert (first.first_id, first.last_id) == (everything[0], everything[1])
        assert [model.id for model in sdk.models.list(limit=2)] == everything
        assert [model.id for model in sdk.models.list(after_id=everything[2])] == everything[3:]
        before = sdk.models.list(before_id=everything[3], limit=2)
        assert ([each.id for each in before.data], before.has_more) == (everything[1:3], True)
        assert [model.id for model in before] == [*everything[1:3], everything[0]]
        assert sdk.models.list(after_id=everything[-1]).data == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("after_id=nothing", "after_id"),
        ("before_id=nothing", "before_id"),
        ("before_id=offline&after_id=offline", "after_id"),
    ],
)
def test_a_page_that_is_none_is_refused(client: FlaskClient, query: str, param: str) -> None:
    """With the parameter's name."""
    refused = client.get(f"/v1/models?{query}", headers=SPEAKS_ANTHROPIC)
    assert refused.status_code == 400
    assert json_of(refused)["error"]["details"]["error_code"] == "invalid_query"
    assert refused.json["error"]["message"].startswith(f'"{param}"')
    assert client.get(f"/v1/models?{query}").status_code == 200


def test_openais_sdk_lists_its_models(served: str) -> None:
    """At the same address."""
    with openai.OpenAI(base_url=f"{served}/v1", api_key="mine") as sdk:
        listed = {model.id: model for model in sdk.models.list()}
    assert {"offline", "gpt-5.4-mini"} <= set(listed)
    assert not any(name.startswith("claude") for name in listed)
    assert {model.object for model in listed.values()} == {"model"}


def test_without_keys_only_the_offline_model_is_listed(client: FlaskClient) -> None:
    """For either provider's client."""
    shown = client.get("/v1/models", headers=SPEAKS_ANTHROPIC).json
    assert shown is not None
    assert (shown["first_id"], shown["last_id"], shown["has_more"]) == ("offline", "offline", False)


def test_a_missing_key_has_the_providers_format(make_app: AppMaker, database_url: str) -> None:
    """The SDK's error has a type."""
    Accounts(Database(database_url)).create_key("alice", plan=None, default_plan="starter")
    client = make_app().test_client()
    refused = client.get("/v1/models", headers=SPEAKS_ANTHROPIC)
    assert refused.status_code == 401
    assert json_of(refused)["error"]["type"] == "authentication_error"
    refused = client.get("/v1/models")
    assert json_of(refused)["error"]["code"] == "invalid_api_key"
