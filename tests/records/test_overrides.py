"""Amounts of single callers, in place of those in the policy."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, request

from ratelimit_ext import ConfigurationError, Limiter
from ratelimit_ext.web.request.resolver import MOST_VARIANTS
from tests.servers import Server
from tests.web.conftest import asked_key

POLICY = """
version = 1

[blueprints.chat]
plans = true

[[blueprints.chat.limits]]
name = "pace"
limit = "30/minute"
burst = 3
strategy = "token-bucket"
key = "caller"

[[blueprints.chat.limits]]
name = "budget"
limit = "1 usd/month"
anchor = "month"
cost = 0.25
key = "caller"
optional = true

[plans.free]

[[plans.free.limits]]
name = "plan"
limit = "2/day"
strategy = "sliding-window"
key = "caller"
"""


class Caller:
    """Calls of the application's one view, by callers with amounts of their own."""

    def __init__(self, file: Path, text: str, uri: str = "memory://") -> None:
        file.write_text(text)
        self.own: dict[str, dict[str, str]] = {}
        self.app = Flask("example")
        self.app.config["RATELIMIT_POLICY_FILE"] = str(file)
        self.limiter = Limiter(asked_key, storage_uri=uri, headers_enabled=True)
        self.limiter.identity("caller")(asked_key)
        self.limiter.plan_loader(lambda: "free")
        self.limiter.amount_loader(lambda: self.own.get(asked_key()))  # None: as if empty
        blueprint = Blueprint("chat", "chat")
        blueprint.add_url_rule("/", "one", lambda: "ok")
        self.app.register_blueprint(blueprint)
        self.limiter.init_app(self.app)
        self._client = self.app.test_client()

    def get(self, key: str) -> Any:
        return self._client.get("/", headers={"X-Key": key})

    def left(self, key: str) -> dict[str, int]:
        """What remains of each limit after a call."""
        header = self.get(key).headers["RateLimit"]
        return {name: int(rest) for name, rest in re.findall(r'"([^"]*)";r=(\d+)', header)}


@pytest.fixture(params=["memory", "redis"])
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Caller:
    """On each kind of storage."""
    if request.param == "memory":
        return Caller(tmp_path / "policy.toml", POLICY)
    request.getfixturevalue("redis_client")
    server: Server = request.getfixturevalue("redis_server")
    return Caller(tmp_path / "policy.toml", POLICY, server.uri)


def test_an_amount_replaces_the_plans_and_keeps_usage(caller: Caller) -> None:
    """Of one caller, from the next request on; the others have the plan's."""
    assert caller.left("ann") == {"pace": 2, "plan": 1}
    caller.own["ann"] = {"plan": "10/day"}
    assert caller.left("ann") == {"pace": 1, "plan": 8}
    assert caller.left("bob") == {"pace": 2, "plan": 1}
    caller.own["ann"] = {"plan": "1/day"}
    refusal = caller.get("ann")
    assert (refusal.status_code, refusal.json["policy"]) == (429, "plan")
    assert refusal.json["limit"] == "1 per 1 day"
    assert refusal.json["error"].startswith("Your own limit of 1 call a day is used up. Try again")
    assert '"plan";q=1;w=86400' in refusal.headers["RateLimit-Policy"]


def test_an_optional_limit_needs_an_amount(caller: Caller) -> None:
    """It is charged to callers who have one, by their amount, and to no others."""
    caller.own["ann"] = {"budget": "0.3 usd/month", "plan": "100/day"}
    assert caller.left("ann")["budget"] == 50_000
    refusal = caller.get("ann")
    assert (refusal.status_code, refusal.json["code"]) == (429, "insufficient_quota")
    assert refusal.json["policy"] == "budget"
    assert "budget" not in caller.left("bob")


def test_an_optional_limit_replaces_no_default(tmp_path: Path) -> None:
    """Callers without an amount would have no limit at all."""
    rest = POLICY.partition("[blueprints.chat]")[2].partition("[plans.free]")[0]
    only = "[[blueprints.chat.limits]]" + rest.split("[[blueprints.chat.limits]]")[2]
    default = '[[default]]\nname = "usual"\nlimit = "1/minute"\nkey = "caller"\n'
    caller = Caller(tmp_path / "policy.toml", f"version = 1\n{default}{only}")
    caller.own["ann"] = {"budget": "9 usd/month"}
    assert set(caller.left("ann")) == {"usual", "budget"}
    assert [caller.get("bob").status_code for _ in range(2)] == [200, 429]


def test_callers_with_amounts_of_their_own_are_not_confused(tmp_path: Path) -> None:
    """More combinations than are kept prepared."""
    caller = Caller(tmp_path / "policy.toml", POLICY)
    callers = range(MOST_VARIANTS + 20)
    for number in callers:
        caller.own[f"c{number}"] = {"plan": f"{number + 1}/day"}
    for taken in (1, 2):
        for number in callers:
            answer = caller.get(f"c{number}")
            expected = 200 if number + 1 >= taken else 429
            assert answer.status_code == expected
            assert f'"plan";r={max(0, number + 1 - taken)}' in answer.headers["RateLimit"]


