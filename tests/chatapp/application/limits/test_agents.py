"""Agents: long prompts that the provider has cached, and limits that do not count what it has."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from chatapp.accounts.store import Accounts
from ratelimit_ext.cli.simulation import simulate
from tests.chatapp.application.money.test_surge import Clock
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import Answer, UpstreamServer, anthropic_body
from tests.chatapp.web.test_identities import left

MODEL = "claude-haiku-4-5"
TURNS = 8
#: A fast pace of turns.
BETWEEN_TURNS_S = 10
#: The subagents of each of five users: 22 agents with their own.
SUBAGENTS = {"ada": 6, "bob": 4, "cleo": 3, "dan": 2, "eve": 2}
DAY_BEGINS_S, HOUR_S = 1_795_939_200, 3600
#: Limits that do not apply to callers with a key and without a team.
EXEMPT = ["ip", "address-at-once", "team-at-once"]


def answer(*, cached: int, written: int) -> Answer:
    """A turn's answer of 500 tokens; all but 20 tokens of its prompt are cached or being cached."""
    usage = {
        "input_tokens": 20,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "output_tokens": 500,
    }
    return Answer(200, {**anthropic_body(model=MODEL), "usage": usage})


@pytest.mark.parametrize(
    ("begin", "grows"), [(20_000, 20_000), (150_000, 2_000)], ids=["grows", "resumes"]
)
def test_an_agent_is_not_refused_for_what_is_cached(
    make_app: AppMaker,
    provider: UpstreamServer,
    accounts: Accounts,
    monkeypatch: pytest.MonkeyPatch,
    begin: int,
    grows: int,
) -> None:
    """On Starter, with 200,000 tokens a minute: an agent whose context grows to 160,000 tokens, and
    one that resumes such a conversation, which the provider caches at its first turn. The limit
    counts what is new of 900,000 tokens a minute."""
    clock = Clock(monkeypatch)
    key = accounts.create_key("ada", plan=None, default_plan="starter")
    client = make_app().test_client()

    def turn(tokens: int) -> TestResponse:
        text = {"type": "text", "text": "word " * tokens, "cache_control": {"type": "ephemeral"}}
        body = {"max_tokens": 8000, "messages": [{"role": "user", "content": [text]}]}
        headers = {"x-api-key": key.text, "anthropic-version": "2023-06-01"}
        with client.post("/v1/messages", json={"model": MODEL, **body}, headers=headers) as done:
            done.get_data()
            return done

    known = 0
    for tokens in range(begin, begin + TURNS * grows, grows):
        provider.script(answer(cached=known, written=tokens - known))
        done = turn(tokens)
        assert done.status_code == 200, done.text
        known = tokens
        clock.forward(BETWEEN_TURNS_S)
    assert left(done)["usd-hour"] > 0


def turns(chance: random.Random, begin_s: float, count: int) -> Iterator[tuple[float, float]]:
    """When an agent calls its model, and how long each call takes: it reads the answer, runs its
    tools, and calls again. Every tenth turn is three calls at once."""
    at_s = begin_s
    for _ in range(count):
        seconds = chance.uniform(1.5, 8)
        yield from [(at_s, seconds)] * (3 if chance.random() < 0.1 else 1)
        at_s += seconds + chance.uniform(0.1, 3)


def prompts(chance: random.Random, subagents: int, hours: float) -> Iterator[tuple[float, float]]:
    """The turns of a user's agents. Each prompt begins with three calls: the first turn, a title
    and a topic. For every other one all subagents begin at once."""
    at_s = chance.uniform(0, 300)
    while at_s < hours * HOUR_S:
        yield from [(at_s, 1.0)] * 2
        runs = [[*turns(chance, at_s, chance.randint(5, 40))]]
        if chance.random() < 0.5:
            helping = range(subagents)
            runs += [[*turns(chance, at_s + 10, chance.randint(5, 25))] for _ in helping]
        yield from (turn for run in runs for turn in run)
        at_s = max(run[-1][0] for run in runs) + chance.uniform(60, 600)


def day(plan: str, hours: float, users: dict[str, int]) -> list[dict[str, Any]]:
    """The calls of these users' agents, as the simulator reads them."""
    chance = random.Random(22)
    return [
        {
            "time": DAY_BEGINS_S + at_s,
            "endpoint": "anthropic_api.messages",
            "plan": plan,
            "user": user,
            "api_key": user,
            "model": "claude-sonnet-5",
            "tokens": 2_600,
            "usd": 0.045,  # with 100,000 tokens from the provider's cache
            "seconds": seconds,
            "exempt": EXEMPT,
        }
        for user, subagents in users.items()
        for at_s, seconds in sorted(prompts(chance, subagents, hours))
    ]


def denials(app: Flask, calls: list[dict[str, Any]]) -> dict[str, int]:
    """What the packaged policy denies of them in virtual time, by limit."""
    traffic = "\n".join(map(json.dumps, sorted(calls, key=lambda call: call["time"])))
    arguments = ["--traffic", "-", "--json"]
    done = app.test_cli_runner().invoke(simulate, arguments, input=traffic)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.output)["policies"]
    assert found["admitted"] + found["denied"] == len(calls)
    return {limit["name"]: limit["denied"] for limit in found["limits"] if limit["denied"]}


@pytest.mark.parametrize(
    ("plan", "hours", "users"),
    [
        pytest.param("team", 8, SUBAGENTS, id="22 agents for a day", marks=pytest.mark.slow),
        pytest.param("team", 1, {"ada": 21}, id="22 of one user"),
        pytest.param("pro", 0.25, {"ada": 6}, id="seven for a quarter of an hour"),
    ],
)
def test_agents_are_not_refused_inside_their_plan(
    make_app: AppMaker, plan: str, hours: float, users: dict[str, int]
) -> None:
    """A user's subagents turn at the same time. A starter's pace would refuse them."""
    calls, app = day(plan, hours, users), make_app()
    by_minute = Counter((call["user"], call["time"] // 60) for call in calls)
    assert max(by_minute.values()) > 50
    assert denials(app, calls) == {}
    assert "user" in denials(app, [{**call, "plan": "starter"} for call in calls])
