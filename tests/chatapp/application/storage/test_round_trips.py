"""The number of round trips to the limits' storage, as a real server sees them."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from chatapp.accounts.store import Accounts
from chatapp.calls import upstream_call
from chatapp.ledger.call import Call
from ratelimit_ext.engine import denial_cache
from ratelimit_ext.web.request import reservation as reservation_module
from ratelimit_ext.web.request.reservation import RENEW_EVERY_S
from tests.chatapp.conftest import AppMaker, raised_alerts, whole
from tests.chatapp.upstream_server import Stream, UpstreamServer, openai_chunks, openai_error
from tests.servers import Server

ASKED = {"message": "ping", "model": "gpt-5.4-mini"}
# What the shipped policy has for a call: address or key, user, model; of the plan calls, tokens,
# calls at once, dollars an hour, a day and a month. Without a key also the address's calls at
# once.
LIMITS = 9
LIMITS_WITHOUT_KEY = 10
# What `seen` says of a script over the limits' buckets.
DECIDES = RENEWS = SETTLES = LOOKS = "fcall"
ASKS, ENDS = "the provider is asked", "the call is over"


class EchoingLedger:
    """Marks on the storage's connection when a provider is called, and when its call is over."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._begun: set[str] = set()

    def begin(self, call: Call) -> None:
        if call.id not in self._begun:  # and not again while it goes on
            self._begun.add(call.id)
            self._client.echo(ASKS)

    def finish(self, call: Call) -> None:
        self._client.echo(ENDS)


@pytest.fixture
def make_quiet_app(
    make_app: AppMaker, redis_server: Server, redis_client: redis.Redis, provider: UpstreamServer
) -> Callable[[], Flask]:
    """Makes an application with the packaged policy."""

    def make() -> Flask:
        ledger = EchoingLedger(redis_client)
        return make_app(ledger=ledger, RATELIMIT_STORAGE_URI=redis_server.uri)

    return make


@pytest.fixture
def app(make_quiet_app: Callable[[], Flask]) -> Flask:
    """The application, with its scripts loaded in the storage."""
    app = make_quiet_app()
    for _ in range(2):
        assert app.test_client().post("/chat", json=ASKED).status_code == 200
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def seen(server: redis.Redis, act: Callable[[], object]) -> list[str]:
    """The commands that arrived meanwhile, in order, without those inside scripts and those of a
    new connection."""
    lines = []
    with server.monitor() as monitor:
        act()
        server.echo("enough")
        for line in monitor.listen():
            name, _, rest = line["command"].partition(" ")
            if line["client_type"] == "lua" or name in {"HELLO", "CLIENT"}:
                continue
            if name == "ECHO":
                if rest == "enough":
                    break
                lines.append(rest)
            else:
                lines.append(name.lower())
    return lines


def ask(client: FlaskClient, **more: object) -> Any:
    """Send one message, read the answer to its end, and close it."""
    return whole(client, "/chat", json={**ASKED, **more})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_is_two_round_trips(
    client: FlaskClient, redis_client: redis.Redis, stream: bool
) -> None:
    """One FCALL decides all ten limits before the provider is called, and another settles every
    charge when the request is over."""
    answers = []
    commands = seen(redis_client, lambda: answers.append(ask(client, stream=stream)))
    assert answers[0].status_code == 200
    assert answers[0].headers["RateLimit"].count(";r=") == LIMITS_WITHOUT_KEY
    assert commands == [DECIDES, ASKS, ENDS, SETTLES]


def test_a_valid_key_costs_no_round_trip(
    make_quiet_app: Callable[[], Flask], redis_client: redis.Redis, accounts: Accounts
) -> None:
    """The key's limit replaces the address's limit in the same decision."""
    key = accounts.create_key("alice", plan=None, default_plan="starter")
    client = make_quiet_app().test_client()
    client.environ_base["HTTP_X_API_KEY"] = key.text
    answers = [ask(client) for _ in range(2)]  # the server learns the scripts
    commands = seen(redis_client, lambda: answers.append(ask(client)))
    assert answers[-1].headers["RateLimit"].count(";r=") == LIMITS
    assert commands == [DECIDES, ASKS, ENDS, SETTLES]


