"""Which limits of a policy apply to a view: blueprints in blueprints, routes, groups and plans."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask

from ratelimit_ext import Limiter, client_ip

PLAN = '[plans.pro]\nlimits = [{name = "plan", limit = "9/day"}]\n'


def blueprint_of(name: str, made: dict[str, Blueprint]) -> Blueprint:
    """The blueprint of this whole name."""
    if name not in made:
        own = name.rpartition(".")[2]
        made[name] = Blueprint(own, __name__, url_prefix=f"/{own}")
    return made[name]


def applied(
    tmp_path: Path, text: str, *endpoints: str, blueprints: Mapping[str, Any] | None = None
) -> dict[str, list[str]]:
    """The names of the limits of each endpoint, by the headers of a request that each of them
    charges once. The endpoints' blueprints are made as the names say."""
    file = tmp_path / "policy.toml"
    file.write_text(f"version = 1\n{text}")
    app, made = Flask(__name__), dict[str, Blueprint]()
    app.config.update(RATELIMIT_POLICY_FILE=file, RATELIMIT_BLUEPRINTS=blueprints)
    for endpoint in endpoints:
        name, _, view = endpoint.rpartition(".")
        target: Any = blueprint_of(name, made) if name else app
        target.add_url_rule(f"/{view}", view, lambda: "ok")
        while "." in name:
            name = name.rpartition(".")[0]
            blueprint_of(name, made)
    for name in sorted(made, key=len, reverse=True):
        outer = name.rpartition(".")[0]
        (made[outer] if outer else app).register_blueprint(made[name])
    limiter = Limiter(client_ip, storage_uri="memory://", headers_enabled=True)
    limiter.plan_loader(lambda: "pro")
    limiter.init_app(app)
    limiter.check_policy(app)
    shown = {}
    for number, endpoint in enumerate(endpoints):
        path, caller = "/" + endpoint.replace(".", "/"), {"REMOTE_ADDR": f"192.0.2.{number}"}
        headers = app.test_client().get(path, environ_base=caller).headers
        amounts = dict(re.findall(r'"([^"]*)";q=(\d+)', headers["RateLimit-Policy"]))
        left = re.findall(r'"([^"]*)";r=(\d+)', headers["RateLimit"])
        assert all(int(remaining) == int(amounts[name]) - 1 for name, remaining in left)
        shown[endpoint] = sorted(name for name, _ in left)
    return shown


@pytest.mark.parametrize(
    ("around", "beside"),
    [
        ("", []),
        ('[blueprints.chat]\nlimits = [{name = "hour", limit = "9/hour"}]\n', ["hour"]),
        ("[blueprints.chat]\nplans = true\n" + PLAN, ["plan"]),
        ('[blueprints.other]\nlimits = [{name = "hour", limit = "9/hour"}]\n', []),
    ],
)
def test_a_route_applies_beside_its_blueprint(
    tmp_path: Path, around: str, beside: list[str]
) -> None:
    """A route replaces the defaults, and nothing of its blueprint."""
    text = (
        f'{around}[[default]]\nname = "usual"\nlimit = "7/day"\n'
        '[[blueprints.chat.routes.post.limits]]\nname = "own"\nlimit = "5/minute"\n'
    )
    shown = applied(tmp_path, text, "chat.post", "other.get")
    assert shown["chat.post"] == sorted(["own", *beside])


def test_a_route_replaces_its_blueprint_where_it_says_so(tmp_path: Path) -> None:
    """What is written counts, true or false."""
    text = """
        [[blueprints.chat.limits]]
        name = "hour"
        limit = "9/hour"
        [blueprints.chat.routes]
        a.limits = [{name = "own", limit = "5/minute", override_defaults = true}]
        b.limits = [{name = "own", limit = "5/minute", override_defaults = false}]
    """
    assert applied(tmp_path, text, "chat.a", "chat.b") == {
        "chat.a": ["own"],
        "chat.b": ["hour", "own"],
    }


