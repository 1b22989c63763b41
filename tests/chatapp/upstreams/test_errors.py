"""A provider that is silent, slow or cannot be reached, over its real SDK, through POST /chat.
Its errors are in tests/chatapp/blueprints/test_upstream_failures.py."""

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.upstream_server import Stream, UpstreamServer, anthropic_body, openai_body
from tests.servers import eventually

MODELS = {"openai": "gpt-5.4-mini", "anthropic": "claude-haiku-4-5"}

BODIES = {"openai": openai_body, "anthropic": anthropic_body}

every_protocol = pytest.mark.parametrize("protocol", MODELS)


def asked(protocol: str) -> dict[str, object]:
    return {"message": "ping", "model": MODELS[protocol]}


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
