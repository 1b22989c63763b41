"""Budgets of teams and keys, and amounts of single users: by command, over real requests."""

import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.test import TestResponse

from chatapp.database.connection import Database
from chatapp.services import services_of
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.upstream_server import (
    Answer,
    Stream,
    UpstreamServer,
    Wait,
    openai_body,
    openai_chunks,
)
from tests.chatapp.web.test_identities import left
from tests.served import serving

CALL = {"message": "ping", "model": "gpt-4o"}
#: One call costs 65 micro-dollars; its estimate is far more, and reserves what there is.
ONE_CALL = "0.0001 usd/day"


@pytest.fixture
def start(make_app: AppMaker, provider: UpstreamServer, uri: str) -> Callable[[], Flask]:
    """Starts a worker on the shared storage; it knows what the commands have changed."""
    return lambda: make_app(RATELIMIT_STORAGE_URI=uri)


def new_key(app: Flask, user: str, *options: str) -> str:
    return run(app, "keys", "create", "--user", user, *options).stdout.strip()


def ask(app: Flask, key: str) -> TestResponse:
    return app.test_client().post("/chat", json=CALL, headers={"x-api-key": key})


def usage_of(app: Flask, key: str) -> dict[str, Any]:
    shown: dict[str, Any] = app.test_client().get("/usage", headers={"x-api-key": key}).json
    return shown


def test_the_members_of_a_team_share_its_budget(start: Callable[[], Flask]) -> None:
    """Above their own limits, in one decision; the refusal names the budget. Others have none."""
    app = start()
    run(app, "teams", "create", "research", "--limit", f"team-usd-day={ONE_CALL}")
    run(app, "teams", "create", "sales")
    ada, bob = (new_key(app, user, "--team", "research") for user in ("ada", "bob"))
    zoe, sam = new_key(app, "zoe"), new_key(app, "sam", "--team", "sales")
    app = start()
    first = ask(app, ada)
    assert (first.status_code, left(first)["team-usd-day"]) == (200, 0)
    refusal = ask(app, bob)
    assert refusal.status_code == 429
    shown = json_of(refusal)
    assert (shown["code"], shown["policy"]) == ("insufficient_quota", "team-usd-day")
    assert shown["error"].startswith("The shared budget of your team for today is used up.")
    assert shown["limit"] == "0.0001 usd per 1 day"
    assert refusal.headers["x-should-retry"] == "false"
    for key in (zoe, sam):
        assert "team-usd-day" not in left(ask(app, key))


def test_a_higher_budget_keeps_what_was_spent(start: Callable[[], Flask]) -> None:
    """And a lower one too; it applies without a restart, in a new worker at once."""
    app = start()
    run(app, "teams", "create", "research", "--limit", f"team-usd-day={ONE_CALL}")
    key = new_key(app, "ada", "--team", "research")
    app = start()
    assert [ask(app, key).status_code for _ in range(2)] == [200, 429]
    run(app, "amounts", "set", "team", "research", "team-usd-day", "1 usd/day")
    app = start()
    assert ask(app, key).status_code == 200
    (budget,) = [limit for limit in usage_of(app, key)["limits"] if limit["name"] == "team-usd-day"]
    assert budget["limit"] == 1
    assert budget["remaining"] == pytest.approx(1 - 2 * 0.00007, abs=0.00002)
    run(app, "amounts", "clear", "team", "research", "team-usd-day")
    assert "team-usd-day" not in left(ask(start(), key))


