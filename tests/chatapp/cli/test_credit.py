"""`chat credit`: dollars that a user gets back, in limits, ledger, reports and the log."""

import itertools
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import update

from chatapp.accounts.people import HEADERS, People
from chatapp.accounts.store import Accounts, Owner
from chatapp.ledger import table
from chatapp.ledger.table import CALLS
from chatapp.operators import reports, restoration
from chatapp.operators.credit import Subject, _covers, _left, credit
from chatapp.services import services_of
from chatapp.web import call_limits
from ratelimit_ext import OperatorError
from tests.chatapp.application.limits.test_teams import new_key
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.web.test_authentication import BODIES, OPENAI


@pytest.fixture
def worker(make_app: AppMaker, uri: str, provider: object, accounts: Accounts) -> Flask:
    """alice has spent 210 micro-dollars on three calls."""
    app = make_app(RATELIMIT_STORAGE_URI=uri)
    key = new_key(app, "alice")
    body = {**BODIES[OPENAI], "model": "gpt-4o"}
    for _ in range(3):
        answer = app.test_client().post(OPENAI, json=body, headers={"x-api-key": key})
        assert answer.status_code == 200
    assert services_of(app).ledger.flush()
    return app


def left(app: Flask) -> dict[str, float]:
    """Of her budgets, in micro-dollars that are used."""
    limits = json.loads(run(app, "usage", "alice", "--json").stdout)["limits"]
    money = [each for each in limits if each["unit"] == "usd"]
    return {each["name"]: round((each["limit"] - each["remaining"]) * 1e6) for each in money}


def test_a_credit_is_in_limits_ledger_report_and_log(worker: Flask, console: Flask) -> None:
    """And a storage that loses its data gets the same back from the ledger."""
    before = left(console)
    assert set(before) == {"usd-hour", "usd-day", "usd-month"}
    (spent,) = set(before.values())
    done = run(
        console, "credit", "0.0001", "--user", "alice", "--reason", "bad answer", "--by", "olga"
    )
    assert done.stdout.startswith(
        "alice has a credit of 0.0001 usd in usd-hour, usd-day, usd-month."
    )
    assert set(left(console).values()) == {spent - 100}
    (row,) = json.loads(run(console, "spend", "--json").stdout)
    assert (row["calls"], row["cost_micro_usd"]) == (3, spent - 100)
    models = json.loads(run(console, "spend", "--by", "model", "--json").stdout)
    assert {each["subject"]: each["cost_micro_usd"] for each in models}["credit"] == -100
    log = console.test_cli_runner().invoke(args=["ratelimit", "log", "--json"])
    entry = json.loads(log.stdout)[0]
    assert (entry["action"], entry["identity"], entry["by"]) == ("credit", "user:alice", "olga")
    assert (entry["amount"], entry["reason"]) == ("0.0001 usd", "bad answer")
    assert run(console, "ledger", "check").exit_code == 0
    with console.app_context():
        assert restoration.restore("user:alice", apply=False, reason="", by="") == []
        services_of(console).limiter.operators.reset("user:alice")
        restoration.restore("user:alice", apply=True, reason="", by="olga")
    assert set(left(console).values()) == {spent - 100}


