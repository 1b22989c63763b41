"""Spending alerts over real requests: whose budget it is, what it has, and that no call waits."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from chatapp import POLICY_FILE
from chatapp.accounts.api_key import public_id_of
from chatapp.services import services_of
from tests.chatapp.alerts.receiver import SECRET, Receiver
from tests.chatapp.cli.test_commands import run
from tests.chatapp.cli.test_operators import ratelimit
from tests.chatapp.conftest import AppMaker, policy_file, raised_alerts
from tests.chatapp.upstream_server import UpstreamServer
from tests.servers import standalone

#: One call costs 70 micro-dollars, and holds 30.
CALL = {"model": "gpt-4o", "max_tokens": 1, "messages": [{"role": "user", "content": "ping"}]}
THREE_CALLS = "0.0002 usd/day"
BUDGET_OF_SOME = """
[groups.some]
members = ["openai_api"]

[[groups.some.limits]]
name = "some-usd-day"
limit = "5 usd/day"
strategy = "fixed-window"
anchor = "day"
key = "user"
"""
NAMES = {"key": "key-usd-day", "team": "team-usd-day", "user": "usd-day"}


@pytest.fixture
def start(
    make_app: AppMaker, provider: UpstreamServer, uri: str, receiver: Receiver
) -> Callable[..., Flask]:
    """Starts a worker on the shared storage, which sends its alerts to `receiver`."""
    return partial(
        make_app,
        RATELIMIT_STORAGE_URI=uri,
        CHATAPP_ALERT_WEBHOOK_URL=receiver.url,
        CHATAPP_ALERT_WEBHOOK_SECRET=SECRET,
    )


def new_key(app: Flask, user: str, *options: str) -> str:
    return run(app, "keys", "create", "--user", user, *options).stdout.strip()


def ask(app: Flask, key: str, **more: object) -> int:
    """The status of one call."""
    headers = {"Authorization": f"Bearer {key}"}
    with app.test_client().post("/v1/chat/completions", json=CALL | more, headers=headers) as said:
        said.get_data()
        return said.status_code


def counted(app: Flask, identity: str, name: str) -> float:
    """What the limit has counted, in dollars."""
    (state,) = [each for each in ratelimit(app, "inspect", identity) if each["limit"] == name]
    return float(state["used"])


def raised(app: Flask) -> list[tuple[str, str, int, int]]:
    """Identity, budget, threshold and amount of each alert, the oldest first."""
    rows = reversed(raised_alerts(app))
    return [(row["identity"], row["name"], row["threshold"], row["amount"]) for row in rows]


@pytest.mark.parametrize("owner", ["user", "key", "team", "override"])
def test_the_amount_is_the_callers_own(
    start: Callable[[], Flask], receiver: Receiver, owner: str
) -> None:
    """Of a user, a key or a team, and of an override that ends in two hours."""
    app = start()
    name = NAMES["user" if owner == "override" else owner]
    own = ("--limit", f"{name}={THREE_CALLS}")
    if owner == "team":
        run(app, "teams", "create", "research", *own)
    joins = ("--team", "research") if owner == "team" else ()
    key = new_key(app, "alice", *joins, *(own if owner == "key" else ()))
    identity = {"key": public_id_of(key), "team": "team:research"}.get(owner, "user:alice")
    if owner == "user":
        run(app, "amounts", "set", "user", "alice", name, THREE_CALLS)
    elif owner == "override":
        ratelimit(app, "override", "set", "alice", name, THREE_CALLS, "--until", "2h")
    app = start()
    services_of(app).limiter._components.overrides.refresh()
    seen = []
    for _ in range(4):
        status = ask(app, key)
        seen.append((status, [threshold for _, _, threshold, _ in raised(app)]))
    assert seen == [(200, []), (200, [50]), (200, [50, 100]), (429, [50, 100])]
    assert {(whose, budget, amount) for whose, budget, _, amount in raised(app)} == {
        (identity, name, 200)
    }
    bodies = [request.body for request in receiver.received(2)]
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    for body in bodies:
        data = body["data"]
        assert (data["identity"], data["budget"]) == (identity, name)
        assert data["user"] == (None if owner == "team" else "alice")
        assert data["resets_at"] == f"{tomorrow}T00:00:00Z"
    assert [body["data"]["spent_usd"] for body in bodies] == [0.00014, 0.0002]
    assert counted(app, identity, name) == 0.0002  # and a debt of 10 micro-dollars


@pytest.mark.parametrize("case", ["after a reset", "of some endpoints"])
def test_the_alert_has_what_the_limit_has(
    start: Callable[..., Flask], tmp_path: Path, case: str
) -> None:
    """To the micro-dollar, as `flask ratelimit inspect` and the admin page, although the ledger has
    more."""
    policy = policy_file(tmp_path, POLICY_FILE.read_text() + BUDGET_OF_SOME)
    app = start(RATELIMIT_POLICY_FILE=policy)
    key = new_key(app, "alice")
    run(app, "amounts", "set", "user", "alice", "some-usd-day", "0.0006 usd/day")
    if case == "after a reset":
        assert [ask(app, key) for _ in range(3)] == [200] * 3
        assert raised(app) == []
        args = ["ratelimit", "reset", "alice", "--limit", "some-usd-day"]
        assert app.test_cli_runner().invoke(args=args).exit_code == 0
    else:
        headers, body = {"Authorization": f"Bearer {key}"}, {"message": "hi", "model": "gpt-4o"}
        said = [app.test_client().post("/chat", json=body, headers=headers) for _ in range(3)]
        assert [each.status_code for each in said] == [200] * 3
    assert [ask(app, key) for _ in range(5)] == [200] * 5
    assert [each[1:3] for each in raised(app)] == [("some-usd-day", 50)]
    (row,) = raised_alerts(app)
    since = datetime.now(UTC) - timedelta(hours=1)
    assert services_of(app).reports.settled_micro_usd("user:alice", since) >= 560
    assert row["spent"] == 350 == round(counted(app, "user:alice", "some-usd-day") * 1_000_000)


def test_a_hold_above_the_budget_raises_nothing(start: Callable[[], Flask]) -> None:
    """The call reserves all of it for a long answer, and the answer is short. Nor does a refusal
    of the next one, for which what is left is too little."""
    app = start()
    key = new_key(app, "alice", "--limit", "key-usd-day=0.002 usd/day")
    app = start()
    assert ask(app, key, max_tokens=4000) == 200
    assert raised(app) == []
    assert ask(app, key, max_tokens=4000) == 429
    assert raised(app) == []


def test_a_receiver_that_hangs_delays_no_call(
    start: Callable[[], Flask], receiver: Receiver
) -> None:
    """Calls are answered while the webhook waits; then it arrives."""
    app = start()
    key = new_key(app, "alice", "--limit", "key-usd-day=0.0004 usd/day")
    app = start()
    receiver.gate.clear()
    assert [ask(app, key) for _ in range(4)] == [200] * 4
    services = services_of(app)
    assert services.alerts is not None
    assert services.ledger.flush()
    looking = threading.Thread(target=services.alerts.get().flush)
    looking.start()
    receiver.received(1)
    assert [ask(app, key) for _ in range(2)] == [200] * 2
    assert len(receiver.received(1)) == 1
    receiver.gate.set()
    looking.join()
    assert [threshold for _, _, threshold, _ in raised(app)] == [50, 100]
    assert len(receiver.received(2)) == 2


def test_a_storage_that_is_down_stops_no_alert(
    make_app: AppMaker, provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the ledger counts, against the amount that was last known; a worker's share of it
    is no budget."""
    monkeypatch.setenv("RATELIMIT_DEADLINE_SECONDS", "0.5")
    with standalone() as server:
        app = make_app(RATELIMIT_STORAGE_URI=server.uri)
        key = new_key(app, "alice", "--limit", "key-usd-day=0.0006 usd/day")
        app = make_app(RATELIMIT_STORAGE_URI=server.uri, RATELIMIT_WORKERS="2")
        assert ask(app, key) == 200
        assert raised(app) == []
        server.kill()
        assert [ask(app, key) for _ in range(3)] == [200] * 3
        assert raised(app) == []
        assert ask(app, key) == 200
        assert [each[1:] for each in raised(app)] == [("key-usd-day", 50, 600)]