def test_a_member_sees_the_teams_budget(start: Callable[[], Flask]) -> None:
    """In GET /usage and `chat usage` alike."""
    app = start()
    run(app, "teams", "create", "research", "--limit", "team-usd-month=1000 usd/month")
    key = new_key(app, "ada", "--team", "research")
    app = start()
    assert ask(app, key).status_code == 200
    assert services_of(app).ledger.flush()
    for shown in (usage_of(app, key), json.loads(run(app, "usage", "ada", "--json").stdout)):
        assert shown["team"] == "research"
        (budget,) = [each for each in shown["limits"] if each["name"] == "team-usd-month"]
        assert (budget["limit"], budget["unit"], budget["anchor"]) == (1000, "usd", "month")
        assert 999.9 < budget["remaining"] < 1000
    assert usage_of(app, new_key(app, "zoe"))["team"] is None


def test_a_user_moves_between_teams(start: Callable[[], Flask]) -> None:
    """Calls count toward the budgets of the team at their time."""
    app = start()
    for team in ("research", "sales"):
        run(app, "teams", "create", team, "--limit", f"team-usd-day={ONE_CALL}")
    key = new_key(app, "ada", "--team", "research")
    app = start()
    assert [ask(app, key).status_code for _ in range(2)] == [200, 429]
    run(app, "users", "set", "ada", "--team", "sales")
    assert re.search(r"sales +team-usd-day=0.0001 usd/day +ada", run(app, "teams", "list").output)
    assert ask(start(), key).status_code == 200
    run(app, "users", "set", "user:ada", "--team", "")
    assert "team-usd-day" not in left(ask(start(), key))


def test_the_ledger_is_compared_with_the_teams_budgets(
    start: Callable[[], Flask], database_url: str
) -> None:
    """A team's calls are those that its members made while they were in it."""
    app = start()
    run(app, "teams", "create", "research", "--limit", "team-usd-day=1 usd/day")
    ada, bob = (new_key(app, user, "--team", "research") for user in ("ada", "bob"))
    app = start()
    for key in (ada, bob, ada):
        assert ask(app, key).status_code == 200
    assert services_of(app).ledger.flush()
    run(app, "users", "set", "bob", "--team", "")
    app = start()
    assert ask(app, bob).status_code == 200
    assert services_of(app).ledger.flush()
    output = run(app, "ledger", "check").output
    assert "limits of 2 users and 1 team compared; 0 problems" in output
    by_team = run(app, "ledger", "days", "--by", "team").output
    assert [line.split()[1:3] for line in by_team.splitlines()[1:]] == [
        ["-", "1"],
        ["research", "3"],
    ]
    with Database(database_url).writing() as connection:
        connection.execute(text("UPDATE calls SET team = NULL WHERE \"user\" = 'user:bob'"))
    output = run(app, "ledger", "check", status=1).output
    assert re.search(
        r"team:research spent \d+ micro-dollars in the window of 'team-usd-day'", output
    )


def test_a_key_has_a_budget_of_its_own(start: Callable[[], Flask]) -> None:
    """Beside the user's; another key of the user has none."""
    app = start()
    ci = new_key(app, "ada", "--limit", f"key-usd-day={ONE_CALL}", "--name", "ci")
    laptop = new_key(app, "ada")
    app = start()
    assert f"valid  key-usd-day={ONE_CALL}" in run(app, "keys", "list").output
    assert [ask(app, ci).status_code for _ in range(2)] == [200, 429]
    assert "The budget of this API key" in str(ask(app, ci).json)
    assert "key-usd-day" not in left(ask(app, laptop))
    run(app, "amounts", "set", "key", laptop, "key-usd-month", "3 usd/month")
    run(app, "amounts", "clear", "key", ci, "key-usd-day")
    app = start()
    assert left(ask(app, laptop))["key-usd-month"] < 3_000_000
    assert "key-usd-day" not in left(ask(app, ci))


def test_a_user_has_an_amount_in_place_of_the_plans(start: Callable[[], Flask]) -> None:
    """With the usage so far, and a sentence that does not speak of the plan."""
    app = start()
    key = new_key(app, "ada")
    app = start()
    assert left(ask(app, key))["plan"] == 99
    run(app, "amounts", "set", "user", "user:ada", "plan", "2/day")
    assert "plan=2/day" in run(app, "users", "list").output
    app = start()
    assert left(ask(app, key))["plan"] == 0
    refusal = ask(app, key)
    assert refusal.status_code == 429
    assert str(refusal.json).count("Your own limit of 2 calls a day is used up.") == 1
    run(app, "amounts", "clear", "user", "ada", "plan")
    assert left(ask(start(), key))["plan"] == 97


