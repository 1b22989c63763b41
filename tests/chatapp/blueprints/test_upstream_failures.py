"""What a client gets if the provider rejects a request or fails: a status, a code and a wait that
the SDK of its protocol knows."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.chatapp.application.bad_input.test_bad_input import BODIES
from tests.chatapp.conftest import json_of
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    COUNT_PATH,
    OPENAI_PATH,
    RESPONSES_PATH,
    Answer,
    UpstreamServer,
    anthropic_error,
    openai_error,
)

PAGE = b"<h1>no</h1>"
SOON = {"Retry-After": "7"}
#: What the client gets: a status, the code or, in Anthropic's format, the type of the error, the
#: wait, and whether the SDK should retry.
OVERLOADED = (503, "server_is_overloaded", "5", None)
REFUSED = (502, "provider_refused", None, "false")
API_ERROR = (502, "api_error", None, "false")
TROUBLES: dict[str, dict[str, tuple[Answer, *tuple[Any, ...]]]] = {
    OPENAI_PATH: {
        "rate limit": (
            openai_error(429, code="rate_limit_exceeded", headers=SOON),
            *(503, "server_is_overloaded", "7", None),
        ),
        "rate limit without a wait": (openai_error(429, code="rate_limit_exceeded"), *OVERLOADED),
        "a long rate limit": (
            openai_error(429, code="slow_down", headers={"Retry-After": "3600"}),
            *(503, "server_is_overloaded", "3600", "false"),
        ),
        "no credit": (
            openai_error(429, code="insufficient_quota", message="sk-openai-test"),
            *REFUSED,
        ),
        "our key": (
            openai_error(401, code="invalid_api_key", message="Incorrect: sk-openai-test"),
            *REFUSED,
        ),
        "broken": (openai_error(500, code="oops"), *OVERLOADED),
        "broken in HTML": (Answer(502, PAGE), *OVERLOADED),
        "not JSON": (Answer(200, PAGE), 502, "provider_unavailable", None, "false"),
        "a page that is not there": (Answer(404, PAGE), 404, "unknown_model", None, None),
    },
    RESPONSES_PATH: {
        "rate limit": (
            openai_error(429, code="slow_down", headers=SOON),
            *(503, "server_is_overloaded", "7", None),
        ),
    },
    ANTHROPIC_PATH: {
        "rate limit": (
            anthropic_error(429, kind="rate_limit_error", headers=SOON),
            *(529, "overloaded_error", "7", None),
        ),
        "overloaded": (
            anthropic_error(529, kind="overloaded_error"),
            *(529, "overloaded_error", "5", None),
        ),
        "a spend cap": (
            anthropic_error(429, kind="rate_limit_error", error_code="spend_limit_reached"),
            *API_ERROR,
        ),
        "our key": (
            anthropic_error(401, kind="authentication_error", message="sk-ant-test"),
            *API_ERROR,
        ),
        "broken": (anthropic_error(500, kind="api_error"), 503, "overloaded_error", "5", None),
        "not JSON": (Answer(200, PAGE), *API_ERROR),
    },
    # Nothing was billed, so that a retry helps, except after a rejected key.
    COUNT_PATH: {
        "rate limit": (
            anthropic_error(429, kind="rate_limit_error", headers=SOON),
            *(529, "overloaded_error", "7", None),
        ),
        "our key": (anthropic_error(401, kind="authentication_error"), *API_ERROR),
        "not JSON": (Answer(200, b"nonsense"), 502, "api_error", None, None),
    },
}
#: The provider's rejection of a request, with the server's key in its message.
REJECTION = (
    openai_error(400, code="context_length_exceeded", message="too long for sk-openai-test"),
    {"message": "too long for ***", "type": "requests", "code": "context_length_exceeded"},
)
ANTHROPICS_REJECTION = (
    anthropic_error(400, kind="invalid_request_error", message="bad for sk-ant-test"),
    {"message": "bad for ***", "type": "invalid_request_error"},
)
REJECTIONS = dict.fromkeys((OPENAI_PATH, RESPONSES_PATH), REJECTION)
REJECTIONS |= dict.fromkeys((ANTHROPIC_PATH, COUNT_PATH), ANTHROPICS_REJECTION)
STREAMED = [(path, stream) for path in TROUBLES for stream in {False, path != COUNT_PATH}]


def called(client: FlaskClient, path: str, *, stream: bool) -> Any:
    """The answer and its error, in the format of the address."""
    response = client.post(path, json={**BODIES[path], **({"stream": True} if stream else {})})
    body = json_of(response)
    if path in {ANTHROPIC_PATH, COUNT_PATH}:
        assert (body["type"], bool(body["request_id"])) == ("error", True)
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
    return response, body["error"]


@pytest.mark.parametrize(
    ("path", "stream", "name"),
    [(path, stream, name) for path, stream in STREAMED for name in TROUBLES[path]],
)
def test_a_failure_has_a_status_that_the_sdk_knows(
    online: FlaskClient, provider: UpstreamServer, path: str, stream: bool, name: str
) -> None:
    """An overload with a wait if a retry helps; otherwise the SDK is asked not to retry. The
    server's key is never shown, its rejection is no 401, and the provider is called once."""
    answer, status, word, retry_after, should_retry = TROUBLES[path][name]
    provider.script(answer)
    response, error = called(online, path, stream=stream)
    assert response.status_code == status, response.text
    assert word == error["code" if path in {OPENAI_PATH, RESPONSES_PATH} else "type"]
    assert isinstance(error["message"], str)
    assert response.headers.get("Retry-After") == retry_after
    assert response.headers.get("x-should-retry") == should_retry
    assert "sk-" not in response.text
    assert len(provider.calls) == 1
    if path == COUNT_PATH:  # a count pauses no model: calls have a separate quota
        assert online.post(ANTHROPIC_PATH, json=BODIES[ANTHROPIC_PATH]).status_code == 200


@pytest.mark.parametrize(("path", "stream"), STREAMED)
def test_the_providers_rejection_is_passed_on(
    online: FlaskClient, provider: UpstreamServer, path: str, stream: bool
) -> None:
    """With its status and body, without the server's key. The SDK may retry by its own rules."""
    rejection, expected = REJECTIONS[path]
    provider.script(rejection)
    response, error = called(online, path, stream=stream)
    assert response.status_code == 400
    assert {name: value for name, value in error.items() if name != "param"} == expected
    assert "x-should-retry" not in response.headers
