"""Two workers on one storage, before a provider that follows a script."""

from collections.abc import Callable
from typing import Any

from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker, json_of, whole
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import Answer, UpstreamServer, openai_error

MakeWorkers = Callable[..., "Workers"]
OPENAI, ANTHROPIC = "gpt-5.4-mini", "claude-haiku-4-5"
SMALLER = "gpt-5.4-nano"
MESSAGES = [{"role": "user", "content": "ping"}]


class Workers:
    """Two applications on one Redis, as two processes have them, and their provider."""

    def __init__(
        self, make_app: AppMaker, uri: str, provider: UpstreamServer, **config: object
    ) -> None:
        self.provider = provider
        common = {"RATELIMIT_STORAGE_URI": uri, "CHATAPP_PROVIDER_TIMEOUT_S": 2, **config}
        self.ledger = RecordingLedger()
        apps = (make_app(ledger=self.ledger, **common) for _ in range(2))
        self.one, self.other = (app.test_client() for app in apps)


def chat(client: FlaskClient, model: str = OPENAI, **more: object) -> Any:
    """One message, read to its end."""
    return whole(client, "/chat", json={"message": "ping", "model": model, **more})


def left(client: FlaskClient) -> dict[str, float]:
    response = client.get("/usage")
    return {limit["name"]: limit["remaining"] for limit in json_of(response)["limits"]}


def busy(retry_after: str | None = None, status: int = 429) -> Answer:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return openai_error(status, code="rate_limit_exceeded", headers=headers)


def quota_headers(**quotas: tuple[int, int, str]) -> dict[str, str]:
    """OpenAI's headers."""
    headers = {}
    for unit, (limit, remaining, reset) in quotas.items():
        headers |= {
            f"x-ratelimit-limit-{unit}": str(limit),
            f"x-ratelimit-remaining-{unit}": str(remaining),
            f"x-ratelimit-reset-{unit}": reset,
        }
    return headers
