"""A person and their twenty subagents share four calls at once: the recipe of accounts.md."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from chatapp import POLICY_FILE
from tests.chatapp.conftest import policy_file
from tests.e2e.money.billed_gateway import threaded
from tests.e2e.money.billing_provider import BillingProvider, marker

#: The recipe of docs/gateway/accounts.md, with 4 calls at once.
AT_ONCE = 'name = "at-once"\nlimit = "4 in flight"\nkey = "user"\n'
FIRST = AT_ONCE + 'wait = "30 seconds"\nkeep = { interactive = 1 }\npriority = "request_class"\n'


def test_a_person_is_not_behind_their_own_subagents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With twenty subagents that have calls in flight and in line, each call of the person's agent
    goes to the provider at once; the subagents get all that the person does not use."""
    text, takes_s = POLICY_FILE.read_text(), 0.5
    assert AT_ONCE in text
    file = policy_file(
        tmp_path, text.replace(AT_ONCE, FIRST).replace("burst = 10\n", "burst = 99\n")
    )
    config = {"RATELIMIT_POLICY_FILE": file, "RATELIMIT_WAITING_MAX": 20}
    prompt = marker("normal", tokens=1, wait_ms=int(takes_s * 1000))
    body = {"model": "claude-haiku-4-5", "max_tokens": 9}
    body |= {"messages": [{"role": "user", "content": prompt}]}
    with BillingProvider.running() as provider:
        for name, value in provider.variables.items():
            monkeypatch.setenv(name, value)
        with (
            threaded(provider, tmp_path / "chatapp.db", **config) as gateway,
            httpx2.Client(base_url=gateway.url, timeout=60, trust_env=False) as http,
            ThreadPoolExecutor(20) as pool,
        ):
            key = gateway.key("ada", plan="starter")

            def took_s(headers: dict[str, str]) -> float:
                began_s = time.monotonic()
                done = http.post("/v1/messages", json=body, headers={"x-api-key": key, **headers})
                assert done.status_code == 200, done.text
                return time.monotonic() - began_s

            subagents = [
                pool.submit(took_s, {"X-Claude-Code-Agent-Id": f"a{n}"}) for n in range(20)
            ]
            time.sleep(takes_s / 2)
            person = [took_s({"X-Claude-Code-Request-Class": "main"}) for _ in range(3)]
            waited = [each.result() for each in subagents]
    assert max(person) < 2 * takes_s, person
    assert max(waited) > 4 * takes_s, waited