def test_app_config_and_file_follow_the_same_rule(tmp_path: Path) -> None:
    """They add to each other, and outer blueprints to inner ones."""
    text = """
        [blueprints.outer]
        limits = [{name = "outer", limit = "9/hour"}]
        [blueprints."outer.inner"]
        limits = [{name = "inner", limit = "9/day"}]
        [routes."chat.post"]
        limits = [{name = "post", limit = "9/day"}]
    """
    blueprints = {
        "chat": [{"name": "chat", "limit": "5/minute"}],
        "chat.get": [{"name": "get", "limit": "6/minute"}],
        "outer.inner.get": [{"name": "get", "limit": "7/minute"}],
    }
    endpoints = ("outer.get", "outer.inner.get", "chat.post", "chat.get")
    assert applied(tmp_path, text, *endpoints, blueprints=blueprints) == {
        "outer.get": ["outer"],
        "outer.inner.get": ["get", "inner", "outer"],
        "chat.post": ["chat", "post"],
        "chat.get": ["chat", "get"],
    }


def test_a_plan_applies_once(tmp_path: Path) -> None:
    """Where file and app.config both ask, or blueprint and route, it is charged once."""
    text = (
        "[blueprints.chat]\nplans = true\n[blueprints.chat.routes.post]\nplans = true\n"
        '[blueprints."chat.inner"]\nplans = true\n[routes.index]\nplans = true\n' + PLAN
    )
    plans = {name: {"plans": True} for name in ("chat", "chat.get", "pay")}
    endpoints = ("chat.post", "chat.inner.get", "index", "chat.get", "pay.get")
    shown = applied(tmp_path, text, *endpoints, blueprints=plans)
    assert shown == {endpoint: ["plan"] for endpoint in endpoints}


def test_a_plan_is_kept_where_its_blueprint_is_replaced(tmp_path: Path) -> None:
    """A route that replaces its blueprint, the plan included, can ask for the plan again."""
    own = '{name = "own", limit = "5/minute", override_defaults = true}'
    text = (
        '[[blueprints.chat.limits]]\nname = "hour"\nlimit = "9/hour"\n'
        "[blueprints.chat]\nplans = true\n[blueprints.chat.routes]\n"
        f"a = {{plans = true, limits = [{own}]}}\nb = {{limits = [{own}]}}\n{PLAN}"
    )
    assert applied(tmp_path, text, "chat.a", "chat.b") == {
        "chat.a": ["own", "plan"],
        "chat.b": ["own"],
    }


def test_an_overriding_blueprint_hides_the_outer_one_from_inner_ones(tmp_path: Path) -> None:
    """Plan and group are charged once; the limit of the outermost of three is left out."""
    text = """
        [groups.calls]
        members = ["a", "a.v1"]
        plans = true
        limits = [{ name = "group", limit = "9/minute" }]
        [blueprints.a]
        limits = [{ name = "outer", limit = "9/hour" }]
        [blueprints."a.v1"]
        limits = [{ name = "middle", limit = "8/hour", override_defaults = true }]
        [blueprints."a.v1.chat"]
        limits = [{ name = "inner", limit = "7/hour" }]
    """
    assert applied(tmp_path, text + PLAN, "a.one", "a.v1.chat.one") == {
        "a.one": ["group", "outer", "plan"],
        "a.v1.chat.one": ["group", "inner", "middle", "plan"],
    }


def test_a_plan_does_not_override_the_defaults(tmp_path: Path) -> None:
    """The view's other limits do, whether they are its own, a group's or a blueprint's."""
    text = """
        [[default]]
        name = "default"
        limit = "9/second"
        [groups.calls]
        members = ["chat.three"]
        limits = [{ name = "group", limit = "9/minute" }]
        [blueprints.chat]
        plans = true
        [blueprints.chat.routes.two]
        limits = [{ name = "two", limit = "9/minute" }]
        [blueprints.v1]
        plans = true
        [blueprints."v1.chat"]
        limits = [{ name = "inner", limit = "9/minute" }]
    """
    endpoints = ("chat.one", "chat.two", "chat.three", "v1.chat.one")
    assert applied(tmp_path, text + PLAN, *endpoints) == {
        "chat.one": ["default", "plan"],
        "chat.two": ["plan", "two"],
        "chat.three": ["group", "plan"],
        "v1.chat.one": ["inner", "plan"],
    }


INNER = '[[blueprints."outer.inner".limits]]\nname = "inner"\nlimit = "9/day"\n'
GROUP = f'{INNER}[groups.calls]\nmembers = ["outer.inner"]'


