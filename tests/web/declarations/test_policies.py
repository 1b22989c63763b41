"""The limits of a policy, in an application."""

import re
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, g, request

from ratelimit_ext import ConfigurationError, ExemptionScope, Limiter, RequestTooLarge
from ratelimit_ext.web.storage import Engines
from tests.clocks import Clock
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key, root


def chat(*endpoints: str, name: str = "chat") -> Blueprint:
    """A blueprint with these endpoints."""
    blueprint = Blueprint(name, name, url_prefix=f"/{name}")
    for endpoint in endpoints:
        blueprint.add_url_rule(f"/{endpoint}", endpoint, root, methods=["GET", "POST"])
    return blueprint


def nested(outer: str) -> Blueprint:
    """A blueprint with the blueprint `chat` and its endpoint `one` in it."""
    blueprint = Blueprint(outer, outer, url_prefix=f"/{outer}")
    blueprint.register_blueprint(chat("one"))
    return blueprint


def policy(tmp_path: Path, text: str) -> dict[str, str]:
    """The configuration for a policy file with this text."""
    file = tmp_path / "policy.toml"
    file.write_text(f"version = 1\n{text}")
    return {"RATELIMIT_POLICY_FILE": str(file)}


def left(app: Flask, path: str, **options: Any) -> dict[str, int]:
    """What remains of each limit after a call, by its name."""
    header = app.test_client().open(path, **options).headers["RateLimit"]
    return {name: int(rest) for name, rest in re.findall(r'"([^"]*)";r=(\d+)', header)}


# -- RATELIMIT_BLUEPRINTS --------------------------------------------------------------------------


def test_a_blueprint_gets_its_limits_from_app_config(make: Maker) -> None:
    """Without a decorator; one bucket for all its views."""
    app, _ = make(config={"RATELIMIT_BLUEPRINTS": {"chat": ["2/minute"]}})
    app.register_blueprint(chat("one", "two"))
    app.get("/")(root)
    assert statuses(app, "/chat/one", 2) + statuses(app, "/chat/two") == [200, 200, 429]
    assert statuses(app, times=3) == [200] * 3


def test_an_endpoint_gets_its_limits_from_app_config(make: Maker) -> None:
    """Other views of the blueprint are not limited."""
    app, _ = make(config={"RATELIMIT_BLUEPRINTS": {"chat.one": ["1/minute"], "root": ["2/hour"]}})
    app.register_blueprint(chat("one", "two"))
    app.get("/")(root)
    assert statuses(app, "/chat/one", 2) == [200, 429]
    assert statuses(app, "/chat/two", 3) == [200] * 3
    assert statuses(app, times=3) == [200, 200, 429]


def test_every_keyword_of_a_limit_can_be_configured(make: Maker, clock: Clock) -> None:
    """As at the decorator, including functions."""
    breaches = []
    limit = {
        "limit": "30/minute",
        "strategy": "token-bucket",
        "burst": 2,
        "name": "pace",
        "key": lambda: request.headers["X-Tenant"],
        "cost": lambda: int(request.args.get("cost", "1")),
        "methods": ["POST"],
        "error_message": "One at a time!",
        "exempt_when": lambda: "X-Internal" in request.headers,
        "on_breach": lambda breached: breaches.append(str(breached.limit)),
    }
    app, _ = make(config={"RATELIMIT_BLUEPRINTS": {"chat": [limit]}})
    app.register_blueprint(chat("one"))
    client = app.test_client()

    def post(cost: int = 1, **headers: str) -> Any:
        return client.post(f"/chat/one?cost={cost}", headers={"X-Tenant": "a", **headers})

    assert client.get("/chat/one").headers.get("RateLimit") is None
    response = post()
    assert response.headers["RateLimit-Policy"] == '"pace";q=2;w=4'
    refusal = post(2)
    assert refusal.status_code == 429
    assert refusal.json["error"].startswith("One at a time!")
    assert refusal.json["policy"] == "pace"
    assert breaches == ["30 per 1 minute"]
    assert post(2, **{"X-Tenant": "b"}).status_code == 200
    assert post(2, **{"X-Internal": "yes"}).status_code == 200
    assert post(3).json["code"] == "request_too_large"