@pytest.mark.parametrize("ahead_s", [-300, 300])
def test_the_clocks_of_the_ledger_and_of_redis_may_differ(
    worker: Flask, console: Flask, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """The calls since a window began by the one are those by the other, and it ends in time."""
    now = SimpleNamespace(time=lambda: time.time() + ahead_s)
    monkeypatch.setattr(call_limits, "time", now)
    began = datetime.now(UTC) + timedelta(seconds=ahead_s)
    with services_of(worker).database.writing() as connection:
        connection.execute(update(CALLS).values(started_at=began))
    run(console, "credit", "0.0001", "--user", "alice")
    assert left(console) == {"usd-hour": 110, "usd-day": 110, "usd-month": 110}
    limits = json.loads(run(console, "usage", "alice", "--json").stdout)["limits"]
    assert [3500 < e["reset_after"] <= 3600 for e in limits if e["name"] == "usd-hour"] == [True]


@pytest.fixture
def key(worker: Flask) -> str:
    """Of bob's, in a team; both have budgets, and both keys of bob's have spent 210 each."""
    accounts = services_of(worker).accounts
    accounts.create_team("research", limits={"team-usd-month": "9 usd/month"})
    keys = [
        accounts.create_key("bob", plan=None, default_plan="starter", team=team, limits=limits)
        for team, limits in (("research", {"key-usd-day": "2 usd/day"}), (None, {}))
    ]
    body = {**BODIES[OPENAI], "model": "gpt-4o"}
    for each in keys * 3:
        answer = worker.test_client().post(OPENAI, json=body, headers={"x-api-key": each.text})
        assert answer.status_code == 200
    assert services_of(worker).ledger.flush()
    return keys[0].public_id


def used(app: Flask, *identities: str) -> dict[str, int]:
    """What they have used of their budgets, in micro-dollars."""
    with app.app_context():
        states = services_of(app).limiter.operators.states(*identities)
    money = [each for each in states if each.row.limit.unit == "usd" and not each.is_guard]
    return {each.row.name: each.used for each in money if each.used}


def spent(app: Flask, by: str) -> dict[str, int]:
    rows = json.loads(run(app, "spend", "--by", by, "--json").stdout)
    return {each["subject"]: each["cost_micro_usd"] for each in rows}


def test_a_team_has_a_credit(console: Flask, key: str) -> None:
    """In its budgets alone, and in the ledger under its name; restored as it was."""
    assert used(console, "team:research") == {"team-usd-month": 420}
    before = used(console, "user:bob")
    run(console, "credit", "0.0001", "--team", "research", "--reason", "late")
    assert used(console, "team:research") == {"team-usd-month": 320}
    assert used(console, "user:bob") == before
    assert spent(console, "team")["research"] == 320
    assert spent(console, "user") == {"user:alice": 210, "user:bob": 420, "team:research": -100}
    assert run(console, "ledger", "check").exit_code == 0
    with console.app_context():
        entry = services_of(console).limiter.operators.log()[0]
        assert (entry.action, entry.identity, entry.reason) == ("credit", "team:research", "late")
        services_of(console).limiter.operators.reset("team:research")
        restoration.restore(None, apply=True, reason="", by="olga")
    assert used(console, "team:research") == {"team-usd-month": 320}


def test_a_key_has_a_credit_in_its_users_budgets_too(console: Flask, key: str) -> None:
    """At most what was spent with that key, and not what its user spent with another."""
    assert used(console, key) == {"key-usd-day": 210}
    assert set(used(console, "user:bob").values()) == {420}
    done = run(console, "credit", "5", "--key", key)
    assert "has a credit of 0.00021 usd in" in done.stdout
    assert used(console, key) == {}
    assert set(used(console, "user:bob").values()) == {210}
    assert used(console, "team:research") == {"team-usd-month": 420}
    assert spent(console, "key")[key] == 0
    assert spent(console, "user")["user:bob"] == 210
    assert run(console, "ledger", "check").exit_code == 0
    with console.app_context():
        for each in ("user:bob", key):
            services_of(console).limiter.operators.reset(each)
        restoration.restore(None, apply=True, reason="", by="olga")
    assert used(console, key) == {}
    assert set(used(console, "user:bob").values()) == {210}


def test_a_key_that_acts_for_people_has_a_credit_of_its_own(
    worker: Flask, console: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner has spent nothing, and its people keep what they have spent."""
    made = services_of(worker).accounts.create_key(
        "webui", plan=None, default_plan="starter", limits={"key-usd-day": "2 usd/day"},
        people=People(),
    )  # fmt: skip
    body = {**BODIES[OPENAI], "model": "gpt-4o"}
    for name in ("ann", "ben"):
        headers = {"x-api-key": made.text, HEADERS[0]: name}
        answer = worker.test_client().post(OPENAI, json=body, headers=headers)
        assert answer.status_code == 200
    assert services_of(worker).ledger.flush()
    key, before = made.public_id, spent(console, "user")
    run(console, "credit", "0.0001", "--key", key)
    assert used(console, key) == {"key-usd-day": 40}
    assert spent(console, "key")[key] == 40
    assert spent(console, "user") == {**before, key: -100}
    assert run(console, "ledger", "check").exit_code == 0
    asked: list[str] = []
    monkeypatch.setattr(reports, "forecasts", lambda identity: asked.append(identity) or ())
    run(console, "forecast")
    assert set(asked) == before.keys()
    with console.app_context():
        services_of(console).limiter.operators.reset(key)
        restoration.restore(None, apply=True, reason="", by="olga")
    assert used(console, key) == {"key-usd-day": 40}


@pytest.mark.usefixtures("rolling")
def test_a_sliding_window_has_no_credit(worker: Flask, console: Flask) -> None:
    """It has the single calls, and the command does not claim that they cost less."""
    done = run(console, "credit", "0.0001", "--user", "alice")
    assert done.stdout.startswith("alice has a credit of 0.0001 usd in usd-hour, usd-day, usd-m")
    assert "rolling" not in done.stdout
    assert left(console) == {"usd-hour": 110, "usd-day": 110, "usd-month": 110, "rolling": 210}


ORDERS = list(itertools.permutations(("user", "key", "team")))


@pytest.mark.parametrize("order", ORDERS, ids=",".join)
def test_a_dollar_is_given_back_once(console: Flask, key: str, order: tuple[Owner, ...]) -> None:
    """To a user, a key or a team, in whatever order: bob has spent 420 with two keys of the team,
    and gets no more of them in all, and neither does anyone else."""
    names = {"user": "bob", "key": key, "team": "research"}
    for owner in order:
        words = ("credit", "5", f"--{owner}", names[owner])
        console.test_cli_runner().invoke(args=["chat", *words])
        assert all(micro >= 0 for micro in used(console, "user:bob", key, "team:research").values())
        by_key, by_team = spent(console, "key"), spent(console, "team")
        assert (by_key[key], by_team["research"]) >= (0, 0)
    by_user = spent(console, "user")
    assert by_user["user:bob"] >= 0
    assert sum(by_user.values()) == by_user["user:alice"] == 210
    again = run(console, "credit", "5", "--key", key, status=1)
    assert "have given back all spending" in again.stderr or "Nothing is spent" in again.stderr


def test_a_credit_falls_on_other_calls_if_it_can(console: Flask, key: str) -> None:
    """Half of what bob has spent is given back to him: the other half may be that of his key."""
    run(console, "credit", "0.00021", "--user", "bob")
    done = run(console, "credit", "5", "--key", key)
    assert "has a credit of 0.00021 usd in" in done.stdout
    assert used(console, key, "user:bob") == {}
    refused = run(console, "credit", "5", "--team", "research", status=1)
    assert "Earlier credits to a user, key or team have given back all spending" in refused.stderr
    assert used(console, "team:research") == {"team-usd-month": 420}


CALLERS = st.tuples(st.sampled_from("abc"), st.sampled_from("kl"), st.sampled_from(["red", None]))
OWNERS = st.sampled_from([("a", None, None), ("b", None, None), ("c", None, None),
    ("a", "k", None), (None, "l", None), (None, None, "red")])  # fmt: skip
AMOUNTS = st.integers(1, 9)


def most_placed(costs: Counter[Subject], before: dict[Subject, int]) -> int:
    """How much of the credits falls on calls, by the theorem of the minimal cut."""
    return min(
        sum(micro for owner, micro in before.items() if owner not in some)
        + sum(micro for call, micro in costs.items() if any(_covers(o, call) for o in some))
        for size in range(len(before) + 1)
        for some in itertools.combinations(before, size)
    )


@given(st.dictionaries(CALLERS, AMOUNTS), st.dictionaries(OWNERS, AMOUNTS), OWNERS)
@example(
    {("a", "k", "red"): 2, ("b", "l", "red"): 2, ("b", "k", None): 5},
    {("b", "l", None): 4, (None, None, "red"): 2, ("b", None, None): 5},
    ("a", "k", None),
)
def test_what_is_left_is_the_most_that_no_credit_needs(
    costs: dict[Subject, int], before: dict[Subject, int], subject: Subject
) -> None:
    """Whatever credits there are, in whatever order."""
    calls = Counter(costs)
    besides = {**before, subject: before.get(subject, 0) + calls.total()}
    assert _left(calls, list(before.items()), subject) == most_placed(calls, besides) - most_placed(
        calls, before
    )


def test_a_credit_of_a_large_team_takes_no_time() -> None:
    """The ledger can be written by no one else meanwhile."""
    costs = Counter[Subject]({(f"user:{n}", f"k{n}", "red"): 10 for n in range(1_000)})
    before: list[tuple[Subject, int]] = [((f"user:{n}", None, None), 10) for n in range(50)]
    began_at = time.process_time()
    assert _left(costs, before, (None, None, "red")) == 9_500
    assert time.process_time() - began_at < 2


def test_calls_are_written_while_a_credit_is_summed(
    console: Flask, worker: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of a month takes seconds, in which workers would give up."""
    reports, database = services_of(console).reports, services_of(worker).database
    read = reports.by_caller

    def by_caller(since: datetime) -> object:
        table.write(database, [finished(begun(user="user:bob"))])
        return read(since)

    monkeypatch.setattr(reports, "by_caller", by_caller)
    done = run(console, "credit", "0.0001", "--user", "alice")
    assert done.stdout.startswith("alice has a credit of 0.0001 usd in usd-hour")


def test_of_credits_at_once_one_is_given(console: Flask, worker: Flask) -> None:
    """Of eight that each ask for all, whichever face they came by."""

    def give(number: int) -> bool:
        with console.app_context():
            try:
                credit("user", "alice", Decimal(5), reason="", by=str(number))
            except OperatorError:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(give, range(8))) == 1
    assert spent(console, "user") == {"user:alice": 0}


def test_no_more_is_given_back_than_was_spent(worker: Flask, console: Flask) -> None:
    """Calls in flight keep what they hold, and a second credit finds nothing."""
    body = {**BODIES[OPENAI], "model": "gpt-4o", "stream": True}
    key = new_key(worker, "alice")
    running = worker.test_client().post(OPENAI, json=body, headers={"x-api-key": key})
    held = set(left(console).values())
    done = run(console, "credit", "5", "--user", "alice")
    assert "credit of 0.00021 usd in usd-hour, usd-day, usd-month, which is all" in done.stdout
    assert set(left(console).values()) == {each - 210 for each in held}
    again = run(console, "credit", "5", "--user", "alice", status=1)
    assert "Nothing is spent in the budgets of alice." in again.stderr
    running.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("0", "--user", "alice"), "'0' is not an amount of dollars above 0"),
        (("--user", "alice", "--", "-5"), "'-5' is not an amount of dollars above 0"),
        (("nan", "--user", "alice"), "'nan' is not an amount of dollars above 0"),
        *(
            ((odd, "--user", "alice"), "is not an amount of dollars")
            for odd in ("", "five", "1e400", "inf", "0x10", "٣usd", "0.00000001", "9" * 400)
        ),
        (("5", "--user", "bob"), "There is no user 'bob'"),
        (("5", "--user", "zoe"), "Nothing is spent in the budgets of zoe."),
        (("5", "--team", "red"), "There is no budget in dollars of red."),
        (("5", "--team", "blue"), "There is no team 'blue'"),
        (("5", "--key", "0123456789abcdef"), "There is no key 0123456789abcdef"),
    ],
)
def test_mistakes_are_sentences(
    console: Flask, accounts: Accounts, words: tuple[str, ...], says: str
) -> None:
    """Nothing is written."""
    accounts.create_key("zoe", plan=None, default_plan="starter")
    accounts.create_team("red")
    result = console.test_cli_runner().invoke(args=["chat", "credit", *words])
    assert result.exit_code != 0
    assert says in result.stderr
    assert not list(services_of(console).reports.calls())


def test_a_credit_is_no_sign_of_a_loss(console: Flask, worker: Flask) -> None:
    """A limit that counts less than a call because of it lost nothing."""
    services = services_of(worker)
    long_ago = datetime.now(UTC) - services.lease - timedelta(minutes=1)
    call = finished(begun(user="user:alice", started_at=long_ago), cost_micro_usd=150)
    table.write(services.database, [call])
    run(console, "credit", "5", "--user", "alice")
    with worker.app_context():
        assert not restoration.warn_if_lost()
