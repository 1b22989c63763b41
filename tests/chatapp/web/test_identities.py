"""Whom a chat is charged to, by the packaged policy, over real requests."""

import re
import tomllib
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapp import POLICY_FILE
from tests.chatapp.conftest import AppMaker, json_of, policy_file
from tests.chatapp.upstream_server import UpstreamServer

ADDRESS = "198.51.100.7"


def ask(client: FlaskClient, *, ip: str = ADDRESS, **body: object) -> TestResponse:
    """Send one message from that address."""
    return client.post(
        "/chat", json={"message": "hi", **body}, environ_overrides={"REMOTE_ADDR": ip}
    )


def left(response: TestResponse) -> dict[str, int]:
    """What is left by limit, from the RateLimit header."""
    members = [member.split(";") for member in response.headers["RateLimit"].split(", ")]
    return {
        name.strip('"'): int(dict(p.split("=") for p in parameters)["r"])
        for name, *parameters in members
    }


def test_ten_pass_at_once_and_the_eleventh_waits(client: FlaskClient) -> None:
    """A user's burst is 10. The denial names the limit and has the exact wait."""
    responses = [ask(client, user_id="test-user-1") for _ in range(15)]
    assert [response.status_code for response in responses] == [200] * 10 + [429] * 5
    denied = responses[10]
    assert json_of(denied)["code"] == "rate_limited"
    assert denied.json["policy"] == "user"
    assert 0 < denied.json["retry_after"] <= 2
    assert denied.headers["Retry-After"] in {"1", "2"}
    assert 0 < int(denied.headers["retry-after-ms"]) <= 2000
    assert denied.headers["Cache-Control"] == "no-store"


def test_every_answer_shows_what_is_left_of_each_limit(client: FlaskClient) -> None:
    """Edge, user, model and plan, with its calls, tokens, calls in flight and dollars, in one
    header."""
    remaining = left(ask(client, user_id="u"))
    assert 198_000 < remaining.pop("tokens") < 200_000
    assert remaining == {
        "ip": 19,
        "user": 9,
        "model": 2999,
        "plan": 99,
        "at-once": 3,
        "address-at-once": 31,
        "usd-hour": 2_000_000,
        "usd-day": 5_000_000,
        "usd-month": 30_000_000,
    }


def test_users_have_separate_limits(client: FlaskClient) -> None:
    """One user's burst does not affect another at the same address."""
    for _ in range(5):
        ask(client, user_id="alice")
    assert left(ask(client, user_id="bob"))["user"] == 9


def test_a_user_has_the_same_limits_at_any_address(client: FlaskClient) -> None:
    """A user with a name is not counted by address."""
    ask(client, user_id="alice", ip="203.0.113.1")
    assert left(ask(client, user_id="alice", ip="203.0.113.2"))["user"] == 8


def test_without_a_name_the_address_pays(client: FlaskClient) -> None:
    """An IPv6 subscriber counts as one /64."""
    ask(client, ip="2001:db8::1")
    assert left(ask(client, ip="2001:db8::2"))["user"] == 8
    assert left(ask(client, ip="2001:db8:0:1::1"))["user"] == 9


def test_a_user_id_like_an_address_is_no_address(client: FlaskClient) -> None:
    """Also if it looks like the internal name of one."""
    ask(client)
    for user_id in (ADDRESS, f"ip:{ADDRESS}", f"user:{ADDRESS}"):
        assert left(ask(client, user_id=user_id))["user"] == 9
    assert left(ask(client))["user"] == 8


