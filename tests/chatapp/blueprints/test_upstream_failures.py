"""What a client gets if the provider rejects a request or fails: a status, a code and a wait that
the SDK of its format knows."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.chatapp.application.bad_input.test_bad_input import BODIES, CHAT_PATH
from tests.chatapp.conftest import json_of
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    COUNT_PATH,
    OPENAI_PATH,
    RESPONSES_PATH,
    Answer,
    UpstreamServer,
    anthropic_body,
    anthropic_error,
    openai_body,
    openai_error,
)

#: A status, the code or, in Anthropic's format, the type of the error, the wait, and what the SDK
#: is asked about a retry.
Expected = tuple[int, str, str | None, str | None]
#: By address.
Outcome = dict[str, Expected]
SECRETS = ("sk-openai-test", "sk-ant-test")


def outcome(
    chat: Expected, openai: Expected | None, anthropic: Expected | None, *, counts: bool = True
) -> Outcome:
    """`counts` if counting tokens fails as a call does. Otherwise the count is estimated."""
    found = {CHAT_PATH: chat, OPENAI_PATH: openai, RESPONSES_PATH: openai}
    found |= {ANTHROPIC_PATH: anthropic, COUNT_PATH: anthropic if counts else None}
    return {path: expected for path, expected in found.items() if expected}


def overloaded(wait: str, should_retry: str | None = None) -> Outcome:
    usual = (503, "server_is_overloaded", wait, should_retry)
    return outcome(usual, usual, (529, "overloaded_error", wait, should_retry))


BROKEN = outcome(
    (502, "provider_unavailable", None, None),
    (503, "server_is_overloaded", "5", None),
    (503, "overloaded_error", "5", None),
)
OUR_KEY = outcome(
    (502, "provider_refused", None, "false"),
    (502, "provider_refused", None, "false"),
    (502, "api_error", None, "false"),
)
REFUSED = {path: expected for path, expected in OUR_KEY.items() if path != COUNT_PATH}
UNREADABLE = outcome(
    (502, "provider_unavailable", None, "false"),
    (502, "provider_unavailable", None, "false"),
    (502, "api_error", None, "false"),
)
# Nothing was billed: a retry helps.
UNREADABLE[COUNT_PATH] = (502, "api_error", None, None)
#: The providers' own addresses forward any JSON.
UNREADABLE_HERE = {CHAT_PATH: UNREADABLE[CHAT_PATH]}
UNKNOWN = outcome(
    (422, "unknown_model", None, None),
    (404, "model_not_found", None, None),
    (404, "not_found_error", None, None),
    counts=False,
)
NOT_THERE = outcome((422, "unknown_model", None, None), (404, "unknown_model", None, None), None)
REJECTED = outcome(
    (502, "provider_rejected", None, None),
    (400, "context_length_exceeded", None, None),
    (400, "invalid_request_error", None, None),
)
TIMEOUT = outcome(
    (504, "provider_timeout", None, None), None, (504, "timeout_error", None, None), counts=False
)
LIMITED = {"code": "rate_limit_exceeded"}
EXACT = {"retry-after-ms": "1200", "Retry-After": "2"}
PAGE = b"<h1>no</h1>"
NO_JSON = {
    "not JSON": (Answer(200, b'{"id": '), UNREADABLE),
    "nonsense": (Answer(200, b"nonsense"), UNREADABLE),
    "a page": (Answer(200, PAGE, {"Content-Type": "text/html"}), UNREADABLE),
    "empty": (Answer(200, b""), UNREADABLE),
}
OPENAIS: dict[str, tuple[Answer, Outcome]] = {
    "rate limit": (openai_error(429, **LIMITED, headers={"Retry-After": "7"}), overloaded("7")),
    "rate limit with an exact wait": (openai_error(429, **LIMITED, headers=EXACT), overloaded("2")),
    "rate limit without a wait": (openai_error(429, **LIMITED), overloaded("5")),
    "a long rate limit": (
        openai_error(429, code="slow_down", headers={"Retry-After": "3600"}),
        overloaded("3600", "false"),
    ),
    "overloaded": (openai_error(503, code="server_is_overloaded"), overloaded("5")),
    "no credit": (openai_error(429, code="insufficient_quota", message="sk-openai-test"), REFUSED),
    "our key": (openai_error(401, code="invalid_api_key", message="bad sk-openai-test"), REFUSED),
    "a forbidden country": (openai_error(403, code="forbidden"), REFUSED),
    "no such model": (openai_error(404, code="model_not_found"), UNKNOWN),
    "a page that is not there": (Answer(404, PAGE), NOT_THERE),
    "too long": (
        openai_error(400, code="context_length_exceeded", message="too long for sk-openai-test"),
        REJECTED,
    ),
    "broken": (openai_error(500, code="server_error"), BROKEN),
    "broken in HTML": (Answer(502, PAGE, {"Content-Type": "text/html"}), BROKEN),
    **NO_JSON,
    "a list": (Answer(200, b"[]"), UNREADABLE_HERE),
    "no choices": (Answer(200, openai_body() | {"choices": []}), UNREADABLE_HERE),
    "choices of a wrong type": (Answer(200, openai_body() | {"choices": "x"}), UNREADABLE_HERE),
}
CAPPED = {"kind": "rate_limit_error"}
ANTHROPICS: dict[str, tuple[Answer, Outcome]] = {
    "rate limit": (anthropic_error(429, **CAPPED, headers={"retry-after": "9"}), overloaded("9")),
    "rate limit without a wait": (anthropic_error(429, **CAPPED), overloaded("5")),
    "overloaded": (anthropic_error(529, kind="overloaded_error"), overloaded("5")),
    "a spend cap": (anthropic_error(429, **CAPPED, error_code="spend_limit_reached"), REFUSED),
    "an enforced spend cap": (
        anthropic_error(429, **CAPPED, error_code="enforced_spend_limit_reached"),
        REFUSED,
    ),
    "no credit": (anthropic_error(402, kind="billing_error"), REFUSED),
    "our key": (
        anthropic_error(401, kind="authentication_error", message="bad key sk-ant-test"),
        OUR_KEY,
    ),
    "no such model": (anthropic_error(404, kind="not_found_error"), UNKNOWN),
    "too long": (
        anthropic_error(400, kind="invalid_request_error", message="bad for sk-ant-test"),
        REJECTED,
    ),
    "broken": (anthropic_error(500, kind="api_error"), BROKEN),
    "its own timeout": (anthropic_error(504, kind="timeout_error"), TIMEOUT),
    **NO_JSON,
    "content of a wrong type": (Answer(200, anthropic_body() | {"content": 7}), UNREADABLE_HERE),
}
#: The model that is asked for, the failures of its provider, and the addresses that call it.
PROTOCOLS = {
    "openai": ("gpt-5.4-mini", OPENAIS, (CHAT_PATH, OPENAI_PATH, RESPONSES_PATH)),
    "anthropic": ("claude-haiku-4-5", ANTHROPICS, (CHAT_PATH, ANTHROPIC_PATH, COUNT_PATH)),
}
CASES = [
    (protocol, name, path, stream)
    for protocol, (_, failures, paths) in PROTOCOLS.items()
    for name, (_, expected) in failures.items()
    for path in paths
    if path in expected
    for stream in {False, path != COUNT_PATH}
]


def error_of(path: str, body: Any) -> Any:
    """The error, which has the format of the address."""
    if path == CHAT_PATH:
        assert set(body) - {"retry_after"} == {"error", "code"}
        return body
    if path in {ANTHROPIC_PATH, COUNT_PATH}:
        assert (body["type"], bool(body["request_id"])) == ("error", True)
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    return body["error"]


@pytest.mark.parametrize(("protocol", "name", "path", "stream"), CASES)
def test_a_failure_has_a_status_that_the_sdk_knows(
    online: FlaskClient, provider: UpstreamServer, protocol: str, name: str, path: str, stream: bool
) -> None:
    """An overload with a wait if a retry helps; otherwise the SDK is asked not to retry. A rejected
    request gets the provider's words. The server's key is never shown, its rejection is no 401, and
    the provider is called once."""
    model, failures, _ = PROTOCOLS[protocol]
    answer, expected = failures[name]
    provider.script(answer)
    body = {**BODIES[path], "model": model, **({"stream": True} if stream else {})}
    response = online.post(path, json=body)
    error = error_of(path, json_of(response))
    status, word, retry_after, should_retry = expected[path]
    assert response.status_code == status, response.text
    assert word == error["type" if path in {ANTHROPIC_PATH, COUNT_PATH} else "code"]
    assert response.headers.get("Retry-After") == retry_after
    assert response.headers.get("x-should-retry") == should_retry
    assert "sk-" not in response.text
    assert len(provider.calls) == 1
    if path == CHAT_PATH:
        assert protocol not in error["error"]
    elif expected is REJECTED:
        said = json.dumps(answer.body["error"])  # type: ignore[call-overload]
        for secret in SECRETS:
            said = said.replace(secret, "***")
        assert error == json.loads(said)
    if path == COUNT_PATH:  # a count pauses no model: calls have a separate quota
        assert online.post(ANTHROPIC_PATH, json=BODIES[ANTHROPIC_PATH]).status_code == 200
