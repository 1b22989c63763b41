"""Blueprints in blueprints, routes, groups and plans: what applies where, and how often."""

from ratelimit_ext.policy.policy import Policy
from tests.policy.conftest import Load, error_of

LIMITS = '[[groups.calls.limits]]\nname = "user"\nlimit = "30/minute"'
GROUP = """
version = 1
[groups.calls]
members = ["chat", "api.ask"]
limits = [{limit = "30/minute", name = "user", key = "user"}]
"""
PLAN = '[plans.pro]\nlimits = [{name = "plan", limit = "9/day"}]\n'


def test_a_limit_of_a_plan_overrides_nothing(load: Load) -> None:
    """A plan applies beside the defaults, unless override_defaults is true."""
    policy = load("version = 1\n[blueprints.chat]\nplans = true\n" + PLAN)
    assert policy.plan("pro").limits[0].override_defaults is False


def test_a_name_is_free_again_inside_what_overrides(load: Load) -> None:
    """Limits that never apply together may have one name; where they do, it is a mistake."""
    text = (
        'version = 1\n[blueprints.a]\nlimits = [{name = "pace", limit = "9/hour"}]\n'
        '[blueprints."a.b"]\nlimits = [{limit = "5/minute", override_defaults = OVERRIDES}]\n'
        '[blueprints."a.b.c"]\nlimits = [{name = "pace", limit = "9/day"}]\n'
    )
    load(text.replace("OVERRIDES", "true"))
    assert "found 'pace', which is also the name of" in error_of(
        lambda: load(text.replace("OVERRIDES", "false"))
    )


# -- groups


def names(policy: Policy) -> dict[str, list[str]]:
    """The names of the limits of each target, in their order; without targets that have none."""
    return {
        name: [limit.options.name for limit in limits]
        for name, limits in policy.targets.items()
        if limits
    }


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
    [(identity, place)] = [use[1:] for use in policy.uses if use.kind == "identity"]
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


def test_limits_of_a_group_that_views_name_differ(load: Load) -> None:
    """Also from those of the plans that apply there, and from those of the application."""
    group = 'version = 1\n[groups.calls]\nplans = true\nlimits = ["5/minute", SECOND]\n' + PLAN
    application = '[[application]]\nlimit = "7/hour"\nname = "hour"\n'
    load(group.replace("SECOND", '"9/day"') + application)
    for second, mistake in (
        ('"6/minute"', "applies together with '5/minute'"),
        ('{limit = "9/week", name = "plan"}', "found 'plan', which is also the name of"),
        ('{limit = "9/week", name = "hour"}', "found 'hour', which is also the name of"),
    ):
        text = group.replace("SECOND", second) + application
        assert mistake in error_of(lambda text=text: load(text))


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


def test_a_route_and_a_blueprint_of_one_name_are_two(load: Load) -> None:
    """Each has the plans itself."""
    policy = load(
        "version = 1\n[blueprints.index]\nplans = true\n[routes.index]\nplans = true\n" + PLAN
    )
    assert list(policy.plan_blueprints) == list(policy.plan_routes) == ["index"]


# -- mistakes


def test_all_mistakes_of_a_group_are_found_at_once(load: Load) -> None:
    """Those of its name, its members, its limits and its keys."""
    text = (
        'version = 1\n[groups."a/b"]\nmembers = ["chat", 1]\nplan = true\n'
        'limits = ["5/fortnight"]\nplans = 1\n' + PLAN
    )
    lines = error_of(lambda: load(text)).split("\n")
    assert [line.split(": ")[0] for line in lines[1:]] == [
        f"  policy.toml:{line}" for line in (2, 3, 4, 5, 6)
    ]


def test_names_that_never_meet_may_be_the_same(load: Load) -> None:
    """Groups without a member in common, plans that do not apply, and what is overridden."""
    load(
        'version = 1\n[groups.calls]\nmembers = ["chat"]\n' + LIMITS + "\n"
        '[groups.more]\nmembers = ["api"]\nlimits = [{name = "user", limit = "9/hour"}]\n'
        "[blueprints.chat.routes.post]\n"
        'limits = [{name = "user", limit = "9/day", override_defaults = true}]\n'
        '[blueprints.page]\nplans = true\n[[plans.pro.limits]]\nname = "user"\nlimit = "9/day"\n'
    )
