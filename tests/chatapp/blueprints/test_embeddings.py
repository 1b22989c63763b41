"""POST /v1/embeddings: input tokens only."""

import json

import openai
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapp.catalogue.usage import Usage
from tests.chatapp.conftest import replace_services
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    EMBEDDINGS_PATH,
    Answer,
    UpstreamServer,
    embeddings_body,
    openai_error,
)

MODEL = "text-embedding-3-small"


def embed(client: FlaskClient, **fields: object) -> TestResponse:
    return client.post(EMBEDDINGS_PATH, json={"model": MODEL, "input": "ping", **fields})


def test_body_and_answer_are_forwarded_byte_for_byte(
    online: FlaskClient, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """It is billed by its usage: 7 tokens at 2 cents a million, rounded up once."""
    replace_services(online.application, ledger=ledger)
    sent = json.dumps({"model": MODEL, "input": ["é", "b"], "new": [1.50]}, indent=3).encode()
    answer = json.dumps(embeddings_body(), indent=1).encode()
    provider.script(Answer(200, answer))
    response = online.post(EMBEDDINGS_PATH, data=sent, content_type="application/json")
    assert (response.status_code, response.data) == (200, answer)
    assert provider.calls[0].raw == sent
    [call] = ledger.finished()
    assert (call.usage, call.estimated) == (Usage(7, 0, tiers=()), False)
    assert (call.cost_micro_usd, call.endpoint) == (1, "openai_api.embeddings")
    assert call.estimated_output_tokens == 0


def test_the_sdk_gets_its_vectors(served: str) -> None:
    """Which it requests in base64 itself."""
    with openai.OpenAI(base_url=f"{served}/v1", api_key="mine") as sdk:
        answer = sdk.embeddings.create(model=MODEL, input=["ping"])
    assert (answer.data[0].embedding, answer.usage.prompt_tokens) == ([0.25, -0.5], 7)


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ("word " * 1_000, 1_000, 1_010),
        (["word " * 500, "word " * 500], 1_000, 1_020),
        ([1, 2, 3], 3, 10),
        ([[1] * 8_000] * 20, 160_000, 160_010),
    ],
    ids=["text", "texts", "tokens", "lists of tokens"],
)
def test_the_input_is_estimated(
    online: FlaskClient, ledger: RecordingLedger, given: object, least: int, most: int
) -> None:
    """Also what the client has cut into tokens itself."""
    replace_services(online.application, ledger=ledger)
    assert embed(online, input=given).status_code == 200
    assert least <= ledger.begun[0].estimated_input_tokens <= most


def test_other_addresses_do_not_take_its_models(online: FlaskClient) -> None:
    """The answer names the right address."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "ping"}]}
    refused = online.post("/v1/chat/completions", json=body)
    assert refused.status_code == 404
    assert "Use POST /v1/embeddings." in refused.text


def test_a_failure_costs_nothing(
    online: FlaskClient, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """As for other calls."""
    replace_services(online.application, ledger=ledger)
    provider.script(openai_error(500, code="no"))
    assert embed(online).status_code == 503
    assert ledger.finished()[0].cost_micro_usd == 0
