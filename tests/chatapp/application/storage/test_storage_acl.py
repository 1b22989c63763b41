"""Serving needs only those commands of Redis or Valkey that docs/operate/topology.md names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from flask import Flask, request

from chatapp.accounts.store import Accounts
from chatapp.services import services_of
from ratelimit_ext import Limiter
from tests import servers
from tests.chatapp.application.bad_input.test_bad_input import BODIES, PATHS
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.blueprints.test_admin import VIEWS, log_in, send
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import UpstreamServer

TOPOLOGY = Path(__file__).parents[4] / "docs" / "operate" / "topology.md"
USER, PASSWORD = "chatapp", "secret"


def rules(*, resets: bool) -> list[str]:
    """The rules of the ACL user in the document; ``resets``: with those that resets need."""
    text = TOPOLOGY.read_text("utf-8")
    serving = re.search(r"ACL SETUSER chatapp (.*?)```", text, re.DOTALL)
    more = re.search(r"reset\(\)` also needs `(.*)`", text)
    assert serving is not None
    assert more is not None
    return [*serving[1].replace("\\\n", " ").split(), *(more[1].split() if resets else ())]


def rules_of_operators() -> list[str]:
    """What `flask ratelimit` and /admin need besides."""
    more = re.search(r"/admin`\]\(admin.md\) also need `(.*?)`", TOPOLOGY.read_text(), re.DOTALL)
    assert more is not None
    return more[1].split()


def rules_of_clusters() -> list[str]:
    """What a user of a cluster needs, reset by an operator included."""
    more = re.search(r"cluster also needs `(.*?)`", TOPOLOGY.read_text("utf-8"))
    assert more is not None
    return [*rules(resets=True), *more[1].split()]


def refused(client: redis.Redis) -> list[tuple[str, str]]:
    """The commands that the server has refused since the last call."""
    entries = [(entry["reason"], entry["object"]) for entry in client.acl_log()]
    client.acl_log_reset()
    return entries


@pytest.fixture
def admin(redis_server: servers.Server) -> Iterator[redis.Redis]:
    with redis_server.client(decode_responses=True) as client:
        client.flushall()
        client.script_flush()
        client.acl_log_reset()
        yield client
        client.acl_deluser(USER)


@pytest.fixture
def make(admin: redis.Redis, redis_server: servers.Server, make_app: AppMaker) -> AppMaker:
    """Makes an application whose storage user has these rules."""

    def make(*, resets: bool = False, operators: bool = False, **config: object) -> Flask:
        needed = rules(resets=resets) + (rules_of_operators() if operators else [])
        stated = [rule.replace("PASSWORD", PASSWORD) for rule in needed]
        admin.execute_command("ACL SETUSER", USER, "reset", *stated)
        uri = f"redis://{USER}:{PASSWORD}@127.0.0.1:{redis_server.port}"
        return make_app(RATELIMIT_STORAGE_URI=uri, **config)

    return make


@pytest.mark.parametrize("path", PATHS)
def test_serving_needs_no_other_command(
    make: AppMaker, admin: redis.Redis, provider: UpstreamServer, path: str
) -> None:
    """Calls, streams, renewals, refunds, usage, estimates and the readiness probe."""
    app = make(RATELIMIT_LEASE_SECONDS=0.001)
    client = app.test_client()
    for stream in (False, True):
        assert client.post(path, json={**BODIES[path], "stream": stream}).status_code == 200
    provider.script()
    assert client.post(path, json={}).status_code in {400, 422}
    assert client.get("/usage").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert refused(admin) == []
    assert len(admin.keys("LIMITS:*")) > 5
    assert admin.keys("chatapp:*") == []


def test_switches_need_no_other_command(make: AppMaker, admin: redis.Redis) -> None:
    """A block and its end are script calls, and so is the record of denials."""
    app = make()
    limiter: Limiter = services_of(app).limiter
    with app.app_context():
        assert limiter.operators.block("blocked-all", "*", for_s=60)
        asked = {"message": "hi", "model": "offline"}
        assert app.test_client().post("/chat", json=asked).status_code == 429
        assert limiter.operators.unblock("blocked-all", "*")
    assert app.test_client().post("/chat", json=asked).status_code == 200
    limiter._components.recorder.flush()
    assert len(admin.keys("LIMITS:denials:*")) == 1
    assert refused(admin) == []


def test_the_admin_page_needs_no_other_command(
    make: AppMaker, admin: redis.Redis, accounts: Accounts
) -> None:
    """Each view, with denials, counts and blocks to show, and each change."""
    accounts.create_team("research")
    key = accounts.create_key("alice", plan=None, default_plan="starter")
    app = make(operators=True, CHATAPP_ADMIN_TOKEN=TOKEN)
    limiter: Limiter = services_of(app).limiter
    limiter.request_filter(lambda: request.path.startswith("/admin"))
    client = app.test_client()
    log_in(client)
    user = {"user": "alice", "kind": "user", "name": "alice"}
    amount = {"owner": "user", "name": "alice", "limit": "plan", "amount": "1/day"}
    for act, fields in (
        *(("put_user", {**user, "plan": "pro"}), ("put_amount", amount), ("block", user)),
        *(("unblock", user), ("put_amount", {**amount, "until": "2h"}), ("clear_amount", amount)),
        *(("create_key", {**user, "name": "ci"}), ("put_amount", amount)),
        *(("block_all", {}), ("unblock_all", {})),
    ):
        assert send(client, act, **fields).status_code == 200
    asked, headers = {"message": "hi", "model": "offline"}, {"Authorization": f"Bearer {key.text}"}
    limiter._components.overrides.refresh()
    statuses = [client.post("/chat", json=asked, headers=headers).status_code for _ in range(2)]
    assert statuses == [200, 429]
    limiter._components.recorder.flush()
    for view in VIEWS:
        assert client.get(view).status_code == (404 if "id=none" in view else 200)
    assert "1 used" in client.get("/admin/denials").text
    assert ">1</dd>" in client.get("/admin/live").text
    assert refused(admin) == []


def test_a_serving_user_cannot_clear_limits_and_an_operator_can(
    make: AppMaker, admin: redis.Redis
) -> None:
    """Only commands look for keys or delete by pattern."""
    limiter: Limiter = services_of(make()).limiter
    with pytest.raises(Exception, match="scan"):
        limiter._components.engines.primary.reset("LIMITS:")
    assert [each for _, each in refused(admin)] == ["scan"]
    operator: Limiter = services_of(make(resets=True)).limiter
    operator._components.engines.primary.reset("LIMITS:")
    assert refused(admin) == []


@pytest.mark.parametrize("path", PATHS[:1])
def test_a_cluster_needs_no_other_command(
    make_app: AppMaker, cluster_server: servers.Cluster, provider: UpstreamServer, path: str
) -> None:
    """Calls, streams, refunds, usage, estimates, switches, the readiness probe and a reset, with
    the limits of each identity on a node of its own."""
    stated = [rule.replace("PASSWORD", PASSWORD) for rule in rules_of_clusters()]
    for node in cluster_server.nodes:
        with node.client() as admin:
            admin.flushall()
            admin.acl_log_reset()
            admin.execute_command("ACL SETUSER", USER, "reset", *stated)
    uri = cluster_server.uri.replace("://", f"://{USER}:{PASSWORD}@")
    app = make_app(RATELIMIT_STORAGE_URI=uri, RATELIMIT_DEADLINE_SECONDS=1)
    client, limiter = app.test_client(), services_of(app).limiter
    for stream in (False, True):
        assert client.post(path, json={**BODIES[path], "stream": stream}).status_code == 200
    provider.script()
    assert client.post(path, json={}).status_code in {400, 422}
    assert client.get("/usage").status_code == 200
    assert client.get("/readyz").status_code == 200
    with app.app_context():
        assert limiter.operators.block("blocked-all", "*", for_s=60)
        assert client.post(path, json=BODIES[path]).status_code in {403, 429}
        assert limiter.operators.unblock("blocked-all", "*")
    limiter._components.recorder.flush()
    names = [name for node in cluster_server.nodes for name in node.client().keys("LIMITS:*")]
    assert b"LIMITS:denials:{operators}" in names
    assert limiter._components.engines.primary.reset("LIMITS:") > 5
    for node in cluster_server.nodes:
        with node.client(decode_responses=True) as admin:
            assert refused(admin) == []
            assert admin.keys("LIMITS:*") == []
