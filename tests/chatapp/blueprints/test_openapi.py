"""GET /openapi.json, and what it describes: by it, requests are generated and answers checked.

OPENAPI_CASES=500 makes as many for each operation and mode; see the count with `-s`.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from pydantic import TypeAdapter

from chatapp.accounts.store import Accounts
from chatapp.blueprints import anthropic_api, openai_api
from chatapp.blueprints.me import Lowered
from chatapp.database.connection import Database
from chatapp.web.requests import forwarded
from chatapp.web.requests.chat import OneMessage, WholeConversation
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.upstream_server import UpstreamServer

CASES = int(os.environ.get("OPENAPI_CASES", "4"))
MODELS = ("offline", "gpt-5.4-mini", "claude-haiku-4-5", "text-embedding-3-small")
NOT_DESCRIBED = {"static", "metrics.metrics"}


def description(app: Flask) -> Any:
    return app.test_client().get("/openapi.json").json


def bodies() -> dict[str, Any]:
    """The models of the bodies that endpoints read, by endpoint."""
    return {
        "chat.chat": OneMessage | WholeConversation,
        **{f"openai_api.{name}": each.fields for name, each in openai_api.ADDRESSES.items()},
        **{f"anthropic_api.{name}": each.fields for name, each in anthropic_api.ADDRESSES.items()},
        "openai_stored.count": forwarded.InputFields,
        "me.lower_limit": Lowered,
    }


def described(schema: Any, models: Mapping[str, Any]) -> Any:
    """A schema with its references replaced by ``models``, and without titles and descriptions."""
    match schema:
        case {"$ref": str(path)}:
            return described(models[path.rpartition("/")[2]], models)
        case dict():
            return {
                name: described(each, models)
                for name, each in schema.items()
                if name not in {"$defs", "description"} and (name, type(each)) != ("title", str)
            }
        case list():
            return [described(each, models) for each in schema]
    return schema


def test_it_is_what_the_routes_say(client: FlaskClient) -> None:
    """The checked-in document has every address, method and body, each with a summary."""
    app, document = client.application, description(client.application)
    routes = {
        (re.sub(r"<(?:\w+:)?([a-z]+)_?>", r"{\1}", rule.rule), method.lower(), rule.endpoint)
        for rule in app.url_map.iter_rules()
        if rule.endpoint not in NOT_DESCRIBED
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    operations = {
        (path, method, operation["operationId"].rpartition(".")[0]): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert operations.keys() == routes
    for (_, method, endpoint), operation in operations.items():
        assert operation["summary"], endpoint
        assert ("requestBody" in operation) == (method in ("post", "put") and endpoint in bodies())
    schemas = document["components"]["schemas"]
    for endpoint, body in bodies().items():
        expected = TypeAdapter(body).json_schema()
        found = described(schemas[endpoint], schemas)
        assert found == described(expected, expected.get("$defs", {})), endpoint


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
    assert json_of(refused).keys() >= set(required) == {"error", "code"}


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_answers_are_as_described(make_app: AppMaker, provider: UpstreamServer, mode: str) -> None:
    """Of valid requests and of others: the status, the type, the headers and the body."""
    import schemathesis
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
