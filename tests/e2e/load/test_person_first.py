"""A person and their twenty subagents share four calls at once: the recipe of accounts.md."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from chatapp import POLICY_FILE
from tests.chatapp.conftest import policy_file
from tests.e2e.money.billed_gateway import threaded
from tests.e2e.money.billing_provider import BillingProvider, marker
from tests.servers import eventually

#: The recipe of docs/gateway/accounts.md, with 4 calls at once.
AT_ONCE = 'name = "at-once"\nlimit = "4 in flight"\nkey = "user"\n'
FIRST = AT_ONCE + 'wait = "30 seconds"\nkeep = { interactive = 1 }\npriority = "request_class"\n'


def test_a_person_is_not_behind_their_own_subagents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With twenty subagents that have calls in flight and in line, each call of the person's agent
    goes to the provider at once, and before any other; the subagents get all the rest."""
    text = POLICY_FILE.read_text()
    assert AT_ONCE in text
    file = policy_file(
        tmp_path, text.replace(AT_ONCE, FIRST).replace("burst = 10\n", "burst = 99\n")
    )
    config = {"RATELIMIT_POLICY_FILE": file, "RATELIMIT_WAITING_MAX": 20}
    with BillingProvider.running() as provider:
        for name, value in provider.variables.items():
            monkeypatch.setenv(name, value)
        with (
            threaded(provider, tmp_path / "chatapp.db", **config) as gateway,
            httpx2.Client(base_url=gateway.url, timeout=60, trust_env=False) as http,
            ThreadPoolExecutor(20) as pool,
        ):
            key = gateway.key("ada", plan="starter")

            def ask(header: str, value: str, **options: int) -> int:
                headers = {"x-api-key": key, f"X-Claude-Code-{header}": value}
                prompt = marker("normal", tokens=1, **options)
                body = {"model": "claude-haiku-4-5", "max_tokens": 9}
                body |= {"messages": [{"role": "user", "content": prompt}]}
                return http.post("/v1/messages", json=body, headers=headers).status_code

            subagents = [pool.submit(ask, "Agent-Id", f"a{n}", gated=1) for n in range(20)]
            try:
                eventually(lambda: len(provider.calls()) == 3)
                assert [ask("Request-Class", "main") for _ in range(3)] == [200] * 3
                assert len(provider.calls()) == 6
            finally:
                provider.gate.set()
            assert [each.result() for each in subagents] == [200] * 20
