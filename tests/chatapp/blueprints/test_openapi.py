"""GET /openapi.json, and what it describes: by it, requests are generated and answers checked.

OPENAPI_CASES=500 makes as many for each operation and mode; see the count with `-s`.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from tests.chatapp.conftest import AppMaker
from tests.chatapp.provider_server import ProviderServer

CASES = int(os.environ.get("OPENAPI_CASES", "4"))
MODELS = ("offline", "gpt-5.4-mini", "claude-haiku-4-5", "text-embedding-3-small")
NOT_DESCRIBED = {"static", "metrics.metrics"}


def description(app: Flask) -> Any:
    return app.test_client().get("/openapi.json").json


def test_every_endpoint_is_described(client: FlaskClient) -> None:
    """With a summary, and with the body that it reads."""
    app = client.application
    described = {
        operation["operationId"].rpartition(".")[0]: operation
        for operations in description(app)["paths"].values()
        for operation in operations.values()
    }
    assert described.keys() == app.view_functions.keys() - NOT_DESCRIBED
    for endpoint, operation in described.items():
        assert operation["summary"], endpoint
        posted = operation["operationId"].endswith(".post")
        has_body = posted and endpoint != "openai_stored.cancel"
        assert ("requestBody" in operation) == has_body, endpoint


def test_it_needs_no_key(make_app: AppMaker, database_url: str) -> None:
    """Also if others do."""
    Accounts(Database(database_url)).create_key("ada", plan=None, default_plan="starter")
    client = make_app().test_client()
    assert client.get("/usage").status_code == 401
    assert client.get("/openapi.json").status_code == 200


def test_it_is_limited_by_address(client: FlaskClient) -> None:
    """It costs no plan, and a single address may read it 20 times at once."""
    answers = [client.get("/openapi.json") for _ in range(21)]
    assert [answer.status_code for answer in answers] == [200] * 20 + [429]
    assert '"user"' not in answers[0].headers["RateLimit"]


def test_a_429_has_the_described_headers(client: FlaskClient) -> None:
    """Each of them, but `x-should-retry`, which forbids a retry; and it has the described body."""
    refused = [client.post("/chat", json={"message": "hi"}) for _ in range(11)][-1]
    assert refused.status_code == 429
    components = description(client.application)["components"]
    described = components["responses"]["error_429"]
    assert described["headers"].keys() - refused.headers.keys() == {"x-should-retry"}
    required = components["schemas"]["error"]["required"]
    assert refused.json is not None
    assert refused.json.keys() >= set(required) == {"error", "code"}


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_answers_are_as_described(make_app: AppMaker, provider: ProviderServer, mode: str) -> None:
    """Of valid requests and of others: the status, the type, the headers and the body."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    app = make_app(
        RATELIMIT_ENABLED=False, CHATAPP_PROVIDER_TIMEOUT_S=5, CHATAPP_PROVIDER_ATTEMPTS=1
    )
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    generation_mode = schemathesis.GenerationMode[mode]
    answered: Counter[tuple[str, int]] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=CASES,
            derandomize="OPENAPI_CASES" not in os.environ,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=generation_mode), data=st.data())
        def answers_as_described(case: Any, data: st.DataObject) -> None:
            if mode == "POSITIVE" and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = data.draw(st.sampled_from(MODELS))
            # Which models, ids and combinations exist is not in the schema.
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            answered[case.operation.label, answer.status_code] += 1

        with contextlib.suppress(Unsatisfiable):  # it takes nothing that could be invalid
            answers_as_described()
    print(f"\n{answered.total()} requests: {sorted(answered.items())}")  # noqa: T201
    statuses = {status for _, status in answered}
    assert statuses >= ({200, 404} if mode == "POSITIVE" else {400, 422})