@pytest.mark.parametrize("cost", ["0.1", '"0.1"', '"0.10"'])
def test_a_file_states_a_cost_in_dollars(make: Maker, tmp_path: Path, cost: str) -> None:
    """Exactly, with or without quotes."""
    app, _ = make(
        config=policy(
            tmp_path,
            f"""
            [[blueprints.chat.limits]]
            limit = "0.3 usd/day"
            cost = {cost}
            """,
        )
    )
    app.register_blueprint(chat("one"))
    assert statuses(app, "/chat/one", 4) == [200, 200, 200, 429]


def test_limits_of_a_policy_are_decided_after_before_request(make: Maker) -> None:
    """So that they know the user."""
    limit = {"limit": "1/minute", "key": "user"}
    app, _ = make(config={"RATELIMIT_BLUEPRINTS": {"chat": [limit]}})
    app.register_blueprint(chat("one"))

    @app.before_request
    def log_in() -> None:
        g.user_id = request.headers["X-User"]

    for user in ("ada", "eve"):
        assert statuses(app, "/chat/one", 2, headers={"X-User": user}) == [200, 429]


def test_an_identity_can_be_registered(make: Maker) -> None:
    """By name, before `init_app`."""
    limiter = Limiter(asked_key, storage_uri="memory://")

    @limiter.identity("tenant")
    def tenant() -> str:
        return request.headers["X-Tenant"]

    app = Flask("example")
    app.config["RATELIMIT_BLUEPRINTS"] = {"chat": [{"limit": "1/minute", "key": "tenant"}]}
    limiter.init_app(app)
    app.register_blueprint(chat("one"))
    for name in ("a", "b"):
        assert statuses(app, "/chat/one", 2, headers={"X-Tenant": name}) == [200, 429]
    assert tenant.__name__ == "tenant"


UNKNOWN_NAMES = """
[blueprints.chta]
limits = ["1/minute"]
[blueprints.chat.routes.oen]
limits = ["1/minute"]
[groups.calls]
members = [
    "chat",
    "chat.tow",
]
limits = ["2/minute"]
"""


def test_unknown_names_are_an_error_of_check_policy(make: Maker, tmp_path: Path) -> None:
    """All of them in one error, each with its line and what was probably meant."""
    app, limiter = make(config=policy(tmp_path, UNKNOWN_NAMES))
    app.register_blueprint(chat("one", "two"))
    with pytest.raises(ConfigurationError) as raised:
        limiter.check_policy(app)
    count, *lines = str(raised.value).split("\n")
    assert count.startswith("3 mistakes")
    for line, number, name, meant in zip(
        lines,
        (3, 5, 10),
        ("blueprint 'chta'", "endpoint 'chat.oen'", "blueprint or endpoint 'chat.tow'"),
        ("chat", "chat.one", "chat.two"),
        strict=True,
    ):
        assert f"policy.toml:{number}: " in line
        assert name in line
        assert line.endswith(f"Did you mean {meant!r}?")