def test_budgets_of_a_team_and_a_key_cost_no_round_trip(
    app: Flask, make_quiet_app: Callable[[], Flask], redis_client: redis.Redis, accounts: Accounts
) -> None:
    """The same two EVALSHA decide and settle them, with the amounts of the user, the team and the
    key. Their database is asked once for a key, and not at each call."""
    accounts.create_team(
        "research", limits={"team-usd-day": "9 usd/day", "team-at-once": "9 in flight"}
    )
    limits = {"key-usd-day": "8 usd/day"}
    key = accounts.create_key(
        "alice", plan="pro", default_plan="starter", team="research", limits=limits
    )
    accounts.set_amount("user", "alice", "usd-day", "7 usd/day")
    client = make_quiet_app().test_client()
    client.environ_base["HTTP_X_API_KEY"] = key.text
    answers = [ask(client) for _ in range(2)]  # the server learns the scripts
    commands = seen(redis_client, lambda: answers.append(ask(client)))
    assert commands == [DECIDES, ASKS, ENDS, SETTLES]
    policies = answers[-1].headers["RateLimit-Policy"]
    assert policies.count(";q=") == LIMITS + 3
    for quota in ('team-usd-day";q=9000000', 'key-usd-day";q=8000000', '"usd-day";q=7000000'):
        assert quota in policies


def test_alerts_cost_no_round_trip(
    make_app: AppMaker,
    redis_server: Server,
    redis_client: redis.Redis,
    provider: UpstreamServer,
    accounts: Accounts,
) -> None:
    """A budget that nears its end is looked up in the database, by a thread. It asks the limit only
    for an alert, of which these calls raise one, and once an hour for a forecast."""
    redis_client.function_flush()  # other tests may have looked at such a limit
    limits = {"key-usd-day": "0.01 usd/day"}
    key = accounts.create_key("alice", plan=None, default_plan="starter", limits=limits)
    app = make_app(RATELIMIT_STORAGE_URI=redis_server.uri, CHATAPP_ALERT_AT="1")
    client = app.test_client()
    client.environ_base["HTTP_X_API_KEY"] = key.text

    def ask_and_raise() -> list[Any]:
        ask(client)
        return raised_alerts(app)

    ask_and_raise()  # the server learns the scripts, and the forecasts of this hour are made
    commands = seen(redis_client, lambda: [ask_and_raise() for _ in range(8)])
    assert sorted(commands) == sorted([DECIDES, SETTLES] * 8 + [LOOKS])
    [alert] = raised_alerts(app)
    assert (alert["name"], alert["threshold"]) == ("key-usd-day", 1)


def test_a_failure_is_two_round_trips(
    client: FlaskClient, redis_client: redis.Redis, provider: UpstreamServer
) -> None:
    """It adds nothing to the statistics; one FCALL refunds its charges."""
    provider.script(*[openai_error(500, code="trouble") for _ in range(2)])
    ask(client)  # the server learns the script that gives back
    assert seen(redis_client, lambda: ask(client)) == [DECIDES, ASKS, ENDS, SETTLES]


def test_a_denial_is_one_round_trip(client: FlaskClient, redis_client: redis.Redis) -> None:
    """Nothing was charged, so nothing is settled."""
    statuses = [200]
    while statuses[-1] == 200:
        commands = seen(redis_client, lambda: statuses.append(ask(client).status_code))
    assert statuses[-1] == 429
    assert commands == [DECIDES]


def test_a_client_that_hammers_costs_none(
    client: FlaskClient, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that denies twice within a second is remembered, whatever guards a call has."""
    monkeypatch.setattr(denial_cache, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    while ask(client).status_code == 200:
        pass
    ask(client)
    statuses: list[int] = []

    def hammer() -> None:
        statuses.extend(ask(client).status_code for _ in range(20))

    assert seen(redis_client, hammer) == []
    assert statuses == [429] * 20


def test_a_long_stream_is_renewed_every_five_seconds(
    client: FlaskClient,
    redis_client: redis.Redis,
    provider: UpstreamServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A minute of two words a second is renewed twelve times."""
    clock = [0.0]
    standing = SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(reservation_module, "time", standing)
    monkeypatch.setattr(upstream_call, "time", standing)
    start, word, *_ = pieces = openai_chunks()
    provider.script(*[Stream([start, *[word] * 120, *pieces[3:]]) for _ in range(2)])
    words: list[bytes] = []

    def listen() -> None:
        words.clear()
        with client.post("/chat", json={**ASKED, "stream": True}) as response:
            for event in response.response:
                words.append(event)
                clock[0] += 0.5

    listen()  # the server learns the script that renews
    commands = seen(redis_client, listen)
    assert len(words) == 120 + 1  # and the end
    assert RENEW_EVERY_S == 5.0
    assert commands == [DECIDES, ASKS, *[RENEWS] * 12, ENDS, SETTLES]