def test_openais_sdk_understands_a_spent_team(start: Callable[[], Flask]) -> None:
    """As its own `insufficient_quota`, without a retry."""
    openai = import_module("openai")  # takes half a second, also where only `new_key` is used
    app = start()
    run(app, "teams", "create", "research", "--limit", f"team-usd-day={ONE_CALL}")
    keys = [new_key(app, user, "--team", "research") for user in ("ada", "bob")]
    asked: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "ping"}]}
    with serving(start()) as url:
        first, second = (openai.OpenAI(base_url=f"{url}/v1", api_key=key) for key in keys)
        assert first.chat.completions.create(**asked).choices[0].message.content == "pong"
        with pytest.raises(openai.RateLimitError, match="shared budget of your team") as caught:
            second.chat.completions.create(**asked)
    assert caught.value.code == "insufficient_quota"


def test_25_members_at_once_spend_the_budget_and_no_more(
    start: Callable[[], Flask], provider: UpstreamServer
) -> None:
    """To 2 %, in calls of a hundredth of it; no other limit refuses any of them."""
    admin = start()
    run(admin, "teams", "create", "research", "--limit", "team-usd-day=1 usd/day")
    accounts = services_of(admin).accounts
    keys = [
        accounts.create_key(f"u{n}", plan="pro", default_plan="starter", team="research").text
        for n in range(25)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 1000, "total_tokens": 1010}
    answers = [Answer(200, {**openai_body(model="gpt-4o"), "usage": usage})] * 250
    provider.script(*answers)
    app = start()

    def work(key: str) -> list[tuple[int, str | None]]:
        results = []
        for _ in range(10):
            answer = ask(app, key)
            results.append((answer.status_code, json_of(answer).get("policy")))
        return results

    with ThreadPoolExecutor(len(keys)) as pool:
        results = Counter(each for member in pool.map(work, keys) for each in member)
    assert set(results) == {(200, None), (429, "team-usd-day")}
    assert services_of(app).ledger.flush()
    now = datetime.now(UTC)
    spent = services_of(app).reports.settled_micro_usd(
        None, now - timedelta(hours=1), team="research"
    )
    assert 980_000 <= spent <= 1_000_000
    (budget,) = [
        limit for limit in usage_of(app, keys[0])["limits"] if limit["name"] == "team-usd-day"
    ]
    assert budget["remaining"] == pytest.approx(1 - spent / 1e6)


def test_calls_of_a_team_divide_its_budget(
    start: Callable[[], Flask], provider: UpstreamServer
) -> None:
    """A second member's answer is bounded by half of what the first one's call leaves, although the
    member's own budget pays more."""
    openai = import_module("openai")
    app = start()
    run(app, "teams", "create", "research", "--limit", "team-usd-day=2 usd/day")
    keys = [new_key(app, user, "--team", "research") for user in ("ada", "bob")]
    # 600 dollars per million tokens of output.
    asked: Any = {"model": "o1-pro", "messages": [{"role": "user", "content": "ping"}]}
    start_, word, *rest = openai_chunks(model="o1-pro")
    provider.script(Stream([start_, word, Wait(), *rest]))
    with serving(start()) as url:
        ada, bob = (openai.OpenAI(base_url=f"{url}/v1", api_key=key) for key in keys)
        with ada.chat.completions.create(stream=True, **asked) as stream:
            next(iter(stream))
            assert bob.chat.completions.create(**asked).choices
            provider.go_on()
            assert len(list(stream)) > 1
    alone, beside = (int(str(call.body["max_completion_tokens"])) for call in provider.calls)
    held = 1024  # tokens of an answer, until it is known
    assert beside == pytest.approx((alone - held) / 2, abs=3)  # and half of its prompt