def test_all_names_of_a_model_share_its_limit(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """An alias, a date or an invented name gets no new limit."""
    assert left(ask(online, model="gpt-4o"))["model"] == 2999
    assert left(ask(online, model="gpt-4o-2024-08-06"))["model"] == 2998
    assert left(ask(online, model="gpt-invented-1"))["model"] == 2999
    assert left(ask(online, model="gpt-invented-2"))["model"] == 2998


BAD_BODIES: list[dict[str, object]] = [
    {"data": b"nonsense"},
    {"json": [1]},
    {"json": {"message": "", "user_id": "alice"}},
    {"json": {"message": "a" * 40_000, "user_id": "alice"}},
    {"json": {"message": "hi", "user_id": "alice", "model": "llama"}},
    {"json": {"message": "hi", "user_id": "alice", "model": "gpt-4o"}},
    {"json": {"message": "\x00", "user_id": "alice"}},
]


def test_an_invalid_body_is_charged_to_the_edge_only(client: FlaskClient) -> None:
    """No user, plan or model is charged."""
    ask(client, user_id="alice", ip="203.0.113.1")
    for bad in BAD_BODIES:
        response = client.post("/chat", environ_overrides={"REMOTE_ADDR": ADDRESS}, **bad)
        assert response.status_code in {400, 413, 422}
    after = left(ask(client, user_id="alice"))
    assert after["ip"] <= 20 - len(BAD_BODIES) - 1 + 2  # it refills by two a second
    assert after["user"] >= 8
    assert (after["plan"], after["model"]) == (98, 2998)


def test_invented_users_are_limited_by_address(client: FlaskClient) -> None:
    """A new user_id in each call does not get past the address's burst."""
    statuses = [ask(client, user_id=f"invented-{i}").status_code for i in range(40)]
    assert statuses.count(429) >= 15
    assert statuses[:20] == [200] * 20


@pytest.mark.usefixtures("stopped_clock")
def test_a_denial_names_the_plan_and_the_next(make_app: AppMaker, tmp_path: Path) -> None:
    """It says what another plan would allow, with its price where the operator has set one. The
    shipped plans have none."""
    # The shipped plans, behind paces that a test need not wait for.
    shipped = POLICY_FILE.read_text("utf-8")
    plans = tomllib.loads(shipped)["plans"].values()
    assert not any({"price", "upgrade_url"} & plan.keys() for plan in plans)
    text = re.sub(r"^burst = \d+$", "burst = 1000", shipped, flags=re.MULTILINE)
    text = re.sub("^# (price|upgrade_url) =", r"\1 =", text, flags=re.MULTILINE)
    client = make_app(RATELIMIT_POLICY_FILE=policy_file(tmp_path, text)).test_client()
    responses = [ask(client, user_id="alice") for _ in range(101)]
    assert [response.status_code for response in responses] == [200] * 100 + [429]
    denied = responses[-1]
    assert "Starter plan" in json_of(denied)["error"]
    assert "100 calls a day" in denied.json["error"]
    assert (
        "Upgrade to Pro for 2,000 calls a day, from $29 a month: https://" in denied.json["error"]
    )
    assert denied.headers["x-should-retry"] == "false"
    assert int(denied.headers["Retry-After"]) > 86_000
    assert ask(client, user_id="bob").status_code == 200


@pytest.mark.parametrize(("plans", "plan"), [({}, 99), ({"alice": "pro"}, 1999)])
def test_a_plan_is_the_starter_unless_it_is_set(
    make_app: AppMaker, plans: dict[str, str], plan: int
) -> None:
    """CHATAPP_PLANS sets other plans for single users."""
    client = make_app(CHATAPP_PLANS=plans).test_client()
    assert left(ask(client, user_id="alice"))["plan"] == plan
    assert left(ask(client, user_id="bob"))["plan"] == 99
    assert left(ask(client))["plan"] == 99


@pytest.mark.parametrize(
    ("hops", "forwarded", "same"),
    [
        (0, "203.0.113.9", True),  # no hop is trusted: all are one address
        (1, "203.0.113.9", False),  # the proxy in front is believed
        (1, "203.0.113.9, 198.51.100.1", True),  # only for the hop it added itself
        (2, "203.0.113.9, 198.51.100.1", False),
    ],
)
def test_forwarded_addresses_count_over_trusted_hops_only(
    make_app: AppMaker, hops: int, forwarded: str, same: bool
) -> None:
    """A client that sends X-Forwarded-For itself gains nothing."""
    client = make_app(CHATAPP_TRUSTED_HOPS=hops).test_client()

    def through(header: str) -> TestResponse:
        return client.post(
            "/chat",
            json={"message": "hi"},
            headers={"X-Forwarded-For": header},
            environ_overrides={"REMOTE_ADDR": "198.51.100.200"},
        )

    through(forwarded.replace("203.0.113.9", "203.0.113.1"))
    assert left(through(forwarded))["user"] == (8 if same else 9)
