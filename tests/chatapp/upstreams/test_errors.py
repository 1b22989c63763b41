"""The providers' errors, over their real SDKs, through POST /chat."""

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.upstream_server import (
    Answer,
    Stream,
    UpstreamServer,
    anthropic_body,
    anthropic_error,
    openai_body,
    openai_error,
)
from tests.servers import eventually

MODELS = {"openai": "gpt-5.4-mini", "anthropic": "claude-haiku-4-5"}

BODIES = {"openai": openai_body, "anthropic": anthropic_body}

every_protocol = pytest.mark.parametrize("protocol", MODELS)


def asked(protocol: str) -> dict[str, object]:
    return {"message": "ping", "model": MODELS[protocol]}


RATE_LIMITED = {"code": "rate_limit_exceeded"}
PAGE = Answer(200, b"<h1>Log in</h1>", {"Content-Type": "text/html"})
#: The answer's status, code and Retry-After.
REFUSED = (502, "provider_refused", None)
UNAVAILABLE = (502, "provider_unavailable", None)
REJECTED = (502, "provider_rejected", None)
UNKNOWN = (422, "unknown_model", None)


def overloaded(retry_after: str) -> tuple[int, str, str]:
    return 503, "server_is_overloaded", retry_after


OPENAI_ERRORS = {
    "rate limit with a wait": (
        openai_error(429, **RATE_LIMITED, headers={"Retry-After": "7"}),
        overloaded("7"),
    ),
    "rate limit with an exact wait": (
        openai_error(429, **RATE_LIMITED, headers={"retry-after-ms": "1200", "Retry-After": "2"}),
        overloaded("2"),
    ),
    "rate limit without a wait": (openai_error(429, **RATE_LIMITED), overloaded("5")),
    "overloaded": (openai_error(503, code="server_is_overloaded"), overloaded("5")),
    "no credit": (openai_error(429, code="insufficient_quota"), REFUSED),
    "a wrong key": (
        openai_error(401, code="invalid_api_key", message="Incorrect API key: sk-openai-test"),
        REFUSED,
    ),
    "a forbidden country": (openai_error(403, code="forbidden"), REFUSED),
    "no such model": (openai_error(404, code="model_not_found"), UNKNOWN),
    "too long": (openai_error(400, code="context_length"), REJECTED),
    "broken": (openai_error(500, code="server_error"), UNAVAILABLE),
    "broken in HTML": (
        Answer(502, b"<h1>Bad gateway</h1>", {"Content-Type": "text/html"}),
        UNAVAILABLE,
    ),
    "not JSON": (Answer(200, b'{"id": '), UNAVAILABLE),
    "a page": (PAGE, UNAVAILABLE),
    "a list": (Answer(200, b"[]"), UNAVAILABLE),
    "empty": (Answer(200, b""), UNAVAILABLE),
    "no choices": (Answer(200, openai_body() | {"choices": []}), UNAVAILABLE),
    "choices of a wrong type": (Answer(200, openai_body() | {"choices": "pong"}), UNAVAILABLE),
}
ANTHROPIC_ERRORS = {
    "rate limit with a wait": (
        anthropic_error(429, kind="rate_limit_error", headers={"retry-after": "9"}),
        overloaded("9"),
    ),
    "rate limit without a wait": (anthropic_error(429, kind="rate_limit_error"), overloaded("5")),
    "a spend cap": (
        anthropic_error(429, kind="rate_limit_error", error_code="enforced_spend_limit_reached"),
        REFUSED,
    ),
    "no credit": (anthropic_error(402, kind="billing_error"), REFUSED),
    "overloaded": (anthropic_error(529, kind="overloaded_error"), overloaded("5")),
    "a wrong key": (
        anthropic_error(401, kind="authentication_error", message="bad key sk-ant-test"),
        REFUSED,
    ),
    "no such model": (anthropic_error(404, kind="not_found_error"), UNKNOWN),
    "too long": (anthropic_error(400, kind="invalid_request_error"), REJECTED),
    "broken": (anthropic_error(500, kind="api_error"), UNAVAILABLE),
    "its own timeout": (
        anthropic_error(504, kind="timeout_error"),
        (504, "provider_timeout", None),
    ),
    "not JSON": (Answer(200, b'{"id": '), UNAVAILABLE),
    "a page": (PAGE, UNAVAILABLE),
    "content of a wrong type": (Answer(200, anthropic_body() | {"content": 7}), UNAVAILABLE),
}
ERRORS = {
    **{("openai", name): case for name, case in OPENAI_ERRORS.items()},
    **{("anthropic", name): case for name, case in ANTHROPIC_ERRORS.items()},
}


