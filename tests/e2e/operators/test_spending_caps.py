"""A provider's spending cap under gunicorn with two workers: each lets the capped key rest, the
other key serves, the operator gets one alert, and no client reads of it."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.chatapp.alerts.receiver import SECRET, Receiver
from tests.chatapp.upstream_server import (
    FIRST,
    SECOND,
    TWO_KEYS,
    UpstreamServer,
    anthropic_error,
    openai_error,
)
from tests.gunicorn_master import Master, gunicorn

WORKERS = 2
#: Until both have met the cap.
MOST_ROUNDS = 20
BILLING = "Your plan and billing details: https://example.com/billing"
ENDS_AT = datetime.now(UTC) + timedelta(days=3)
SPECIFIED = "You have reached your specified workspace API usage limits. You will regain access on "
CAPS = {
    "openai": openai_error(
        429, code="project_spend_limit_exceeded", kind="insufficient_quota", message=BILLING
    ),
    "anthropic": anthropic_error(
        400, kind="invalid_request_error", message=f"{SPECIFIED}{ENDS_AT:%Y-%m-%d} at 00:00 UTC."
    ),
}
SAID = [{"role": "user", "content": "ping"}]
CALLS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "openai": [
        ("/chat", {"model": "gpt-5.4-mini", "message": "ping"}),
        ("/v1/chat/completions", {"model": "gpt-5.4-mini", "messages": SAID}),
        ("/v1/responses", {"model": "gpt-5.4-mini", "input": "ping"}),
    ],
    "anthropic": [
        ("/chat", {"model": "claude-haiku-4-5", "message": "ping"}),
        ("/v1/messages", {"model": "claude-haiku-4-5", "messages": SAID, "max_tokens": 9}),
    ],
}


@pytest.fixture
def master(provider: UpstreamServer, receiver: Receiver, tmp_path: Path) -> Iterator[Master]:
    file, policy = tmp_path / "upstreams.toml", tmp_path / "policy.toml"
    file.write_text(TWO_KEYS.format(url=provider.url))
    policy.write_text("version = 1\n[groups.calls]\nlimits = []\n[groups.counts]\nlimits = []\n")
    with gunicorn(
        "wsgi:app",
        tmp_path,
        workers=WORKERS,
        RATELIMIT_POLICY_FILE=str(policy),
        CHATAPP_PROVIDERS_FILE=str(file),
        KEY_1=FIRST,
        KEY_2=SECOND,
        NO_PROXY="127.0.0.1",
        CHATAPP_ALERT_WEBHOOK_URL=receiver.url,
        CHATAPP_ALERT_WEBHOOK_SECRET=SECRET,
    ) as master:
        yield master
    assert "secret-of" not in master.log
    assert "Traceback" not in master.log


def ask_each(master: Master, protocol: str) -> list[int]:
    """Every call of the upstream, plain and streamed, several times and some at once; none shows
    the provider's text."""

    def ask(call: tuple[str, dict[str, Any]]) -> int:
        with closing(master.begin(*call)) as connection:
            response = connection.getresponse()
            text = response.read().decode().lower()
        assert not any(each in text for each in ("billing", "usage limits", "secret-of"))
        return response.status

    plain = CALLS[protocol]
    streamed = [(path, body | {"stream": True}) for path, body in plain]
    with ThreadPoolExecutor(12) as pool:
        return list(pool.map(ask, [*plain, *streamed] * 2))


@pytest.mark.parametrize("protocol", ["openai", pytest.param("anthropic", marks=pytest.mark.slow)])
def test_a_capped_key_rests_in_all_workers(
    master: Master, provider: UpstreamServer, receiver: Receiver, protocol: str
) -> None:
    """The other key serves every call. Once it is capped, too, every call gets a 502."""
    sentence = f"of the upstream {protocol} has reached a spending cap or has no credit left. It is"
    provider.refuse(FIRST, CAPS[protocol])
    for _ in range(MOST_ROUNDS):
        assert set(ask_each(master, protocol)) == {200}
        if master.log.count(f"The key KEY_1 {sentence}") == WORKERS:
            break
    asked = provider.keys().count(FIRST)
    assert set(ask_each(master, protocol)) == {200}
    assert provider.keys().count(FIRST) == asked
    provider.refuse(SECOND, CAPS[protocol])
    for _ in range(MOST_ROUNDS):
        assert set(ask_each(master, protocol)) == {502}
        if master.log.count(f"The key KEY_2 {sentence}") == WORKERS:
            break
    receiver.received(2)
    master.signal(signal.SIGTERM)
    master.process.wait(60)
    data = [alert.body["data"] for alert in receiver.received(2)]
    assert [each["key"] for each in data] == [f"{protocol}/KEY_1", f"{protocol}/KEY_2"]
    for key in ("KEY_1", "KEY_2"):
        assert master.log.count(f"The key {key} {sentence}") == WORKERS
