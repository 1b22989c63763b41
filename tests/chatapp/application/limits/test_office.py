"""Many API keys behind one address, as in an office: each has a separate limit at the edge."""

import heapq
import random
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from limits import parse
from werkzeug.test import TestResponse

from chatapp import POLICY_FILE
from chatapp.accounts.api_key import PresentedKey, new_key
from chatapp.accounts.store import Accounts
from chatapp.catalogue import Catalogue, load
from chatapp.catalogue.usage import Usage
from tests.chatapp.application.money.test_surge import Clock
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.upstream_server import Answer, UpstreamServer, anthropic_body
from tests.chatapp.web.test_identities import left
from tests.servers import Server

ADDRESS_BURST = 20
USER_BURST = 10
MODEL = "claude-sonnet-5"
#: What 25 agents spend in 20 minutes, and a little more.
TEAM_USD = 56


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of limits in memory."""
    return Clock(monkeypatch)


@pytest.fixture
def keys(accounts: Accounts) -> list[PresentedKey]:
    """The keys of 25 users, on the plan starter."""
    return [accounts.create_key(f"u{n}", plan=None, default_plan="starter") for n in range(25)]


@pytest.fixture
def office(keys: list[PresentedKey], make_app: AppMaker, clock: Clock) -> Flask:
    """The packaged policy in memory, at a virtual time."""
    return make_app()


@pytest.fixture(params=["memory", "redis"])
def storage(request: pytest.FixtureRequest) -> str:
    """Where the limits are kept."""
    if request.param == "memory":
        return "memory://"
    request.getfixturevalue("redis_client")
    server: Server = request.getfixturevalue("redis_server")
    return server.uri


def ask(client: FlaskClient, key: PresentedKey | None) -> TestResponse:
    """Send one message from the address that all of them share."""
    headers = {} if key is None else {"x-api-key": key.text}
    return client.post("/chat", json={"message": "hi"}, headers=headers)


def statuses(client: FlaskClient, *keys: PresentedKey | None) -> Counter[int]:
    return Counter(ask(client, key).status_code for key in keys)


def test_25_users_at_once_all_pass(
    keys: list[PresentedKey], make_app: AppMaker, storage: str
) -> None:
    """More than the address alone may call at once; the address is not charged."""
    client = make_app(RATELIMIT_STORAGE_URI=storage).test_client()
    assert statuses(client, *keys) == {200: len(keys)}
    answer = ask(client, keys[0])
    # The first call may be back on a busy machine, not the second.
    assert left(answer)["user"] in (USER_BURST - 2, USER_BURST - 1)
    assert "ip" not in left(answer)
    assert left(ask(client, None)) == {"ip": ADDRESS_BURST - 1}


def test_eight_users_call_for_a_minute(
    office: Flask, keys: list[PresentedKey], clock: Clock
) -> None:
    """Eight keys, each at the rate of its user's limit: no call is denied. At one call a second
    each is denied by its user's limit only."""
    client = office.test_client()
    for _ in range(30):
        assert statuses(client, *keys[:8]) == {200: 8}
        clock.forward(2)
    clock.forward(60)
    passed: Counter[str] = Counter()
    for _ in range(60):
        for key in keys[:8]:
            answer = ask(client, key)
            if answer.status_code == 200:
                passed[key.public_id] += 1
            else:
                assert json_of(answer)["policy"] == "user"
        clock.forward(1)
    assert set(passed.values()) == {USER_BURST + 59 // 2}


def turns(agents: Sequence[PresentedKey], seconds: float) -> Iterator[tuple[float, PresentedKey]]:
    """When each agent takes a turn: every 10 to 30 s, and every tenth turn is three at once."""
    chance = random.Random(25)
    due = [(chance.uniform(0, 30), number) for number in range(len(agents))]
    heapq.heapify(due)
    while due[0][0] < seconds:
        at_s, number = heapq.heappop(due)
        yield from [(at_s, agents[number])] * (3 if chance.random() < 0.1 else 1)
        heapq.heappush(due, (at_s + chance.uniform(10, 30), number))


def turn(
    provider: UpstreamServer, client: FlaskClient, key: PresentedKey, size: int
) -> TestResponse:
    """One turn with so many tokens of input, all but 2,000 of them in the provider's cache."""
    usage = {"input_tokens": 2000, "cache_read_input_tokens": size - 2000, "output_tokens": 600}
    provider.script(Answer(200, {**anthropic_body(model=MODEL), "usage": usage}))
    message = {"role": "user", "content": "hello"}
    body = {"model": MODEL, "max_tokens": 32_000, "messages": [message]}
    return client.post("/v1/messages", json=body, headers={"x-api-key": key.text})


def cost_usd(catalogue: Catalogue, answer: TestResponse) -> float:
    """What a turn cost."""
    usage = answer.get_json()["usage"]
    cached = usage["cache_read_input_tokens"]
    used = Usage(usage["input_tokens"] + cached, usage["output_tokens"], cached)
    return catalogue.price(MODEL, used) / 1e6


@pytest.mark.slow
def test_25_agents_spend_the_budget_of_their_team(
    provider: UpstreamServer, make_app: AppMaker, clock: Clock, accounts: Accounts
) -> None:
    """At the pace of coding agents, each inside its plan, for over 20 minutes: no turn is refused
    while the team's budget lasts, and it is spent within 2 %."""
    accounts.create_team("office", limits={"team-usd-day": f"{TEAM_USD} usd/day"})
    member: dict[str, Any] = {"plan": "pro", "default_plan": "starter", "team": "office"}
    agents = [accounts.create_key(f"agent{n}", **member) for n in range(25)]
    client = make_app().test_client()
    catalogue = load()
    began_s, size, spent_usd = clock.now_s, random.Random(25), 0.0
    refused: list[tuple[float, float]] = []
    for at_s, key in turns(agents, seconds=22 * 60):
        clock.forward(began_s + at_s - clock.now_s)
        answer = turn(provider, client, key, size.randrange(50_000, 150_000))
        if answer.status_code == 200:
            spent_usd += cost_usd(catalogue, answer)
        else:
            assert answer.get_json()["error"]["details"]["error_code"] == "insufficient_quota"
            refused.append((at_s, spent_usd))
    first_at_s, spent_before_usd = refused[0]
    assert first_at_s > 20 * 60
    assert TEAM_USD * 0.98 < spent_before_usd <= spent_usd < TEAM_USD * 1.02


def test_guessing_from_the_address_is_limited_and_harms_no_key(
    office: Flask, keys: list[PresentedKey]
) -> None:
    """Wrong keys use up the limit of the address, and not that of a valid key."""
    client = office.test_client()
    wrong = PresentedKey(keys[0].public_id, new_key().secret)
    assert statuses(client, *[wrong] * 30) == {401: ADDRESS_BURST, 429: 10}
    assert statuses(client, *keys) == {200: len(keys)}
    assert ask(client, None).status_code == 429


def test_a_key_has_one_limit_over_all_endpoints(office: Flask, keys: list[PresentedKey]) -> None:
    """Also where no user limit applies; another key at the same address has another limit."""
    client = office.test_client()
    headers = [{"x-api-key": key.text} for key in keys[:2]]
    burst = _named("key")["burst"]
    answers = [client.get("/v1/models", headers=headers[0]) for _ in range(burst + 1)]
    assert Counter(answer.status_code for answer in answers) == {200: burst, 429: 1}
    assert client.get("/usage", headers=headers[0]).status_code == 429
    assert client.get("/usage", headers=headers[1]).status_code == 200


def test_without_accounts_the_address_counts(make_app: AppMaker, clock: Clock) -> None:
    """User ids in bodies are not known users."""
    client = make_app().test_client()
    sent = [
        client.post("/chat", json={"message": "hi", "user_id": f"u{n}"})
        for n in range(ADDRESS_BURST + 5)
    ]
    assert Counter(answer.status_code for answer in sent) == {200: ADDRESS_BURST, 429: 5}
    assert "key" not in left(sent[0])


def test_the_limit_of_a_key_is_above_all_limits_of_its_user() -> None:
    """In burst and rate, of the limits in requests together, on every plan."""
    policy = tomllib.loads(POLICY_FILE.read_text("utf-8"))
    key, groups = _named("key"), [*policy["groups"].values()]
    assert policy["plans"]
    for plan in policy["plans"].values():
        of_user = [
            limit
            for table in (*groups, plan)
            for limit in table["limits"]
            if "burst" in limit and limit["key"] == "user"
        ]
        assert len(of_user) == 2
        assert key["burst"] > sum(limit["burst"] for limit in of_user)
        assert _per_minute(key["limit"]) > sum(_per_minute(limit["limit"]) for limit in of_user)


def _named(name: str) -> dict[str, Any]:
    """A limit of the application in the packaged policy."""
    policy = tomllib.loads(POLICY_FILE.read_text("utf-8"))
    return next(limit for limit in policy["application"] if limit["name"] == name)


def _per_minute(text: str) -> float:
    item = parse(text)
    return item.amount * 60 / item.get_expiry()
