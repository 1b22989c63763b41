"""A worker is killed in the middle of calls that the provider bills: rows, limits and commands have
one number for them, their estimates."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.chatapp.upstream_server import OPENAI_PATH
from tests.e2e.money.billed_gateway import MICRO, Gateway, deployed
from tests.e2e.money.billing_provider import BillingProvider, marker
from tests.servers import eventually, standalone

pytestmark = pytest.mark.slow

CALLS, CALLER = 8, "ada"
#: A stream renews every two seconds.
LEASE_S = 6


def begin(gateway: Gateway, number: int) -> Any:
    """A plain call, or a stream that the provider keeps open after its text."""
    name = "text" if number % 2 else "normal"
    gated = {} if number % 2 else {"gated": 1}
    text = marker(name, id=number, caller=CALLER, tokens=300, **gated)
    body = {
        "model": "gpt-5.4-mini",
        "messages": [{"role": "user", "content": text}],
        "stream": number % 2 == 1,
    }
    return gateway.begin(CALLER, OPENAI_PATH, body)


def spent(gateway: Gateway) -> dict[str, int]:
    """What the caller's dollar limits count, in micro-dollars."""
    limits = gateway.limits(CALLER).items()
    return {
        name: round(MICRO * (limit["limit"] - limit["remaining"]))
        for name, limit in limits
        if "usd" in name
    }


def test_calls_of_a_killed_worker_have_one_cost(provider: BillingProvider, tmp_path: Path) -> None:
    """What they held beyond their estimates is free at once; limits, rows and commands agree, and
    cover the provider's bill."""
    with standalone() as storage:
        settings = {"RATELIMIT_STORAGE_URI": storage.uri, "RATELIMIT_LEASE_SECONDS": str(LEASE_S)}
        with deployed(provider, tmp_path, workers=1, **settings) as gateway:
            connections = [begin(gateway, number) for number in range(CALLS)]
            eventually(lambda: len(provider.calls(caller=CALLER)) == CALLS)
            eventually(lambda: len(gateway.rows(CALLER)) == CALLS)
            held = spent(gateway)
            assert gateway.master is not None
            os.kill(gateway.master.workers()[0], signal.SIGKILL)
            for connection in connections:
                connection.close()
            provider.gate.set()
            eventually(lambda: gateway.is_idle(CALLER))
            rows, counted = gateway.rows(CALLER), spent(gateway)
            billed = provider.billed_micro_usd(caller=CALLER)
            lease = {"RATELIMIT_LEASE_SECONDS": 0.001}  # as if it had passed
            commands = gateway.desk(storage.uri, **lease)
            found = {words: run(commands, *words) for words in COMMANDS}
    cost = sum(row["cost_micro_usd"] for row in rows)
    assert {(row["status"], row["estimated"]) for row in rows} == {("unfinished", 1)}
    assert set(counted.values()) == {cost}
    assert 0 < billed <= cost < min(held.values())
    assert found["ledger", "restore"]["limits"] == []
    assert [each["cost_usd"] for each in found[("spend",)]] == [cost / MICRO]
    problems = found["ledger", "check"]["problems"]
    assert len(problems) == CALLS
    assert all("its worker died; its cost is an estimate" in each for each in problems)


COMMANDS = (("ledger", "restore"), ("ledger", "check"), ("spend",))


def run(app: Any, *words: str) -> Any:
    done = app.test_cli_runner().invoke(args=["chat", *words, "--json"])
    assert done.stdout, done.output
    return json.loads(done.stdout)