INVALID = {
    "another period": "10/hour",
    "another unit": "10 usd/day",
    "two limits": "10/day;1/second",
    "a guard": "unless blocked",
    "no limit": "plenty",
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_amount_leaves_the_policys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """As after a change of the policy; logged once."""
    caller = Caller(tmp_path / "policy.toml", POLICY)
    caller.own["ann"] = {"plan": INVALID[name], "budget": INVALID[name].replace("usd", "")}
    with caplog.at_level(logging.ERROR):
        assert caller.left("ann") == {"pace": 2, "plan": 1, "budget": 750_000}
        caller.left("ann")
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert logged.count("A caller's amount") == 2
    assert all(f"found {text!r}" in logged for text in caller.own["ann"].values())


def test_an_amount_below_the_cost_of_every_call_leaves_the_policys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller could not make a single call; 0 says that this is meant."""
    text = POLICY.replace("burst = 3\n", "").replace('name = "pace"\n', 'name = "pace"\ncost = 3\n')
    caller = Caller(tmp_path / "policy.toml", text)
    caller.own["ann"], caller.own["bob"] = {"pace": "2/minute"}, {"pace": "0/minute"}
    assert caller.get("ann").status_code == 200
    assert "found 2 requests, but each call costs 3" in caplog.text
    assert caller.get("bob").json["limit"] == "0 per 1 minute"


def test_a_limit_keeps_everything_but_its_amount(tmp_path: Path) -> None:
    """Burst, strategy and a message of the policy."""
    text = POLICY.replace("burst = 3\n", 'burst = 3\nerror_message = "Slowly!"\n')
    caller = Caller(tmp_path / "policy.toml", text)
    caller.own["ann"] = {"pace": "1/minute", "plan": "100/day"}
    assert [caller.get("ann").status_code for _ in range(4)] == [200] * 3 + [429]
    refusal = caller.get("ann")
    assert refusal.json["error"].startswith("Slowly!")
    assert refusal.json["limit"] == "1 per 1 minute, 3 at once"
    assert refusal.json["retry_after"] > 50


def test_what_is_left_is_shown_with_the_own_amount(tmp_path: Path) -> None:
    """By `peek`, which charges nothing; optional limits of the caller are listed."""
    caller = Caller(tmp_path / "policy.toml", POLICY)
    caller.own["ann"] = {"plan": "7/day", "budget": "3 usd/month"}
    for key, shown in (
        ("ann", {"plan": 7, "pace": 3, "budget": 3}),
        ("bob", {"plan": 2, "pace": 3}),
    ):
        with caller.app.test_request_context(headers={"X-Key": key}):
            left = caller.limiter.current.peek("chat.one")
        assert {each.verdict.charge.limit.name: each.remaining for each in left} == shown


def test_an_optional_limit_needs_a_loader(tmp_path: Path) -> None:
    """Otherwise it would never apply."""
    file = tmp_path / "policy.toml"
    file.write_text(POLICY.replace("caller", "ip"))
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    limiter = Limiter(asked_key, storage_uri="memory://")
    limiter.plan_loader(lambda: "free")
    with pytest.raises(ConfigurationError, match=r"policy.toml:20: .*@limiter.amount_loader"):
        limiter.init_app(app)


def test_a_request_that_reaches_no_view_asks_no_more_than_it_can(tmp_path: Path) -> None:
    """The loader may read what such a request lacks."""
    caller = Caller(tmp_path / "policy.toml", POLICY + '[[application]]\nlimit = "9/minute"\n')
    caller.limiter.amount_loader(lambda: {"plan": request.headers["X-Amount"]})
    answer = caller.app.test_client().get("/nowhere")
    assert answer.status_code == 404
    assert answer.headers["RateLimit"].startswith('"9-per-60s";r=8')


def test_the_amounts_that_a_caller_may_have_are_listed(tmp_path: Path) -> None:
    """Those with a name that count the identity; of plans, those of one plan."""
    caller = Caller(tmp_path / "policy.toml", POLICY)
    policy = caller.limiter.policy(caller.app)
    assert policy is not None
    assert sorted(policy.adjustable(key="caller", plan="free")) == ["budget", "pace", "plan"]
    assert sorted(policy.adjustable(key="caller")) == ["budget", "pace"]
    assert policy.adjustable(key="ip") == {}
    plan = policy.adjustable(key="caller", plan="free")["plan"]
    plan.check_amount("7/day")
    with pytest.raises(ConfigurationError, match="allowed: '2/day' with another amount"):
        plan.check_amount("7/hour")
    with pytest.raises(ConfigurationError, match="found 2 requests, but each call costs 3"):
        replace(plan, cost=3).check_amount("2/day")
    assert caller.limiter.policy(Flask("other")) is None