BAD = {
    "an unknown limit": (
        ("amounts", "set", "user", "ada", "usd-dya", "20 usd/day"),
        "The plan pro has no limit 'usd-dya' that counts users; it has: ",
    ),
    "a misspelt limit": (
        ("amounts", "set", "user", "ada", "usd-dya", "20 usd/day"),
        "usd-day (60 usd/day), usd-month (500 usd/month). Did you mean usd-day?",
    ),
    "another period": (
        ("amounts", "set", "user", "ada", "usd-day", "20 usd/hour"),
        "usd-day: found '20 usd/hour' (a string); allowed: '60 usd/day' with another amount.",
    ),
    "no dollars": (
        ("amounts", "set", "user", "ada", "usd-day", "20/day"),
        "allowed: '60 usd/day' with another amount.",
    ),
    "a limit of teams": (
        ("amounts", "set", "user", "ada", "team-usd-day", "1 usd/day"),
        "no limit 'team-usd-day' that counts users",
    ),
    "a limit of users": (
        ("teams", "create", "sales", "--limit", "usd-day=1 usd/day"),
        "The policy has no limit 'usd-day' that counts teams; it has: team-usd-day (100 usd/day),",
    ),
    "a switch": (("amounts", "set", "user", "ada", "blocked-user", "unless blocked"), "no limit"),
    "an unknown user": (
        ("amounts", "set", "user", "zoe", "plan", "1/day"),
        "There is no user 'zoe'",
    ),
    "an unknown key": (("amounts", "set", "key", "0" * 16, "key", "1/minute"), "There is no key"),
    "an unknown team": (("users", "set", "ada", "--team", "sales"), "There is no team 'sales'"),
    "a team of an unknown user": (
        ("users", "set", "zoe", "--team", "research"),
        "There is no user 'zoe'",
    ),
    "a key for an unknown team": (
        ("keys", "create", "--user", "zoe", "--team", "sales"),
        "There is no team 'sales'. `chat teams list` lists the teams; `chat teams create` creates",
    ),
    "a key for another team": (
        ("keys", "create", "--user", "ada", "--team", "research"),
        "ada has no team; no key was created",
    ),
    "a team twice": (
        ("teams", "create", "research"),
        "'research' already exists. `set` changes it.",
    ),
    "no amount to clear": (
        ("amounts", "clear", "user", "ada", "plan"),
        "ada has no amount of 'plan'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_amount_changes_nothing(make_app: AppMaker, name: str) -> None:
    """One sentence that says what is allowed, and no status 0."""
    app = make_app()
    new_key(app, "ada", "--plan", "pro")
    run(app, "teams", "create", "research")
    before = [run(app, *words).output for words in (("users", "list"), ("teams", "list"))]
    words, sentence = BAD[name]
    refused = app.test_cli_runner().invoke(args=["chat", *words])
    assert refused.exit_code in {1, 2}
    assert sentence in refused.stderr
    assert [run(app, *each).output for each in (("users", "list"), ("teams", "list"))] == before
    assert run(app, "keys", "list").output.count("valid") == 1


def test_an_amount_needs_its_form(make_app: AppMaker) -> None:
    """Status 2, like any wrong argument."""
    refused = run(make_app(), "teams", "create", "sales", "--limit", "team-usd-day", status=2)
    assert "write it as team-usd-day='20 usd/day'" in refused.stderr


def test_without_teams_the_list_says_how_to_make_one(make_app: AppMaker) -> None:
    """On standard error: standard output stays empty for scripts."""
    for group in ("teams", "users"):
        shown = run(make_app(), group, "list")
        assert shown.stdout == ""
        assert "creates one" in shown.stderr