def test_the_end_of_a_process_loses_no_alert(
    start: Callable[[], Flask], receiver: Receiver
) -> None:
    """What was spent in its last moment is written, looked at and sent."""
    app = start()
    key = new_key(app, "alice", "--limit", f"key-usd-day={THREE_CALLS}")
    app = start()
    assert [ask(app, key) for _ in range(2)] == [200] * 2
    services: Any = services_of(app)
    services.ledger._writer.close()
    services.alerts.close()
    (request,) = receiver.received()
    assert (request.body["data"]["threshold"], request.is_signed) == (50, True)


def test_alerts_can_be_switched_off(make_app: AppMaker) -> None:
    """All of them: then nothing listens."""
    config = {"CHATAPP_ALERT_AT": "off", "CHATAPP_ALERT_UNUSUAL_TIMES": "0"}
    assert services_of(make_app(**config)).alerts is None
    assert services_of(make_app()).alerts is not None


def test_budgets_of_all_calls_by_the_calendar_have_a_forecast(
    start: Callable[..., Flask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a user or a team: the ledger does not know what others count."""
    of_models = BUDGET_OF_SOME.replace("some", "gpt") + 'models = ["gpt*"]\n'
    slides = BUDGET_OF_SOME.replace('anchor = "day"', "").replace("fixed-", "sliding-")
    policy = policy_file(tmp_path, POLICY_FILE.read_text() + slides + of_models)
    app = start(RATELIMIT_POLICY_FILE=policy)
    run(app, "teams", "create", "red", "--limit", "team-usd-day=5 usd/day")
    key = new_key(app, "alice", "--team", "red", "--limit", "key-usd-day=5 usd/day")
    alerts, read = services_of(app).alerts, []
    assert alerts is not None
    monkeypatch.setattr(alerts.get(), "note_decision", lambda _, each, **_others: read.append(each))
    assert ask(app, key) == 200
    found = {each.name: each.has_forecast for reading in read for each in reading()}
    assert len(found) == 6
    assert {name for name, has_one in found.items() if has_one} == {
        *("usd-day", "usd-month", "team-usd-day")
    }
