"""A team of 25 coding agents at a real gunicorn, at ten times the pace of
tests/chatapp/application/limits/test_office.py and with prompts of their real size. Opt-in, because
it takes minutes and measures time: RATELIMIT_AGENTS=1. RATELIMIT_AGENTS_S is its length, 120 s."""

import os
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.chatapp.upstream_server import ANTHROPIC_PATH
from tests.e2e.money.billed_gateway import MICRO, Gateway, deployed
from tests.e2e.money.billing_provider import BillingProvider, marker
from tests.servers import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("RATELIMIT_AGENTS") != "1",
        reason="RATELIMIT_AGENTS=1 lets 25 agents work for two minutes",
    ),
]

DURATION_S = float(os.environ.get("RATELIMIT_AGENTS_S", "120"))
AGENTS = 25
MODEL = "claude-sonnet-5"
#: What a turn costs on average: 100,000 cached tokens, 2,000 others, 600 of output.
TURN_USD = 0.03
#: Between two turns of an agent.
PAUSE_S = (1.0, 3.0)
#: The provider's time to its first event.
THINKS_MS = 400
FIRST_BYTE_WITHIN_S = 2.0


@dataclass
class Work:
    """What an agent has seen: the time that this server added to the first byte of each answer, and
    the number of refusals."""

    added_s: list[float] = field(default_factory=list)
    refusals: int = 0


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with (
        BillingProvider.running() as provider,
        deployed(provider, tmp_path, workers=2, GUNICORN_THREADS="32") as gateway,
    ):
        yield gateway


def test_a_team_spends_its_budget_and_waits_for_nothing_else(gateway: Gateway) -> None:
    """The budget pays for three quarters of the work. It is spent within 2 %, a turn is refused for
    no other reason, and no first byte comes 2 s later than the provider's."""
    turns = AGENTS * DURATION_S / (sum(PAUSE_S) / 2 + THINKS_MS / 1000)
    budget_usd = turns * TURN_USD * 0.75
    command(gateway, "teams", "create", "office", f"--limit=team-usd-day={budget_usd:.2f} usd/day")
    agents = [f"agent{number}" for number in range(AGENTS)]
    for agent in agents:
        gateway.key(agent, plan="pro")
        command(gateway, "users", "set", agent, "--team", "office")
    until = time.monotonic() + DURATION_S
    with ThreadPoolExecutor(AGENTS) as pool:
        team = list(pool.map(lambda agent: work(gateway, agent, until), agents))
    spent_usd = sum(map(partial(spent_micro_usd, gateway), agents)) / MICRO
    billed_usd = float(gateway.provider.billed_micro_usd()) / MICRO
    added_s = sorted(each for seen in team for each in seen.added_s)
    figures = (
        f"{len(added_s)} turns, {sum(seen.refusals for seen in team)} refused; "
        f"{spent_usd:.3f} of {budget_usd:.2f} USD, billed {billed_usd:.3f}; "
        f"first byte + {statistics.median(added_s):.3f} s, at most + {added_s[-1]:.3f} s"
    )
    print(figures)  # noqa: T201 - the figures are what this test is for
    assert abs(spent_usd - budget_usd) <= 0.02 * budget_usd, figures
    assert abs(spent_usd - billed_usd) * MICRO <= len(added_s), figures
    assert added_s[-1] < FIRST_BYTE_WITHIN_S, figures


def command(gateway: Gateway, *words: str) -> None:
    """What an operator does."""
    done = gateway.app.test_cli_runner().invoke(args=["chat", *words])
    assert done.exit_code == 0, done.output


def work(gateway: Gateway, agent: str, until: float) -> Work:
    """An agent's turns, with a pause between them."""
    chance, seen = random.Random(agent), Work()
    time.sleep(chance.uniform(0, PAUSE_S[1]))
    while time.monotonic() < until:
        first_s = turn(gateway, agent, chance.randrange(50_000, 150_000))
        if first_s is None:
            seen.refusals += 1
        else:
            seen.added_s.append(first_s - THINKS_MS / 1000)
        time.sleep(chance.uniform(*PAUSE_S))
    return seen


def turn(gateway: Gateway, agent: str, size: int) -> float | None:
    """One streamed turn with so many tokens of input; the time to its first byte, or None if the
    budget is spent."""
    used = {"input": 2000, "cached": size - 2000, "tokens": 600, "wait_ms": THINKS_MS}
    text = marker("normal", caller=agent, **used) + " word" * (size * 4 // 5)
    message = {"role": "user", "content": text}
    body = {"model": MODEL, "max_tokens": 32_000, "stream": True, "messages": [message]}
    began_s = time.monotonic()
    with closing(gateway.begin(agent, ANTHROPIC_PATH, body)) as connection:
        response = connection.getresponse()
        first = response.readline()
        first_s = time.monotonic() - began_s
        raw = first + response.read()
    if response.status == 200:
        assert b"message_stop" in raw
        return first_s
    assert (response.status, b"insufficient_quota" in raw) == (429, True), raw
    return None


def spent_micro_usd(gateway: Gateway, agent: str) -> int:
    """What the agent's calls cost by the ledger."""
    eventually(lambda: all(row["status"] != "unfinished" for row in gateway.rows(agent)))
    return sum(row["cost_micro_usd"] for row in gateway.rows(agent))
