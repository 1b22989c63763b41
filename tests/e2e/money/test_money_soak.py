"""Minutes of mixed load on a real gunicorn, between a misbehaving provider and callers of whom half
attack: ledger, limits and bill agree, and no legitimate call is refused. Opt-in, because it takes a
while: RATELIMIT_MONEY_SOAK=1. RATELIMIT_MONEY_SOAK_S is its length, 60 s."""

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.chatapp.upstream_server import ANTHROPIC_PATH, OPENAI_PATH
from tests.e2e.money.billed_gateway import Account, Gateway, deployed, write_table
from tests.e2e.money.billing_provider import FILLER, BillingProvider, marker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("RATELIMIT_MONEY_SOAK") != "1",
        reason="RATELIMIT_MONEY_SOAK=1 puts a mixed load on gunicorn for a minute or longer",
    ),
]

DURATION_S = float(os.environ.get("RATELIMIT_MONEY_SOAK_S", "60"))
# Clients and provider share a process here; a busy machine must not look like a slow provider.
TIMEOUT_S = 6
WORKERS = 2
THREADS = 48
GPT, CLAUDE = "gpt-5.4-mini", "claude-haiku-4-5"
# Whole models cool down after these, rightly, for all callers.
FAILING_GPT, FAILING_CLAUDE = "gpt-5.1", "claude-opus-4-5"
# A tier of this one has no capacity; standard calls have.
SCARCE = "gpt-5.2"
ids = map(str, itertools.count())


@dataclass(frozen=True)
class Load:
    """What one caller does repeatedly. ``leaves``: it streams, and disconnects after so many
    tokens; ``fields`` are added to its requests, ``options`` to the marker."""

    scenario: str = "normal"
    model: str = GPT
    plan: str = "starter"
    stream: bool = False
    leaves: int | None = None
    options: dict[str, object] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def is_legitimate(self) -> bool:
        return self.plan == "pro"


SMALL = {"tokens": 50}
FULL = {"tokens": 2000}
LARGEST = {"tokens": "all"}
LOADS: dict[str, Load] = {
    "alice": Load(plan="pro", options=SMALL),
    "bob": Load(plan="pro", options=SMALL, stream=True),
    "carol": Load(plan="pro", options=SMALL, model=CLAUDE),
    "dave": Load(plan="pro", options=SMALL, model=CLAUDE, stream=True),
    "erin": Load(plan="pro", options={"tokens": 300, "wait_ms": 800}),
    "frank": Load(plan="pro", options={"tokens": 100, "cached": 5000}, model=CLAUDE),
    "grace": Load(plan="pro", options=SMALL, model=SCARCE),
    "one token": Load(options={"tokens": 1}),
    "largest": Load(options=LARGEST),
    "timeout": Load("timeout", options=LARGEST),
    "timeout of claude": Load("timeout", model=CLAUDE, options=LARGEST),
    "bounded timeout": Load("timeout", options=FULL, fields={"max_tokens": 2000}),
    "silent": Load("silent", stream=True, options=LARGEST),
    "cut": Load("cut", stream=True, options=FULL),
    "error event": Load("error_event", stream=True, options=FULL),
    "error event of claude": Load("error_event", model=CLAUDE, stream=True, options=FULL),
    "no usage": Load("no_usage", options=FULL),
    "no usage, stream": Load("no_usage", stream=True, options=FULL),
    "bad usage": Load("bad_usage", model=CLAUDE, options=FULL),
    "bad usage, stream": Load("bad_usage", model=CLAUDE, stream=True, options=FULL),
    "leaves text": Load("text", leaves=2000, options=FULL),
    "leaves tools": Load("tool_arguments", leaves=2000, options=FULL),
    "leaves function_call": Load("function_call", leaves=2000, options=FULL),
    "leaves custom tools": Load("custom_input", leaves=2000, options=FULL),
    "leaves thinking": Load("thinking", model=CLAUDE, leaves=2000, options=FULL),
    "leaves refusal": Load("refusal", leaves=2000, options=FULL),
    "leaves reasoning": Load("hidden_reasoning", leaves=0, options=FULL),
    "leaves hidden thinking": Load("hidden_thinking", model=CLAUDE, leaves=0, options=FULL),
    "refused 400": Load("refuse", options={"status": 400}),
    "refused 404": Load("refuse", model=CLAUDE, options={"status": 404}),
    "failing 500": Load("refuse", model=FAILING_GPT, options={"status": 500}),
    "failing 529": Load("refuse", model=FAILING_CLAUDE, options={"status": 529}),
    "priority 429": Load(
        "tier_429", model=SCARCE, options={"retry_after": 3000}, fields={"service_tier": "priority"}
    ),
    "fast": Load(model="claude-opus-5", options=FULL, fields={"speed": "fast"}),
    "priority": Load(options=FULL, fields={"service_tier": "priority"}),
    "one-hour cache": Load(model=CLAUDE, options={"written_1h": 20_000}),
    "web search": Load(model=CLAUDE, options={"searches": 5}),
}


