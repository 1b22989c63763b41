"""What stands inside a blueprint applies beside what the blueprint has, and a plan applies once."""

from __future__ import annotations

import pytest

from ratelimit_ext.policy import Policy
from tests.policy.conftest import Load, told_by

PLAN = '[plans.pro]\nlimits = [{name = "plan", limit = "9/day"}]\n'


def overriding(policy: Policy) -> dict[str, bool]:
    """Whether the first limit of each name overrides what is around it."""
    named = {**policy.blueprints, **policy.routes, **policy.targets}
    return {name: limits[0].override_defaults for name, limits in named.items()}


@pytest.mark.parametrize(
    ("around", "overrides"),
    [
        ("", True),
        ('[blueprints.chat]\nlimits = ["9/hour"]\n', False),
        ("[blueprints.chat]\nplans = true\n" + PLAN, False),
        ('[blueprints.other]\nlimits = ["9/hour"]\n', True),
    ],
)
def test_a_route_applies_beside_its_blueprint(load: Load, around: str, overrides: bool) -> None:
    """A route overrides the defaults, and nothing where its blueprint has limits or plans."""
    route = '[blueprints.chat.routes.post]\nlimits = ["5/minute"]\n'
    assert overriding(load("version = 1\n" + around + route))["chat.post"] is overrides


def test_a_route_overrides_where_it_says_so(load: Load) -> None:
    """What is written is kept, true or false."""
    policy = load(
        'version = 1\n[blueprints.chat]\nlimits = ["9/hour"]\n'
        "[blueprints.chat.routes]\n"
        'a.limits = [{limit = "5/minute", override_defaults = true}]\n'
        'b.limits = [{limit = "5/minute", override_defaults = false}]\n'
    )
    assert overriding(policy) == {"chat": True, "chat.a": True, "chat.b": False}


def test_targets_and_nested_blueprints_follow_the_same_rule(load: Load) -> None:
    """app.config and file surround each other, and outer blueprints their inner ones."""
    policy = load(
        'version = 1\n[blueprints.outer]\nlimits = ["9/hour"]\n'
        '[blueprints."outer.inner"]\nlimits = ["9/day"]\n'
        '[routes."chat.post"]\nlimits = ["9/day"]\n',
        {"chat": ["5/minute"], "chat.get": ["6/minute"], "outer.inner.get": ["7/minute"]},
    )
    assert overriding(policy) == {
        "outer": True,
        "outer.inner": False,
        "chat.post": False,
        "chat": True,
        "chat.get": False,
        "outer.inner.get": False,
    }


def test_a_limit_of_a_plan_overrides_nothing(load: Load) -> None:
    """A plan applies beside the defaults, unless it says otherwise."""
    policy = load("version = 1\n[blueprints.chat]\nplans = true\n" + PLAN)
    assert policy.plan("pro").limits[0].override_defaults is False


def test_a_plan_applies_once(load: Load) -> None:
    """Where file and app.config both ask, or blueprint and route, the plan is charged once."""
    policy = load(
        "version = 1\n[blueprints.chat]\nplans = true\n"
        '[blueprints.chat.routes.post]\nplans = true\n[blueprints."chat.inner"]\nplans = true\n'
        "[routes.index]\nplans = true\n" + PLAN,
        {"chat": {"plans": True}, "chat.get": {"plans": True}, "pay": {"plans": True}},
    )
    assert dict(policy.plan_blueprints) == {"chat": "policy.toml: blueprints.chat.plans"}
    assert dict(policy.plan_routes) == {"index": "policy.toml: routes.index.plans"}
    assert list(policy.plan_targets) == ["pay"]


def test_a_plan_is_kept_where_its_blueprint_is_overridden(load: Load) -> None:
    """A route that overrides its blueprint, the plan included, can ask for the plan again."""
    policy = load(
        "version = 1\n[blueprints.chat]\nplans = true\n[blueprints.chat.routes.post]\n"
        'plans = true\nlimits = [{limit = "5/minute", override_defaults = true}]\n' + PLAN
    )
    assert list(policy.plan_routes) == ["chat.post"]


def test_one_limit_of_a_name_overrides_for_all(load: Load) -> None:
    """A nested blueprint overrides only where each of its limits does, and its plans do."""
    policy = load(
        'version = 1\n[blueprints.outer]\nlimits = ["9/hour"]\n[blueprints."outer.inner"]\n'
        'limits = [{limit = "5/minute", override_defaults = true}, "5/second"]\n',
        {"outer.inner": ["5/day"]},
    )
    inner = (*policy.blueprints["outer.inner"], *policy.targets["outer.inner"])
    assert [limit.override_defaults for limit in inner] == [True, True, True]
    assert policy.overriding == {"outer.inner"}


def test_what_lies_inside_asks_again_where_its_blueprint_has_overridden_the_plan(
    load: Load,
) -> None:
    """The plan of the blueprint two levels further out reaches no route and no blueprint in it."""
    overriding = (
        'version = 1\n[blueprints.a]\nplans = true\n[blueprints."a.b"]\n'
        'limits = [{limit = "5/minute", override_defaults = true}]\n'
    )
    policy = load(overriding + '[routes."a.b.c"]\nplans = true\n' + PLAN)
    assert list(policy.plan_routes) == ["a.b.c"]
    policy = load(
        overriding + '[blueprints."a.b.c"]\nplans = true\n[routes."a.b.c.d"]\nplans = true\n' + PLAN
    )
    assert list(policy.plan_blueprints) == ["a", "a.b.c"]
    assert list(policy.plan_routes) == []


def test_a_name_is_free_again_inside_what_overrides(load: Load) -> None:
    """Limits that never apply together may have one name; where they do, it is a mistake."""
    text = (
        'version = 1\n[blueprints.a]\nlimits = [{name = "pace", limit = "9/hour"}]\n'
        '[blueprints."a.b"]\nlimits = [{limit = "5/minute", override_defaults = OVERRIDES}]\n'
        '[blueprints."a.b.c"]\nlimits = [{name = "pace", limit = "9/day"}]\n'
    )
    assert load(text.replace("OVERRIDES", "true")).overriding == {"a.b"}
    assert "found 'pace', which is also the name of" in told_by(
        lambda: load(text.replace("OVERRIDES", "false"))
    )