@pytest.mark.parametrize(("protocol", "name"), ERRORS)
def test_an_error_has_its_cause(
    online: FlaskClient, provider: UpstreamServer, protocol: str, name: str
) -> None:
    """The client gets the cause after one attempt, without the provider's name or message, or the
    server's key."""
    answer, (status, code, retry_after) = ERRORS[protocol, name]
    provider.script(answer)
    response = online.post("/chat", json=asked(protocol))
    assert response.status_code == status, response.text
    assert json_of(response)["code"] == code
    assert response.headers.get("Retry-After") == retry_after
    assert protocol not in response.json["error"]
    assert "sk-" not in response.text
    assert len(provider.calls) == 1


def test_a_long_wait_forbids_retries(online: FlaskClient, provider: UpstreamServer) -> None:
    """SDKs sleep for days or retry at once after more than a minute: such an answer forbids it."""
    provider.script(openai_error(429, code="slow_down", headers={"Retry-After": "3600"}))
    response = online.post("/chat", json=asked("openai"))
    assert response.headers["Retry-After"] == "3600"
    assert response.headers["x-should-retry"] == "false"


@every_protocol
def test_a_silent_provider_is_a_timeout(
    provider: UpstreamServer, make_app: AppMaker, protocol: str
) -> None:
    """The call ends after the configured time, is not repeated, and is a 504."""
    provider.silence()
    client = make_app(CHATAPP_PROVIDER_TIMEOUT_S=0.2).test_client()
    response = client.post("/chat", json=asked(protocol))
    assert response.status_code == 504
    assert json_of(response)["code"] == "provider_timeout"
    eventually(lambda: provider.calls)  # it may notice its one call later than the timeout
    assert len(provider.calls) == 1


@every_protocol
def test_an_answer_that_drips_is_a_timeout(
    provider: UpstreamServer, make_app: AppMaker, protocol: str
) -> None:
    """Although something arrives again and again before the time of a single read is over."""
    over = threading.Event()

    class Drops(Sequence[bytes]):
        """Spaces, which JSON ignores, for several timeouts, and the answer."""

        def __len__(self) -> int:
            return 101

        def __getitem__(self, index: Any) -> Any:
            over.wait(0.02)
            if index < 100:
                return b" "
            if index == 100:
                return json.dumps(BODIES[protocol]()).encode()
            raise IndexError

    provider.script(Stream(Drops(), {"Content-Type": "application/json"}))
    client = make_app(CHATAPP_PROVIDER_TIMEOUT_S=0.4).test_client()
    response = client.post("/chat", json=asked(protocol))
    over.set()
    assert response.status_code == 504, response.text
    assert json_of(response)["code"] == "provider_timeout"


@every_protocol
def test_an_unreachable_provider_is_a_502(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """A refused connection is the provider's failure."""
    monkeypatch.setenv(f"{protocol.upper()}_API_KEY", "sk-test")
    path = "/v1" if protocol == "openai" else ""
    monkeypatch.setenv(f"{protocol.upper()}_BASE_URL", f"http://127.0.0.1:1{path}")
    response = make_app().test_client().post("/chat", json=asked(protocol))
    assert response.status_code == 502
    assert json_of(response)["code"] == "provider_unavailable"
