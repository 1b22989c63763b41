"""A group: limits that several blueprints and endpoints have in common."""

from __future__ import annotations

from ratelimit_ext.policy import Policy
from tests.policy.conftest import Load

GROUP = """
version = 1
[groups.calls]
members = ["chat", "api.ask"]
limits = [{limit = "30/minute", name = "user", key = "user"}]
"""
PLAN = '[plans.pro]\nlimits = [{name = "plan", limit = "9/day"}]\n'


def names(policy: Policy) -> dict[str, list[str]]:
    """The names of the limits of each target, in their order; without targets that have none."""
    return {
        name: [limit.options.name for limit in limits]
        for name, limits in policy.targets.items()
        if limits
    }


def overriding(policy: Policy) -> dict[str, bool]:
    """Whether the limits of each name override what is around it."""
    named = {**policy.blueprints, **policy.routes, **policy.targets}
    return {name: limits[0].override_defaults for name, limits in named.items()}


def test_each_member_has_the_limits_of_its_group(load: Load) -> None:
    """In one bucket, which is called after the group."""
    policy = load(GROUP)
    assert policy.targets["chat"] == policy.targets["api.ask"]
    (limit,) = policy.targets["chat"]
    assert (limit.text, limit.shared, limit.scope) == ("30/minute", True, "/group/calls")
    assert limit.source == "policy.toml: groups.calls.limits[0]"


def test_a_limit_of_a_group_is_one_limit(load: Load) -> None:
    """However many members there are."""
    policy = load(GROUP + '[[blueprints.api.limits]]\nlimit = "9/day"\n')
    assert [limit.text for limit in policy.all_limits()] == ["9/day", "30/minute"]
    [(identity, place)] = policy.uses.identities
    assert (identity, str(place)) == ("user", "policy.toml: groups.calls.limits[0].key")


def test_a_limit_of_a_group_may_have_another_bucket(load: Load) -> None:
    """One of another name, or one for each endpoint."""
    policy = load(
        'version = 1\n[groups.calls]\nmembers = ["chat"]\n'
        'limits = [{limit = "5/minute", scope = "llm"}, {limit = "9/day", shared = false}]\n'
    )
    assert [(limit.shared, limit.scope) for limit in policy.targets["chat"]] == [
        (True, "llm"),
        (False, None),
    ]


def test_a_member_keeps_what_it_has(load: Load) -> None:
    """Its own limits, those of app.config and those of other groups apply as well."""
    policy = load(
        GROUP + '[[groups.pages.limits]]\nname = "page"\nlimit = "9/second"\n'
        '[groups.pages]\nmembers = ["chat", "index"]\n'
        '[[blueprints.chat.limits]]\nname = "own"\nlimit = "1/second"\n',
        {"chat": [{"name": "config", "limit": "2/second"}]},
    )
    assert names(policy) == {
        "chat": ["config", "user", "page"],
        "api.ask": ["user"],
        "index": ["page"],
    }
    assert [limit.options.name for limit in policy.blueprints["chat"]] == ["own"]


def test_a_group_drops_nothing_around_its_members(load: Load) -> None:
    """Neither what a member's blueprint has, from whatever table, nor what stands in a member."""
    policy = load(
        GROUP + '[[blueprints.api.limits]]\nlimit = "9/day"\n'
        '[[routes."chat.post".limits]]\nlimit = "2/second"\n'
        '[groups.tools]\nmembers = ["tools"]\nlimits = ["7/day"]\n'
        '[groups.calculators]\nmembers = ["tools.sum", "index"]\nlimits = ["8/day"]\n'
    )
    assert overriding(policy) == {
        "api": True,
        "api.ask": False,
        "chat": True,
        "chat.post": False,
        "tools": True,
        "tools.sum": False,
        "index": True,
    }


def test_a_limit_of_a_group_overrides_where_it_says_so(load: Load) -> None:
    """It then replaces what is around a member, and speaks for all that the member has."""
    policy = load(
        'version = 1\n[[blueprints.outer.limits]]\nlimit = "9/day"\n'
        '[[blueprints."outer.inner".limits]]\nlimit = "9/hour"\n'
        '[groups.calls]\nmembers = ["outer.inner"]\n'
        'limits = [{limit = "5/minute", override_defaults = true}, "4/second"]\n'
    )
    assert [limit.override_defaults for limit in policy.targets["outer.inner"]] == [True, True]
    assert policy.blueprints["outer.inner"][0].override_defaults is True
    assert policy.overriding == {"outer.inner"}


def test_a_member_inside_a_member_is_charged_once(load: Load) -> None:
    """An endpoint and a nested blueprint have the group's limits from the blueprint around."""
    policy = load(
        'version = 1\n[groups.calls]\nlimits = [{name = "user", limit = "5/minute"}]\n'
        'members = ["chat.post", "chat", "chat.inner", "chat.inner.get", "api.chat"]\n'
    )
    assert names(policy) == {"chat": ["user"], "api.chat": ["user"]}
    assert list(policy.target_places) == [
        *("chat.post", "chat", "chat.inner", "chat.inner.get", "api.chat")
    ]


def test_a_member_that_overrides_the_member_around_keeps_its_group(load: Load) -> None:
    """What it overrides would else have been all that it had of the group."""
    policy = load(
        'version = 1\n[groups.calls]\nlimits = [{name = "user", limit = "5/minute"}]\n'
        'members = ["chat", "chat.post", "chat.inner", "chat.inner.get"]\n'
        "[blueprints.chat.routes.post]\n"
        'limits = [{limit = "5/hour", override_defaults = true}]\n'
        '[blueprints."chat.inner"]\n'
        'limits = [{limit = "5/hour", override_defaults = true}]\n'
    )
    assert names(policy) == {"chat": ["user"], "chat.post": ["user"], "chat.inner": ["user"]}


def test_a_group_asks_for_plans(load: Load) -> None:
    """For each member once, whoever else asks: the member itself, what is around, other groups."""
    asking = 'members = ["chat", "chat.post", "api.ask", "pay"]\nplans = true\n'
    policy = load(
        f"version = 1\n[groups.a]\n{asking}[groups.b]\n{asking}"
        "[blueprints.api]\nplans = true\n[blueprints.pay]\nplans = true\n" + PLAN
    )
    assert list(policy.plan_blueprints) == ["api", "pay"]
    assert policy.plan_targets == {"chat": "policy.toml: groups.a.plans"}


def test_a_route_and_a_blueprint_of_one_name_are_two(load: Load) -> None:
    """Each asks for the plans itself."""
    policy = load(
        "version = 1\n[blueprints.index]\nplans = true\n[routes.index]\nplans = true\n" + PLAN
    )
    assert list(policy.plan_blueprints) == list(policy.plan_routes) == ["index"]