@pytest.fixture
def gateway(provider: BillingProvider, tmp_path: Path) -> Iterator[Gateway]:
    """gunicorn with its embedded storage in front of the provider."""
    settings = {"GUNICORN_THREADS": str(THREADS), "CHATAPP_PROVIDER_TIMEOUT_S": str(TIMEOUT_S)}
    with deployed(provider, tmp_path, workers=WORKERS, **settings) as gateway:
        for caller, load in LOADS.items():
            gateway.key(named(caller), plan=load.plan)
        yield gateway


def named(caller: str) -> str:
    """The caller's name without characters that a marker cannot have."""
    return caller.replace(" ", "_").replace(",", "")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a caller's calls: the number of calls by status, 200 only if read to the
    end."""

    statuses: Counter[int]

    @property
    def refused(self) -> int:
        return self.statuses.total() - self.statuses[200]


def run(gateway: Gateway, caller: str, load: Load, until: float) -> Outcome:
    """The caller's calls, one after the other."""
    statuses: Counter[int] = Counter()
    while time.monotonic() < until:
        status = call(gateway, named(caller), load)
        statuses[status] += 1
        time.sleep(0.05 if status == 200 else 0.25)
    return Outcome(statuses)


def call(gateway: Gateway, caller: str, load: Load) -> int:
    """One call; its status, or 0 if the answer was incomplete."""
    call_id = next(ids)
    path = OPENAI_PATH
    body: dict[str, Any] = {"model": load.model, "stream": load.stream or load.leaves is not None}
    if load.model.startswith("claude"):
        path, body["max_tokens"] = ANTHROPIC_PATH, 4000
    text = marker(load.scenario, caller=caller, id=call_id, **load.options)
    body |= {"messages": [{"role": "user", "content": text}], **load.fields}
    connection = gateway.begin(caller, path, body)
    try:
        response = connection.getresponse()
        if response.status != 200:
            return response.status
        if load.leaves is not None:
            read_until(response, load.leaves)
            with suppress(AssertionError):
                gateway.reached(call_id, sent=True)
            return 200
        raw = response.read()
    except OSError:
        return 0
    finally:
        gateway.leave(connection)
    is_whole = not load.stream or b"[DONE]" in raw or b"message_stop" in raw
    return 200 if is_whole else 0


def read_until(response: HTTPResponse, tokens: int) -> None:
    """Read so many tokens of a stream, or all of it."""
    while tokens > 0 and (line := response.readline()):
        tokens -= line.decode().count(FILLER)


def test_ledger_limits_and_bill_agree_under_load(
    gateway: Gateway, request: pytest.FixtureRequest
) -> None:
    """Per caller: ledger = limits exactly; paid within 2 % of the bill, or under it by less than
    one call's capped output; no legitimate call is refused, and it costs what it was billed."""
    until = time.monotonic() + DURATION_S
    with ThreadPoolExecutor(len(LOADS)) as pool:
        started = {
            caller: pool.submit(run, gateway, caller, load, until) for caller, load in LOADS.items()
        }
        outcomes = {caller: running.result() for caller, running in started.items()}
    accounts = {caller: gateway.account(named(caller)) for caller in LOADS}
    write_table(request.config, "caller", list(lines(outcomes, accounts)))
    found = [problem for each in LOADS for problem in problems(each, outcomes, accounts)]
    assert not found, "\n".join(found)


def lines(
    outcomes: dict[str, Outcome], accounts: dict[str, Account]
) -> Iterator[tuple[str, Account]]:
    for caller, account in accounts.items():
        statuses = " ".join(f"{status}:{n}" for status, n in outcomes[caller].statuses.items())
        kind = "user" if LOADS[caller].is_legitimate else "attacker"
        yield f"{kind:<9}{caller:<23} {LOADS[caller].scenario:<17} {statuses}", account


def problems(
    caller: str, outcomes: dict[str, Outcome], accounts: dict[str, Account]
) -> Iterator[str]:
    """Violations of the promise."""
    account, outcome = accounts[caller], outcomes[caller]
    if account.ledger != account.charged:
        yield f"{caller}: ledger and limits differ: {account}"
    if not account.is_paid:
        yield f"{caller}: not paid: {account}"
    if LOADS[caller].is_legitimate:
        if outcome.refused:
            yield f"{caller}: {outcome.refused} calls were refused: {dict(outcome.statuses)}"
        if not account.billed <= account.charged <= account.billed + outcome.statuses.total():
            yield f"{caller}: not charged its bill: {account}"