def test_without_check_policy_unknown_names_are_logged(
    make: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, at the first request; all other limits apply. An error would be an outage."""
    app, _ = make(config=policy(tmp_path, UNKNOWN_NAMES))
    app.register_blueprint(chat("one", "two"))
    assert statuses(app, "/chat/one", 3) == [200, 200, 429]
    assert statuses(app, "/chat/two", 1) == [429]  # the group's allowance is one
    [logged] = [r.getMessage() for r in caplog.records if r.name == app.logger.name]
    assert "3 mistakes" in logged
    assert "all other limits apply" in logged


def test_a_file_can_be_checked_without_being_applied(make: Maker, tmp_path: Path) -> None:
    """All kinds of mistakes in one error, in the order of lines."""
    app, limiter = make()
    app.register_blueprint(chat("one", "two"))
    file = tmp_path / "policy.toml"
    mistaken = """
        [blueprints.chta]
        limits = ["1/dya"]
        [blueprints.caht]
        limits = ["1/day", { name = "x", limit = "1/hour", key = "usr" }]
        [groups.calls]
        members = ["chat"]
        plans = true
        [plans.starter]
        limits = [{ name = "plan", limit = "1/day" }]
    """
    file.write_text("version = 1\n" + mistaken)
    with app.app_context(), pytest.raises(ConfigurationError) as raised:
        limiter.operators.check_policy_file(file)
    found = ["'1/dya'", "no blueprint 'caht'", "no identity 'usr'", "@limiter.plan_loader"]
    count, *lines = str(raised.value).split("\n")
    assert count.startswith("4 mistakes")
    for line, words in zip(lines, found, strict=True):
        assert words in line
    file.write_text('version = 1\n[blueprints.chat]\nlimits = ["1/day"]')
    with app.app_context():
        assert len(limiter.operators.check_policy_file(file).all_limits()) == 1
    assert statuses(app, "/chat/one", 3) == [200] * 3


# -- RATELIMIT_POLICY_FILE -------------------------------------------------------------------------


def test_a_file_limits_application_blueprints_and_routes(
    make: Maker, tmp_path: Path, clock: Clock
) -> None:
    """All apply to one request."""
    text = """
        [[application]]
        name = "ip"
        limit = "100/minute"
        key = "ip"

        [[default]]
        limit = "7/minute"

        [blueprints.chat]
        limits = [{ limit = "30/minute", strategy = "token-bucket", burst = 3, name = "pace" }]

        [blueprints.chat.routes.two]
        limits = ["1/minute"]
    """
    app, _ = make(config=policy(tmp_path, text))
    app.register_blueprint(chat("one", "two"))
    app.get("/")(root)
    client = app.test_client()
    assert client.get("/chat/one").headers["RateLimit"] == ('"pace";r=2;t=2, "ip";r=99;t=60')
    assert client.get("/").headers["RateLimit"] == '"ip";r=98;t=60, "7-per-60s";r=6;t=60'
    assert statuses(client, "/chat/two", 2) == [200, 429]


def test_a_file_and_app_config_apply_together(make: Maker, tmp_path: Path) -> None:
    """Neither replaces the other."""
    config = policy(tmp_path, '[blueprints.chat]\nlimits = ["5/minute"]')
    config["RATELIMIT_BLUEPRINTS"] = {"chat": ["2/hour"]}  # type: ignore[assignment]
    app, _ = make(config=config)
    app.register_blueprint(chat("one"))
    assert statuses(app, "/chat/one", 3) == [200, 200, 429]


def test_a_file_can_be_simulated_in_place_of_the_configured_one(
    make: Maker, tmp_path: Path
) -> None:
    """Also in an application that the extension was attached to twice."""
    limit = '[[application]]\nname = "{0}"\nlimit = "{0}/minute"\nkey = "ip"\n'
    app, limiter = make(config=policy(tmp_path, limit.format(1)))
    other = tmp_path / "other.toml"
    other.write_text("version = 1\n" + limit.format(2))
    for _ in range(2):
        with app.app_context():
            manager = limiter.operators.resolver(other).manager
        assert [str(each.limit) for each in manager.application_limits] == ["2 per 1 minute"]
        limiter.init_app(app)


def test_a_nested_blueprint_has_its_whole_name(make: Maker, tmp_path: Path) -> None:
    """The last part alone is ambiguous."""
    app, limiter = make(config=policy(tmp_path, '[blueprints.chat]\nlimits = ["5/minute"]'))
    app.register_blueprint(nested("v1"))
    with pytest.raises(ConfigurationError, match=r"no blueprint 'chat'; .*'v1\.chat'\."):
        limiter.check_policy(app)


def test_nested_blueprints_of_one_name_are_different(make: Maker, tmp_path: Path) -> None:
    """Each has its limits and not those of the other."""
    text = """
        [blueprints."v1.chat"]
        limits = ["1/minute"]
        [blueprints."v2.chat"]
        limits = ["2/minute"]
    """
    app, _ = make(config=policy(tmp_path, text))
    for blueprint in (nested("v1"), nested("v2"), nested("v3"), chat("one")):
        app.register_blueprint(blueprint)
    for path, admitted in {"/v1/chat": 1, "/v2/chat": 2, "/v3/chat": 4, "/chat": 4}.items():
        assert statuses(app, f"{path}/one", 4).count(200) == admitted


def test_a_blueprint_can_be_registered_under_another_name(make: Maker, tmp_path: Path) -> None:
    """The policy uses the `name=` of the registration."""
    app, _ = make(config=policy(tmp_path, '[blueprints.talk]\nlimits = ["1/minute"]'))
    app.register_blueprint(chat("one"), name="talk", url_prefix="/talk")
    app.register_blueprint(chat("one"))
    assert statuses(app, "/talk/one", 2) == [200, 429]
    assert statuses(app, "/chat/one", 2) == [200, 200]


# -- beside decorators -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "applied"),
    [(True, {"own", "view"}), (False, {"own", "view", "user"}), (None, {"own", "view", "user"})],
    ids=["alone", "joining", "by default"],
)
def test_a_decorator_replaces_the_blueprints_limits_only_in_words(
    make: Maker, tmp_path: Path, overrides: bool | None, applied: set[str]
) -> None:
    """`override_defaults=True` leaves out what the file says of the blueprint, and never what it
    says of the view. By default they add up."""
    text = """
        [groups.calls]
        members = ["chat"]
        limits = [{ name = "user", limit = "9/hour" }]
        [groups.views]
        members = ["chat.one"]
        limits = [{ name = "view", limit = "9/second" }]
    """
    app, limiter = make(config=policy(tmp_path, text))
    blueprint = Blueprint("chat", "chat", url_prefix="/chat")
    own = limiter.limit("9/minute", name="own", override_defaults=overrides)
    blueprint.get("/one", endpoint="one")(own(lambda: "one"))
    app.register_blueprint(blueprint)
    assert left(app, "/chat/one") == dict.fromkeys(applied, 8)


def test_a_decorator_does_not_override_a_group_of_the_view(make: Maker, tmp_path: Path) -> None:
    """The view is a member and its blueprint is not."""
    app, limiter = make(config=policy(tmp_path, GROUP))
    blueprint = Blueprint("api", "api", url_prefix="/api")
    own = limiter.limit("9/minute", name="own")
    blueprint.get("/one", endpoint="one")(own(lambda: "one"))
    for each in (blueprint, chat("one")):
        app.register_blueprint(each)
    app.add_url_rule("/", "index", root)
    assert left(app, "/api/one") == {"own": 8, "user": 2}


@pytest.mark.parametrize(
    ("overrides", "applied"),
    [(True, {"inner"}), (False, {"inner", "outer"}), (None, {"inner", "outer"})],
)
def test_a_decorated_inner_blueprint_replaces_the_outer_one_only_in_words(
    make: Maker, tmp_path: Path, overrides: bool | None, applied: set[str]
) -> None:
    """With `override_defaults=True`; by default, what the file says of the outer one applies."""
    text = '[blueprints.v1]\nlimits = [{ name = "outer", limit = "9/hour" }]'
    app, limiter = make(config=policy(tmp_path, text))
    outer, inner = Blueprint("v1", "v1", url_prefix="/v1"), chat("one")
    limiter.limit("9/minute", name="inner", override_defaults=overrides)(inner)
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    assert left(app, "/v1/chat/one") == dict.fromkeys(applied, 8)


@pytest.mark.parametrize(
    ("exempt", "flags"),
    [
        ("chat", ExemptionScope.ANCESTORS),
        ("v1", ExemptionScope.DEFAULT | ExemptionScope.DESCENDENTS),
    ],
    ids=["from what is around it", "with what is in it"],
)
def test_an_exemption_includes_the_limits_of_a_policy(
    make: Maker, tmp_path: Path, exempt: str, flags: ExemptionScope
) -> None:
    """The outer blueprint's limit is left out; the inner one's applies."""
    text = """
        [blueprints.v1]
        limits = [{ name = "outer", limit = "9/hour" }]
        [blueprints."v1.chat"]
        limits = [{ name = "inner", limit = "9/minute" }]
    """
    app, limiter = make(config=policy(tmp_path, text))
    blueprints = {"v1": Blueprint("v1", "v1", url_prefix="/v1"), "chat": chat("one")}
    limiter.exempt(blueprints[exempt], flags=flags)
    blueprints["v1"].register_blueprint(blueprints["chat"])
    app.register_blueprint(blueprints["v1"])
    assert left(app, "/v1/chat/one") == {"inner": 8}


# -- plans -----------------------------------------------------------------------------------------

STARTER_AND_PRO = """
[plans.starter]
title = "Starter"
next = "pro"
limits = [{ name = "plan", limit = "2/day", strategy = "sliding-window" }]

[plans.pro]
limits = [{ name = "plan", limit = "2000/day", strategy = "sliding-window" }]
"""

PLANS = "[blueprints.chat]\nplans = true\n" + STARTER_AND_PRO


def on_plans(
    config: dict[str, Any], *blueprints: Blueprint, **options: Any
) -> tuple[Flask, Limiter, list[str]]:
    """An application with plans. The header `X-Plan` is the caller's; `asked` are the paths of the
    requests that loaded it."""
    limiter = Limiter(asked_key, storage_uri="memory://", headers_enabled=True, **options)
    asked = []

    @limiter.plan_loader
    def plan() -> str:
        asked.append(request.path)
        return request.headers.get("X-Plan", "starter")

    app = Flask("example")
    app.config.update(config)
    limiter.init_app(app)
    for blueprint in blueprints or (chat("one", "two"),):
        app.register_blueprint(blueprint)
    return app, limiter, asked


def test_the_callers_plan_applies(tmp_path: Path, clock: Clock) -> None:
    """In one bucket for all views of the blueprint; the refusal names the plan and the next one."""
    app, _, _ = on_plans(policy(tmp_path, PLANS))
    client = app.test_client()
    assert statuses(client, "/chat/one") + statuses(client, "/chat/two") == [200, 200]
    refusal = client.get("/chat/one")
    assert refusal.status_code == 429
    assert refusal.json["error"].startswith(
        "The Starter plan allows 2 calls a day, and they are used up; the Pro plan allows 2,000."
    )
    assert refusal.headers["x-should-retry"] == "false"


def test_a_change_of_plan_keeps_the_usage(tmp_path: Path) -> None:
    """Two calls under the starter plan count under the pro plan."""
    app, _, _ = on_plans(policy(tmp_path, PLANS))
    client = app.test_client()
    assert statuses(client, "/chat/one", 3) == [200, 200, 429]
    response = client.get("/chat/one", headers={"X-Plan": "pro"})
    assert response.headers["X-RateLimit-Remaining"] == "1997"
    assert statuses(client, "/chat/one") == [429]


def test_the_plan_is_loaded_once_a_request(tmp_path: Path) -> None:
    """For any number of plans and limits, and not if no plan applies."""
    app, _, asked = on_plans(policy(tmp_path, PLANS))
    app.get("/")(root)
    assert statuses(app, "/chat/one") + statuses(app) == [200, 200]
    assert asked == ["/chat/one"]


@pytest.mark.parametrize(
    ("text", "left"),
    [(PLANS, "1"), (PLANS.replace("[plans.pro]", "[plans.pro]\ndefault = true"), "1999")],
    ids=["the first", "stated"],
)
def test_an_unknown_plan_is_the_default_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, left: str
) -> None:
    """That of the policy, or its first. Each is logged once, with the plans; a caller without a
    plan has the default one without a word."""
    app, limiter, _ = on_plans(policy(tmp_path, text))
    client = app.test_client()
    for caller, name in (("a", "gold"), ("b", "gold"), ("c", "silver"), ("d", "")):
        answer = client.get("/chat/one", headers={"X-Plan": name, "X-Key": caller})
        assert (answer.status_code, answer.headers["X-RateLimit-Remaining"]) == (200, left)
    gold, silver = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    default = "starter" if left == "1" else "pro"
    assert f"default plan '{default}' applies: plan_loader: found 'gold' (a string)" in gold
    assert "allowed: 'starter', 'pro'." in silver
    with app.test_request_context(headers={"X-Plan": "gold"}):
        assert limiter.current.plan == default


def test_a_plan_is_charged_once_in_an_overriding_blueprint(tmp_path: Path, clock: Clock) -> None:
    """The outer blueprint's limits and plan are replaced; the inner one's apply."""
    text = """
        [blueprints.v1]
        plans = true
        limits = [{ name = "outer", limit = "9/hour" }]
        [blueprints."v1.chat"]
        plans = true
        limits = [{ name = "inner", limit = "8/hour", override_defaults = true }]
    """
    app, _, _ = on_plans(policy(tmp_path, text + STARTER_AND_PRO), nested("v1"))
    response = app.test_client().get("/v1/chat/one")
    assert response.headers["RateLimit"] == '"inner";r=7;t=3600, "plan";r=1;t=86400'


@pytest.mark.parametrize(
    "text",
    [
        """
        [blueprints."v1.chat"]
        plans = true
        limits = [{ name = "pace", limit = "9/hour" }]
        [blueprints."v2.chat"]
        plans = true
        """,
        """
        [groups.calls]
        members = ["v1", "v2.chat"]
        plans = true
        """,
    ],
    ids=["blueprints", "group"],
)
def test_a_plan_is_charged_once_in_blueprints_of_one_name(tmp_path: Path, text: str) -> None:
    """One bucket for both, charged once by each request. `v1.chat` may have the plan from `v1`: the
    member `v2.chat` does not concern it."""
    app, _, _ = on_plans(policy(tmp_path, text + STARTER_AND_PRO), nested("v1"), nested("v2"))
    client = app.test_client()
    assert [client.get(f"/{v}/chat/one").status_code for v in ("v1", "v2", "v1")] == [200, 200, 429]


def test_a_policy_in_code_is_that_of_a_file(tmp_path: Path, clock: Clock) -> None:
    """`RATELIMIT_POLICY` has the tables of the file, and may have functions."""
    document = tomllib.loads(PLANS)
    document["plans"]["starter"]["limits"][0]["cost"] = lambda: 2
    app, _, _ = on_plans({"RATELIMIT_POLICY": document})
    assert left(app, "/chat/one") == {"plan": 0}
    app, _, _ = on_plans({"RATELIMIT_POLICY": tomllib.loads(PLANS)})
    assert statuses(app, "/chat/one", 3) == [200, 200, 429]


def test_mistakes_of_a_policy_in_code_have_their_place(tmp_path: Path) -> None:
    """As those of RATELIMIT_BLUEPRINTS. It does not add to a file."""
    document = tomllib.loads(PLANS)
    document["plans"]["starter"]["limts"] = []
    with pytest.raises(ConfigurationError) as caught:
        on_plans({"RATELIMIT_POLICY": document})
    place = 'app.config["RATELIMIT_POLICY"]["plans"]["starter"]["limts"]: unknown key; allowed: '
    assert place in str(caught.value)
    assert "Did you mean 'limits'?" in str(caught.value)
    with pytest.raises(
        ConfigurationError, match=r"POLICY\"\]: there is RATELIMIT_POLICY_FILE, too"
    ):
        on_plans(policy(tmp_path, PLANS) | {"RATELIMIT_POLICY": tomllib.loads(PLANS)})


DEFAULTS = """
[[default]]
name = "default"
limit = "9/second"
"""


@pytest.mark.parametrize("where", ["", ".routes.one"], ids=["blueprint", "route"])
def test_beside_a_plan_the_defaults_go_by_the_method(
    tmp_path: Path, clock: Clock, where: str
) -> None:
    """The defaults apply if the view's limits are for other methods."""
    text = f"""
        [[blueprints.chat{where}.limits]]
        name = "post"
        limit = "9/minute"
        methods = ["POST"]
    """
    app, _, _ = on_plans(policy(tmp_path, PLANS + DEFAULTS + text))
    assert left(app, "/chat/one").keys() == {"plan", "default"}
    assert left(app, "/chat/one", method="POST").keys() == {"plan", "post"}


def test_a_request_that_is_too_large_names_the_limit(tmp_path: Path) -> None:
    """`RequestTooLarge` is the exception that an application handles."""
    text = """
        [blueprints.chat]
        limits = [{ limit = "5/minute", name = "pace" }]
    """
    config = policy(tmp_path, text)
    config["RATELIMIT_BLUEPRINTS"] = {  # type: ignore[assignment]
        "chat": [{"limit": "3/hour", "name": "dear", "cost": lambda: 4}]
    }
    app, _, _ = on_plans(config)
    app.register_error_handler(
        RequestTooLarge, lambda error: ({"policy": error.bound_limit.limit.name}, 413)
    )
    response = app.test_client().get("/chat/one")
    assert (response.status_code, response.json) == (413, {"policy": "dear"})


# -- groups ----------------------------------------------------------------------------------------

GROUP = """
[groups.calls]
members = ["chat", "api.one", "index"]
limits = [{ name = "user", limit = "3/hour" }]
"""


def test_a_group_is_one_bucket(make: Maker, tmp_path: Path) -> None:
    """For a blueprint, an endpoint of another, and one of the application."""
    app, _ = make(config=policy(tmp_path, GROUP))
    for blueprint in (chat("one", "two"), chat("one", "two", name="api")):
        app.register_blueprint(blueprint)
    app.add_url_rule("/", "index", root)
    client = app.test_client()
    for path in ("/chat/one", "/api/one", "/"):
        assert client.get(path).status_code == 200
    for path in ("/chat/one", "/chat/two", "/api/one", "/"):
        assert client.get(path).status_code == 429
    assert statuses(client, "/api/two", 4) == [200] * 4


def test_a_group_can_have_a_bucket_for_each_endpoint(make: Maker, tmp_path: Path) -> None:
    """With `shared = false`, as in a blueprint."""
    text = """
        [groups.calls]
        members = ["chat", "api.one"]
        limits = [{ limit = "1/hour", shared = false }]
    """
    app, _ = make(config=policy(tmp_path, text))
    for blueprint in (chat("one", "two"), chat("one", name="api")):
        app.register_blueprint(blueprint)
    for path in ("/chat/one", "/chat/two", "/api/one"):
        assert statuses(app, path, 2) == [200, 429]


def test_a_limit_that_the_storage_does_not_support_stops_the_start(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a limit of a group, whose members are not yet known."""

    def refuse(engines: Engines, text: str, *_: object, **__: object) -> None:
        raise ConfigurationError(f"{text} is not supported")

    monkeypatch.setattr(Engines, "check", refuse)
    with pytest.raises(ConfigurationError, match="3/hour is not supported"):
        make(config=policy(tmp_path, GROUP))


def test_requests_that_complete_a_policy_together_are_all_limited() -> None:
    """The limits of names that only the application knows are added at the first request. One that
    comes meanwhile waits for them; it would be decided without, and its view for ever after."""
    app = Flask("example")
    app.config["RATELIMIT_BLUEPRINTS"] = {"chat": ["1/hour"]}
    limiter = Limiter(lambda: "someone", app=app, storage_uri="memory://")
    chat = Blueprint("chat", __name__)
    chat.get("/")(lambda: "ok")
    app.register_blueprint(chat)
    manager, begun, go_on = limiter.limit_manager, threading.Event(), threading.Event()
    add = manager.add_named

    def slowly(*limits: Any) -> None:
        begun.set()
        go_on.wait(5)
        add(*limits)

    manager.add_named = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: app.test_client().get("/").status_code)
        assert begun.wait(60)
        second = pool.submit(lambda: app.test_client().get("/").status_code)
        threading.Timer(0.1, go_on.set).start()
        assert sorted([first.result(), second.result()]) == [200, 429]