@pytest.mark.parametrize(
    ("table", "own"),
    [('[blueprints."outer.inner"]', []), (GROUP, ["inner"])],
    ids=["of the blueprint", "of a group"],
)
def test_one_limit_of_a_name_replaces_for_all(tmp_path: Path, table: str, own: list[str]) -> None:
    """What is around is left out, and all that the blueprint has itself applies."""
    text = f"""
        [[blueprints.outer.limits]]
        name = "outer"
        limit = "9/hour"
        {table}
        limits = [
            {{name = "minute", limit = "5/minute", override_defaults = true}},
            {{name = "second", limit = "5/second"}},
        ]
    """
    blueprints = {"outer.inner": [{"name": "day", "limit": "5/day"}]}
    assert applied(tmp_path, text, "outer.inner.get", blueprints=blueprints) == {
        "outer.inner.get": sorted([*own, "day", "minute", "second"])
    }


def test_what_lies_inside_asks_again_where_its_blueprint_has_replaced_the_plan(
    tmp_path: Path,
) -> None:
    """The plan of the blueprint two levels further out reaches no route and no blueprint in it."""
    replaced = (
        '[blueprints.a]\nplans = true\n[blueprints."a.b"]\n'
        'limits = [{name = "own", limit = "5/minute", override_defaults = true}]\n'
    )
    text = f'{replaced}[routes."a.b.c"]\nplans = true\n{PLAN}'
    assert applied(tmp_path, text, "a.b.c", "a.b.d", "a.e") == {
        "a.b.c": ["own", "plan"],
        "a.b.d": ["own"],
        "a.e": ["plan"],
    }
    text = f'{replaced}[blueprints."a.b.c"]\nplans = true\n[routes."a.b.c.d"]\nplans = true\n{PLAN}'
    assert applied(tmp_path, text, "a.b.c.d") == {"a.b.c.d": ["own", "plan"]}


def test_a_group_drops_nothing_around_its_members(tmp_path: Path) -> None:
    """Neither what a member's blueprint has, from any table, nor what is inside a member, nor what
    other groups have. It overrides the defaults."""
    text = """
        [[default]]
        limit = "9/second"
        [groups.calls]
        members = ["chat", "api.ask"]
        limits = [{limit = "30/minute", name = "user"}]
        [[blueprints.api.limits]]
        name = "api"
        limit = "9/day"
        [[routes."chat.post".limits]]
        name = "post"
        limit = "2/second"
        [groups.tools]
        members = ["tools"]
        limits = [{name = "tools", limit = "7/day"}]
        [groups.calculators]
        members = ["tools.sum", "index"]
        limits = [{name = "sums", limit = "8/day"}]
    """
    assert applied(tmp_path, text, "api.ask", "chat.post", "tools.sum", "index") == {
        "api.ask": ["api", "user"],
        "chat.post": ["post", "user"],
        "tools.sum": ["sums", "tools"],
        "index": ["sums"],
    }


def test_a_member_inside_a_member_is_charged_once(tmp_path: Path) -> None:
    """An endpoint and a nested blueprint have the group's limits once, also where one of them
    replaces what is around it."""
    text = """
        [groups.calls]
        limits = [{name = "user", limit = "5/minute"}]
        members = ["chat", "chat.post", "chat.inner", "chat.inner.get", "api.chat"]
        [blueprints.chat.routes.post]
        limits = [{name = "own", limit = "5/hour", override_defaults = true}]
        [blueprints."chat.inner"]
        limits = [{name = "own", limit = "5/hour", override_defaults = true}]
    """
    assert applied(tmp_path, text, "chat.post", "chat.inner.get", "chat.get", "api.chat.get") == {
        "chat.post": ["own", "user"],
        "chat.inner.get": ["own", "user"],
        "chat.get": ["user"],
        "api.chat.get": ["user"],
    }


def test_a_group_with_plans(tmp_path: Path) -> None:
    """Once for each member, even if the member, its blueprint or another group has plans too."""
    members = ["chat", "chat.post", "api.ask", "pay", "v1.chat", "v1.chat.get", "v2.chat"]
    with_plans = f"members = {members}\nplans = true\n"
    text = (
        f"[groups.a]\n{with_plans}[groups.b]\n{with_plans}"
        "[blueprints.api]\nplans = true\n[blueprints.pay]\nplans = true\n" + PLAN
    )
    endpoints = ("chat.post", "chat.get", "api.ask", "pay.get", "v1.chat.get", "v2.chat.get")
    assert applied(tmp_path, text, *endpoints) == {endpoint: ["plan"] for endpoint in endpoints}
